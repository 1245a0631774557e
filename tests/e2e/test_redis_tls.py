"""TLS to a real Redis: certificates good and bad, certificates of clients, and what goes wrong in words."""

import json
import shutil
import socket
import ssl
import threading

import pytest
from harness import Authority, Redis, eventually, free_port, refused, run

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on this host")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


class Secure(Redis):
    """A Redis with a TLS port beside the plain one."""

    def __init__(self, directory, authority, certificate, clients="no"):
        self.tls_port = free_port()
        certificate, key = certificate
        settings = [
            f"tls-port {self.tls_port}",
            f"tls-cert-file {certificate}",
            f"tls-key-file {key}",
            f"tls-ca-cert-file {authority.certificate}",
            f"tls-auth-clients {clients}",
        ]
        super().__init__(directory, settings)

    @property
    def tls_url(self):
        return f"rediss://127.0.0.1:{self.tls_port}"


@pytest.fixture
def secure(tmp_path, authority):
    with Secure(tmp_path, authority, authority.issue("server")) as one:
        yield one


def trusting(authority):
    return ["--redis-tls-ca-file", str(authority.certificate)]


def test_messages_go_over_tls_large_and_many(serve, authority, secure):
    flags = ["--redis", secure.tls_url, *trusting(authority)]
    a, b = (serve(flags=[*flags, "--node-id", name]) for name in "ab")
    plain = serve(flags=["--redis", secure.url, "--node-id", "plain"])
    one, other, third = a.join("r", "?echo=0"), b.join("r", "?echo=0"), plain.join("r")
    large = "x" * 60_000
    for number in range(300):
        one.send_text(f"{number}:{large}")
        assert other.read_text() == f"{number}:{large}"
        assert third.read_text() == f"{number}:{large}"
    small = [str(number) for number in range(3_000)]
    for text in small:
        other.send_text(text)
    assert [third.read_text() for _ in small] == small
    for node in (a, b):
        stats = node.stats()["backplane"]["redis"]
        assert stats["ready"] and stats["publishing"]["losses"] == stats["subscription"]["losses"] == 0


def test_a_lost_tls_link_is_made_again(serve, authority, secure):
    a = serve(flags=["--redis", secure.tls_url, *trusting(authority), "--node-id", "a"])
    b = serve(flags=["--redis", secure.tls_url, *trusting(authority), "--node-id", "b"])
    one, other = a.join("r"), b.join("r")
    for role in ("publishing", "subscription"):
        secure.kill_client(f"throng-a-{role}")
        a.await_metric("throng_redis_losses_total", 1, link=role)
        eventually(lambda: a.admin("/readyz").status == 200, "the link is back")
    one.send_text("again")
    texts = iter(other.read_text, None)
    assert next(text for text in texts if "gap" not in text) == "again"
    secure.kill()
    eventually(lambda: a.admin("/readyz").status == 503, "Redis is gone")
    secure.start()
    eventually(lambda: a.admin("/readyz").status == 200, "Redis is back")


def test_a_session_ends_with_close_notify(serve, authority, tmp_path):
    """The other end is told that nothing more comes: it does not have to guess whether bytes were cut off."""
    certificate, key = authority.issue("peer")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    ends = []
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(client, server_side=True) as session:
                    session.recv(1 << 16)
                    session.sendall(b"-ERR max number of clients reached\r\n")
                    ends.append(session.recv(1 << 16))  # raises if the end was not announced
            except ssl.SSLZeroReturnError:
                pass  # another link, given up during its handshake: announced, too
            except OSError as error:
                ends.append(error)

    threading.Thread(target=answer, daemon=True).start()
    place = "127.0.0.1:%d" % listener.getsockname()[1]
    code, said = refused(f"rediss://{place}", *trusting(authority))
    assert code == 1 and "maxclients" in said, said
    eventually(lambda: ends, "the session ended")
    listener.close()
    assert ends[0] == b"", ends


def test_a_server_that_does_not_answer_the_handshake_is_given_up(authority):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = "rediss://127.0.0.1:%d" % mute.getsockname()[1]
        code, said = refused(url, *trusting(authority), "--redis-probe-timeout-ms", "500")
        assert code == 1 and "TLS handshake within 500 ms" in said, said


def test_tls_at_a_plain_port_and_the_other_way_round(authority, secure):
    code, said = refused(secure.url.replace("redis://", "rediss://"), *trusting(authority), "--redis-probe-timeout-ms", "500")
    assert code == 1 and "write redis://" in said, said
    code, said = refused(f"redis://127.0.0.1:{secure.tls_port}")
    assert code == 1 and "write rediss://" in said, said
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def answer():
            while True:
                try:
                    client, _ = listener.accept()
                    client.recv(4096)
                    client.sendall(b"-ERR Protocol error\r\n")
                except OSError:
                    return

        threading.Thread(target=answer, daemon=True).start()
        code, said = refused("rediss://127.0.0.1:%d" % listener.getsockname()[1], *trusting(authority))
        listener.shutdown(socket.SHUT_RDWR)
    assert code == 1 and "speaks no TLS" in said and "-ERR Protocol error" in said, said


