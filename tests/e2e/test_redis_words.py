"""What is not the Redis that it should be: each told in words that say what to write or to grant."""

import json
import re
import socket
import threading
from contextlib import contextmanager

import pytest
from harness import Redis, Sentinel, eventually, free_port, refused, run


@contextmanager
def answering(*words):
    """Something that says this to whoever connects, reads what comes, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.sendall(b"".join(words))
                client.settimeout(1)
                try:
                    client.recv(1 << 16)
                except OSError:
                    pass

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield "127.0.0.1:%d" % listener.getsockname()[1]
    finally:
        listener.close()


def told(url, *wanted):
    code, said = refused(url)
    assert code == 1, said
    for words in wanted:
        assert words in said, said
    return said


def test_a_replica_is_refused(tmp_path, redis):
    with Redis(tmp_path, [f"replicaof 127.0.0.1 {redis.port}"]) as replica:
        told(replica.url, "is a replica", "messages published there reach nobody else", "redis-sentinel://")


def test_a_master_that_is_demoted_is_left_and_taken_again_when_it_is_promoted(serve, tmp_path, redis):
    settings = "redis_probe_interval_ms = 500\n"
    a, b = (serve(settings, flags=["--redis", redis.url, "--node-id", name]) for name in "ab")
    one, other = a.join("r"), b.join("r")
    one.send_text("before")
    assert other.read_text() == one.read_text() == "before"
    with Redis(tmp_path) as master:
        redis.command("REPLICAOF", "127.0.0.1", master.port)

        def left():
            reasons = json.loads(a.admin("/readyz").body).get("reasons", [])
            return any("replica" in reason.get("message", "") for reason in reasons)

        eventually(left, "the demotion is noticed", timeout_s=5)
        assert re.search("was a master before", a.log()), a.log()
        redis.command("REPLICAOF", "NO", "ONE")
        eventually(lambda: a.admin("/readyz").status == 200, "it is taken again", timeout_s=15)
        eventually(lambda: b.admin("/readyz").status == 200, "it is taken again", timeout_s=15)


def test_a_cluster_node_and_a_sentinel_are_not_taken_for_a_redis(tmp_path):
    with Redis(tmp_path, ["cluster-enabled yes", f"cluster-config-file nodes-{free_port()}.conf"]) as node:
        told(node.url, f"write redis-cluster://127.0.0.1:{node.port}")
    with Sentinel(tmp_path) as sentinel:
        told(sentinel.url, f"write redis-sentinel://127.0.0.1:{sentinel.port}/NAME")


def test_what_ends_the_connection_or_answers_in_another_tongue_is_told(redis):
    with answering() as place:
        told(f"redis://{place}", "has said nothing to HELLO", "rediss://")
    with answering(b"\x15\x03\x03\x00\x02\x02\x46") as place:
        told(f"redis://{place}", "speaks TLS", "write rediss://")
    with answering(b"SSH-2.0-OpenSSH_9.2\r\n") as place:
        told(f"redis://{place}", "not Redis", "SSH-2.0-OpenSSH")
    with answering(b"-DENIED Redis is running in protected mode because protected mode is enabled.\r\n") as place:
        told(f"redis://{place}", "protected mode", "requirepass")
    with answering(b"%1\r\n$7\r\nversion\r\n$5\r\n4.0.9\r\n") as place:
        told(f"redis://{place}", "Redis 4.0.9 is too old")


def test_too_many_clients_are_told(redis):
    held = socket.create_connection(redis.address)
    redis.command("CONFIG", "SET", "maxclients", "1")
    try:
        told(redis.url, "as many clients as it takes", "maxclients")
    finally:
        held.close()


@pytest.mark.parametrize(
    "rules, lacks",
    [
        (["+publish", "&*"], "+subscribe"),
        (["+subscribe", "+unsubscribe", "&*"], "+publish"),
        (["+publish", "+subscribe", "+unsubscribe", "resetchannels", "&other:*"], "&throng:*"),
    ],
)
def test_what_is_to_be_granted_is_said_and_is_enough(serve, redis, rules, lacks):
    redis.command("ACL", "SETUSER", "app", "reset", "on", ">pw", *rules)
    url = redis.url.replace("://", "://app:pw@")
    said = told(url, "lacks a permission", f"it lacks {lacks};")
    line = re.search(r"ACL SETUSER app ([^\"\n]*)", said)[1].strip()
    redis.command("ACL", "SETUSER", "app", "reset", "on", ">pw", *line.split(" "))
    use(serve, redis, url)


@pytest.mark.parametrize("mode", ["sharded", "streams"])
def test_the_same_holds_in_every_mode(serve, redis, mode):
    redis.command("ACL", "SETUSER", "app", "reset", "on", ">pw")
    url = redis.url.replace("://", "://app:pw@")
    code, said = refused(url, "--backplane-mode", mode)
    assert code == 1, said
    line = re.search(r"ACL SETUSER app ([^\"\n]*)", said)[1].strip()
    redis.command("ACL", "SETUSER", "app", "reset", "on", ">pw", *line.split(" "))
    use(serve, redis, url, "--backplane-mode", mode)


def use(serve, redis, url, *flags):
    """Uses most of what needs a permission: Redis has nothing to complain of."""
    redis.command("ACL", "LOG", "RESET")
    flags = ["--redis", url, "--redis-at-start", "fail", "--cluster-interval-ms", "200", *flags]
    a, b = (serve(flags=[*flags, "--node-id", name], shards=1) for name in "ab")
    one, other = a.join("r", "?user=u1"), b.join("r", "?user=u2")
    one.send_text("hi")
    assert other.read_text() == one.read_text() == "hi"
    assert a.admin("/v1/users/u2/send", "POST", body=b"you").status < 300
    assert other.read_text() == "you"
    eventually(lambda: b"u2" in a.admin("/v1/users/u2").body, "the registry knows")
    assert a.admin("/v1/users/online", "POST", body=b'{"users":["u1","u2"]}').status == 200
    eventually(lambda: len(json.loads(a.admin("/v1/cluster").body)["nodes"]) == 2, "the nodes see each other")
    other.cut()
    redis.kill_client("throng-a-subscription")
    eventually(lambda: a.admin("/readyz").status == 200, "it is back")
    assert a.stop() in (None, 0)
    assert b.stop() in (None, 0)
    denied = redis.command("ACL", "LOG")
    assert not denied, denied


def checked(*flags):
    """What `throng check` says of Redis: its findings, and what it says at the end."""
    told = json.loads(run("check", "--json", "--admin", "off", "--listen", "127.0.0.1:0", *flags).stdout)
    return [finding for finding in told["findings"] if finding["name"].startswith("redis ")]


def test_check_looks_at_redis(redis):
    (found,) = checked("--redis", redis.url)
    assert found["level"] == "ok" and found["name"] == f"redis 127.0.0.1:{redis.port}", found
    version = redis.command("INFO", "server").decode().split("redis_version:")[1].split()[0]
    assert version in found["seen"] and "standalone, master" in found["seen"], found
    assert re.search(r"a message is back after \d+\.\d{3} ms", found["seen"]), found
    (found,) = checked("--redis", redis.unix_url)
    assert found["level"] == "ok", found
    (found,) = checked("--redis", "redis://127.0.0.1:1")
    assert found["level"] == "fail" and "refuses the connection" in found["seen"], found
    (found,) = checked("--redis", redis.url.replace("://", "://u:hunter2@"))
    assert "refuses the user or the password" in found["seen"] and "hunter2" not in found["seen"], found
    (found,) = checked("--redis", redis.url + "/99")
    assert "database 99" in found["seen"], found
    redis.command("ACL", "SETUSER", "app", "reset", "on", ">pw", "+subscribe", "&*")
    (found,) = checked("--redis", redis.url.replace("://", "://app:pw@"))
    assert "it lacks +publish;" in found["seen"] and "ACL SETUSER app" in found["seen"], found
    assert not redis.clients(), "nothing is left behind"
    done = run("check", "--redis", "redis://127.0.0.1:1")
    assert done.returncode == 1 and "serve would start and not be ready" in done.stdout, done.stdout
    done = run("check", "--redis", "redis://127.0.0.1:1", "--redis-at-start", "fail")
    assert done.returncode == 1 and "serve would not start" in done.stdout, done.stdout


def test_check_gives_up_who_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = "redis://127.0.0.1:%d" % mute.getsockname()[1]
        (found,) = checked("--redis", url, "--redis-probe-timeout-ms", "300")
        assert found["level"] == "fail" and "does not answer within 300 ms" in found["seen"], found
