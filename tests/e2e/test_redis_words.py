"""What is not the Redis that it should be: each told in words that say what to write or to grant."""

import json
import re
import socket
import threading
from contextlib import contextmanager

import pytest
from harness import Redis, RedisCluster, Sentinel, eventually, free_port, refused, run


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
    assert "it lacks +publish +unsubscribe +eval " in found["seen"] and "ACL SETUSER app" in found["seen"], found
    assert found["level"] == "fail", found
    assert not redis.clients(), "nothing is left behind"
    done = run("check", "--redis", "redis://127.0.0.1:1")
    assert done.returncode == 1 and "serve would start and not be ready" in done.stdout, done.stdout
    done = run("check", "--redis", "redis://127.0.0.1:1", "--redis-at-start", "fail")
    assert done.returncode == 1 and "serve would not start" in done.stdout, done.stdout


MODES = ["pubsub", "sharded", "streams"]


def granted(found):
    """The rules that a finding says are to be granted."""
    return re.search(r"ACL SETUSER app ([^\";]*)", found["seen"])[1].split()


def lacking(found):
    """The rules that it says are lacking."""
    return set(re.search(r"it lacks ([^;]*);", found["seen"])[1].replace("(and perhaps ", "").split(", which")[0].split())


def greeted_with(mode):
    """Rules that a greeting in RESP3 does without, and those that are lacking only where a command was let."""
    rules = {"+hello", "+client|setname", "+select", "+role", "&throng:*", "~throng:*"}
    return rules if mode == "streams" else rules | {"+info"}


def grant(server, *rules):
    server.command("ACL", "SETUSER", "app", "reset", "on", ">pw", *rules)


def keys_of(server):
    return server.command("DBSIZE")


@pytest.mark.parametrize("mode", MODES)
def test_check_names_all_that_is_lacking_and_its_line_is_enough(serve, redis, mode):
    url = redis.url.replace("://", "://app:pw@")
    flags = ["--redis", url, "--backplane-mode", mode]
    grant(redis)
    (found,) = checked(*flags)
    assert found["level"] == "fail", found
    rules = granted(found)
    assert lacking(found) == set(rules) - greeted_with(mode), found
    grant(redis, *rules)
    redis.command("ACL", "LOG", "RESET")
    (found,) = checked(*flags)
    assert found["level"] == "ok", found
    assert not redis.command("ACL", "LOG") and keys_of(redis) == 0 and not redis.clients()
    use(serve, redis, url, "--backplane-mode", mode)


@pytest.mark.parametrize("mode", ["sharded", "streams"])
def test_check_names_each_permission_that_is_missing(redis, mode):
    url = redis.url.replace("://", "://app:pw@")
    flags = ["--redis", url, "--backplane-mode", mode]
    grant(redis)
    (found,) = checked(*flags)
    rules, tried = granted(found), lacking(found)
    # Streams need most; what partitions need beside that is all that differs.
    for rule in sorted(rule for rule in tried if mode == "streams" or "publish" in rule or "subscribe" in rule):
        grant(redis, *(one for one in rules if one != rule))
        (found,) = checked(*flags)
        is_spare = mode == "sharded" and rule in ("+subscribe", "+unsubscribe")  # without these, partitions still work
        if is_spare:
            assert found["level"] == "ok", (rule, found)
        else:
            assert found["level"] in ("warn", "fail") and rule in lacking(found), (rule, found)
            assert lacking(found) - {rule} <= ({"+sadd", "+pfadd"} if rule == "+set" else set()), (rule, found)
        assert keys_of(redis) == 0 or rule == "+del", (rule, redis.command("KEYS", "*"))
        redis.command("FLUSHALL")


def test_check_names_keys_and_channels_that_are_not_let(redis):
    url = redis.url.replace("://", "://app:pw@")
    commands = ["+@all", "-@dangerous", "+info"]
    for patterns, wanted, level in [
        (["~throng:*", "&other:*"], {"&throng:*"}, "fail"),
        (["~other:*", "&throng:*"], {"~throng:*"}, "warn"),
        (["%R~throng:*", "&throng:*"], {"~throng:*"}, "warn"),
        (["~throng:*", "&throng:room:*", "&throng:probe:*"], {"&throng:*"}, "warn"),
    ]:
        grant(redis, *commands, "resetchannels", *patterns)
        (found,) = checked("--redis", url)
        assert lacking(found) - {"+sadd", "+pfadd"} == wanted and found["level"] == level, (patterns, found)
        assert keys_of(redis) == 0
    grant(redis, *commands, "resetchannels", "~throng:*", "&throng:room:*", "&throng:probe:*", "&throng:server:metrics")
    (found,) = checked("--redis", url)
    assert found["level"] == "ok", found