def test_a_certificate_is_verified(tmp_path, authority):
    stranger = Authority(tmp_path, "stranger")
    with Secure(tmp_path, authority, authority.issue("server")) as one:
        code, said = refused(one.tls_url, "--redis-tls-ca-file", str(stranger.certificate))
        assert code == 1 and "is not trusted" in said and "redis_tls_ca_file" in said, said
        code, said = refused(one.tls_url, SSL_CERT_FILE=str(stranger.certificate))
        assert code == 1 and "is not trusted" in said, said
    with Secure(tmp_path, authority, authority.issue("elsewhere", "DNS:redis.example,DNS:other.example")) as one:
        code, said = refused(one.tls_url, *trusting(authority))
        assert code == 1 and "is not for 127.0.0.1 but for" in said and "redis.example" in said, said
    with Secure(tmp_path, authority, authority.issue("old", expired=True)) as one:
        code, said = refused(one.tls_url, *trusting(authority))
        assert code == 1 and "has expired" in said, said


def test_a_name_may_be_given_and_the_hosts_authorities_will_do(serve, tmp_path, authority):
    with Secure(tmp_path, authority, authority.issue("named", "DNS:redis.example")) as one:
        flags = ["--redis", one.tls_url, "--redis-tls-server-name", "redis.example", "--redis-at-start", "fail"]
        a = serve(flags=flags, env={"SSL_CERT_FILE": str(authority.certificate)})
        member = a.join("r")
        member.send_text("hi")
        assert member.read_text() == "hi"


def test_a_server_may_want_a_certificate_of_ours(serve, tmp_path, authority):
    stranger = Authority(tmp_path, "stranger")
    with Secure(tmp_path, authority, authority.issue("server"), clients="yes") as one:
        for protocols in ("TLSv1.3", "TLSv1.2"):
            one.command("CONFIG", "SET", "tls-protocols", protocols)
            code, said = refused(one.tls_url, *trusting(authority))
            assert code == 1 and "wants a client certificate" in said and "redis_tls_cert_file" in said, said
            certificate, key = stranger.issue("node")
            own = ["--redis-tls-cert-file", str(certificate), "--redis-tls-key-file", str(key)]
            code, said = refused(one.tls_url, *trusting(authority), *own)
            assert code == 1 and "does not accept this node's certificate" in said, said
            certificate, key = authority.issue("node")
            own = ["--redis-tls-cert-file", str(certificate), "--redis-tls-key-file", str(key)]
            a = serve(flags=["--redis", one.tls_url, *trusting(authority), *own, "--redis-at-start", "fail"])
            member = a.join("r")
            member.send_text(protocols)
            assert member.read_text() == protocols


def test_an_older_version_is_not_spoken(authority, secure):
    try:
        secure.command("CONFIG", "SET", "tls-protocols", "TLSv1.1")
    except Exception as error:  # noqa: BLE001
        pytest.skip(f"this Redis speaks it neither: {error}")
    code, said = refused(secure.tls_url, *trusting(authority))
    assert code == 1 and "TLS 1.2" in said, said


def test_files_that_cannot_be_used_are_mistakes(tmp_path, authority):
    certificate, key = authority.issue("node")
    other_key = authority.issue("other")[1]
    junk = tmp_path / "junk.pem"
    junk.write_text("nothing of the kind\n")
    locked = tmp_path / "locked.pem"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n")

    def tried(**files):
        flags = [word for key, path in files.items() for word in (f"--redis-tls-{key.replace('_', '-')}-file", str(path))]
        code, said = refused("rediss://127.0.0.1:1", *flags)
        assert code in (1, 2), said
        return said

    said = tried(ca=tmp_path / "none.pem")
    assert "redis_tls_ca_file" in said and "cannot be read" in said, said
    assert "holds no certificate" in tried(ca=junk)
    assert "redis_tls_ca_file" in tried(ca=broken)
    assert "a certificate is given without its key" in tried(cert=certificate)
    assert "is not that of the certificate" in tried(ca=authority.certificate, cert=certificate, key=other_key)
    assert "holds no private key" in tried(ca=authority.certificate, cert=certificate, key=junk)
    assert "is encrypted" in tried(ca=authority.certificate, cert=certificate, key=locked)
    assert "holds no certificate" in tried(ca=authority.certificate, cert=junk, key=key)
    code, said = refused("redis://127.0.0.1:1", *trusting(authority))
    assert code == 2 and "no URL with TLS" in said, said
    done = run("config", "--redis", "rediss://127.0.0.1:1", "--redis-tls-cert-file", str(certificate), "--redis-tls-key-file", str(key))
    assert done.returncode == 0 and "PRIVATE" not in done.stdout, done.stdout


def test_a_node_that_waits_says_why(serve, tmp_path, secure):
    stranger = Authority(tmp_path, "stranger")
    a = serve(flags=["--redis", secure.tls_url, *trusting(stranger)], ready=False)

    eventually(lambda: any("is not trusted" in reason["message"] for reason in a.reasons()), "it says why")


def test_check_says_which_tls_is_spoken_and_what_is_wrong_with_it(authority, secure):
    def found(*flags):
        told = json.loads(run("check", "--json", "--redis-probe-timeout-ms", "500", *flags).stdout)
        return next(finding for finding in told["findings"] if finding["name"].startswith("redis "))

    one = found("--redis", secure.tls_url, *trusting(authority))
    assert one["level"] == "ok" and "TLSv1_3" in one["seen"], one
    one = found("--redis", secure.url.replace("redis:", "rediss:"), *trusting(authority))
    assert one["level"] == "fail" and "redis://" in one["seen"], one
    one = found("--redis", f"redis://127.0.0.1:{secure.tls_port}")
    assert one["level"] == "fail" and "rediss://" in one["seen"], one
