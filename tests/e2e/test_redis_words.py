"""What is not the Redis that it should be: each told in words that say what to write or to grant."""

import json
import re
import socket
import threading
from contextlib import contextmanager

import pytest
from harness import Redis, Sentinel, eventually, free_port, refused


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
    a = serve(flags=["--redis", url, "--redis-at-start", "fail"])
    member = a.join("r")
    member.send_text("hi")
    assert member.read_text() == "hi"