def test_check_says_what_a_registry_that_is_refused_costs(redis):
    url = redis.url.replace("://", "://app:pw@")
    grant(redis, "+@pubsub", "&throng:*")
    done = run("check", "--admin", "off", "--listen", "127.0.0.1:0", "--redis", url)
    assert done.returncode == 0, done.stdout
    for words in ("messages travel, but who is online and how the nodes are is not known", "+zadd", "ACL SETUSER app"):
        assert words in done.stdout, done.stdout
    grant(redis, "+@all", "~*", "&*")
    redis.command("CONFIG", "SET", "maxmemory", "1")
    (found,) = checked("--redis", url)
    assert found["level"] == "warn" and "maxmemory" in found["seen"], found
    (found,) = checked("--redis", url, "--backplane-mode", "streams")
    assert found["level"] == "fail" and "maxmemory" in found["seen"], found


def test_check_writes_to_nobodys_keys(serve, redis):
    a = serve("cluster_interval_ms = 200\n", flags=["--redis", redis.url, "--node-id", "a"], shards=1)
    wire = a.join("r", "?user=ann")
    eventually(lambda: b"ann" in a.admin("/v1/users/ann").body, "the registry knows")
    members = redis.command("ZRANGE", "throng:nodes", 0, -1)
    for mode in MODES:
        (found,) = checked("--redis", redis.url, "--backplane-mode", mode)
        assert found["level"] == "ok", found
        assert redis.command("ZRANGE", "throng:nodes", 0, -1) == members
        assert not [key for key in redis.command("KEYS", "*") if b"check-" in key]
    assert [one["id"] for one in a.admin("/v1/cluster").json["nodes"]] == ["a"]
    assert a.metric("throng_redis_malformed_total") == 0, "nothing came that cannot be read"
    wire.cut()


@pytest.mark.parametrize("mode", MODES)
def test_check_tries_every_master_of_a_cluster(serve, tmp_path, mode):
    with RedisCluster(tmp_path, replica_count=1) as cluster:
        for one in cluster.servers:
            grant(one)
        seeds = [cluster.replicas[0], cluster.masters[0]]
        url = cluster.url_of(*seeds).replace("://", "://app:pw@")
        flags = ["--redis", url, "--backplane-mode", mode]
        found = checked(*flags)
        assert [one["level"] for one in found] == ["fail", "fail"], found
        for one in found:
            assert "+cluster|slots" in lacking(one) and lacking(one) == set(granted(one)) - greeted_with(mode), one
        for one in cluster.servers:
            grant(one, *granted(found[0]))
            one.command("ACL", "LOG", "RESET")
        found = checked(*flags)
        places = [f"redis 127.0.0.1:{one.port}" for one in (seeds[0], *cluster.masters)]
        assert [one["name"] for one in found] == places, found
        assert [one["level"] for one in found] == ["ok"] * 4, found
        assert "it knows of 3 masters" in found[0]["seen"], found
        assert all("a message is back after" in one["seen"] for one in found[1:]), found
        last = cluster.masters[2]
        last.command("ACL", "SETUSER", "app", "-spublish" if mode == "sharded" else "-publish")
        found = checked(*flags)
        assert [one["level"] for one in found[:3]] == ["ok"] * 3, found
        assert found[3]["level"] == ("warn" if mode == "sharded" else "fail") and "publish;" in found[3]["seen"], found
        last.command("ACL", "SETUSER", "app", "+publish", "+spublish")
        assert all(keys_of(one) == 0 for one in cluster.masters)
        node = serve(flags=[*flags, "--redis-at-start", "fail"], shards=1)
        eventually(lambda: node.metric("throng_registry_up") == 1, "the registry is kept up")
        assert node.stop() == 0
        assert not any(one.command("ACL", "LOG") for one in cluster.masters if one is not last)
        last.command("CLUSTER", "DELSLOTS", 16383)
        cluster.masters[0].command("CLUSTER", "DELSLOTS", 16383)
        cluster.masters[1].command("CLUSTER", "DELSLOTS", 16383)
        cluster.replicas[0].command("CLUSTER", "DELSLOTS", 16383)
        found = checked(*flags)
        assert found[-1]["name"] == "redis cluster" and "nobody serves 1 of its slots" in found[-1]["seen"], found
        assert found[-1]["level"] == "fail", found


def test_check_gives_up_who_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = "redis://127.0.0.1:%d" % mute.getsockname()[1]
        (found,) = checked("--redis", url, "--redis-probe-timeout-ms", "300")
        assert found["level"] == "fail" and "does not answer within 300 ms" in found["seen"], found
