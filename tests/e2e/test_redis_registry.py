"""The registry at Redis: who is connected where, on any node; what happens to it when nodes and Redis fail."""

import json
import signal
import time

import pytest
from harness import Redis, eventually
from harness.cluster import RedisCluster

TTL_S = 3
SETTINGS = """
cluster_interval_ms = 200
redis_hold_ms = 500
drain_window_ms = 200
close_timeout_ms = 300
"""


@pytest.fixture
def node(serve, redis):
    """Starts a node on the test's Redis: `node("a", settings)`."""

    def start(name, settings="", **how):
        ttl = how.pop("ttl", f"{TTL_S}s")
        flags = ["--redis", redis.url, "--node-id", name, "--registry-ttl-ms", ttl]
        one = serve(SETTINGS + settings, flags=flags, **how)
        eventually(lambda: one.metric("throng_registry_up") == 1, "the registry is kept up")
        return one

    return start


def online(one, users, nodes=False):
    body = json.dumps({"users": users}).encode()
    answer = one.admin(f"/v1/users/online?nodes={int(nodes)}", "POST", body=body)
    assert answer.status == 200, answer
    return answer.json


def counts(one, *users):
    return [user["connections"] for user in online(one, list(users))["users"]]


def await_counts(one, expected, what, timeout_s=10.0):
    eventually(lambda: counts(one, *expected) == list(expected.values()), what, timeout_s)


def keys(redis, pattern="*"):
    return sorted(key.decode() for key in redis.command("KEYS", f"throng:{pattern}"))


def entries(redis):
    """Keys of connections, of users and of nodes' sets."""
    return keys(redis, "conn:*") + keys(redis, "user:*") + keys(redis, "node:*:conns")


def test_who_is_online_is_known_on_every_node(node):
    a, b = node("a"), node("b", shards=1)
    wires = [a.join("r", "?user=ann"), b.join("r", "?user=ann"), b.join("s", "?user=bob"), b.join("s")]
    for one in (a, b):
        await_counts(one, {"ann": 2, "bob": 1, "eve": 0}, "all are known")
        answer = online(one, ["bob", "eve", "ann"], nodes=True)
        assert answer["scope"] == "cluster"
        assert answer["users"] == [
            {"user": "bob", "online": True, "connections": 1, "nodes": ["b"]},
            {"user": "eve", "online": False, "connections": 0, "nodes": []},
            {"user": "ann", "online": True, "connections": 2, "nodes": ["a", "b"]},
        ]
    ann = a.admin("/v1/users/ann").json
    assert (ann["online"], ann["connection_count"], ann["truncated"]) == (True, 2, False)
    seen = sorted((one["node"], one["room"]) for one in ann["connections"])
    assert seen == [("a", "r"), ("b", "r")]
    on_b = next(one for one in ann["connections"] if one["node"] == "b")
    path = f"/v1/connections/{on_b['id']}?node={on_b['node']}"
    assert b.admin(path).json["room"] == "r"
    assert (a.admin(path).status, a.admin(path, "DELETE").status) == (409, 409)
    assert 0 <= on_b["opened_ms_ago"] < 10_000 and 0 <= on_b["heard_ms_ago"] < 10_000
    limited = a.admin("/v1/users/ann?limit=1").json
    assert (limited["connection_count"], len(limited["connections"]), limited["truncated"]) == (2, 1, True)
    wires[1].cut()
    await_counts(a, {"ann": 1}, "one has gone")
    eve = a.admin("/v1/users/eve").json
    assert (eve["online"], eve["connections"]) == (False, [])


def test_a_thousand_users_are_asked_about_in_one_round_trip(node, redis):
    a = node("a")
    wire = a.join("r", "?user=u7")
    users = [f"u{number}" for number in range(1_000)]
    await_counts(a, {"u7": 1}, "it is known")
    stats = lambda: dict(line.split(":", 1) for line in redis.command("INFO", "stats").decode().split() if ":" in line)
    before = int(stats()["total_reads_processed"])
    answer = online(a, users)
    reads = int(stats()["total_reads_processed"]) - before
    assert [user["user"] for user in answer["users"] if user["online"]] == ["u7"]
    assert reads < 60, f"1,000 commands came in {reads} reads"
    too_many = a.admin("/v1/users/online", "POST", body=json.dumps({"users": [*users, "one more"]}).encode())
    assert too_many.status == 400 and "1001 users are too many" in too_many.body.decode()
    wire.cut()


def test_users_may_be_called_anything(node):
    a, b = node("a"), node("b")
    names = {"}": "%7D", "{x}": "%7Bx%7D", "a}b": "a%7Db", "n:1:2": "n:1:2", "%7D": "%257D", "ünï / x": "%C3%BCn%C3%AF%20%2F%20x"}
    wires = [a.join("r", f"?user={written}") for written in names.values()]
    await_counts(b, dict.fromkeys(names, 1), "each is known by its name")
    for name, written in names.items():
        answer = b.admin(f"/v1/users/{written}").json
        assert (answer["user"], answer["connections"][0]["room"]) == (name, "r")
    for wire in wires:
        wire.cut()
    await_counts(b, dict.fromkeys(names, 0), "each has gone")


def test_entries_are_refreshed_and_outlive_their_ttl(node, redis):
    a = node("a")
    wire = a.join("r", "?user=ann")
    await_counts(a, {"ann": 1}, "it is known")
    deadline = time.monotonic() + 2 * TTL_S
    while time.monotonic() < deadline:
        assert counts(a, "ann") == [1], "never missing"
        for key in entries(redis):
            assert redis.command("PTTL", key) > 0, f"{key} has no end"
        time.sleep(0.05)
    wire.send_text("hi")
    assert wire.read_text() == "hi"


def test_a_killed_node_is_removed_by_exactly_one_survivor(node, redis):
    survivors = [node("a"), node("b")]
    victim = node("v")
    stays = survivors[0].join("r", "?user=u1")
    wires = [victim.join("r", f"?user=u{number}") for number in range(300)]
    eventually(lambda: len(keys(redis, "conn:*")) == 301, "all are written")
    victim.kill()
    killed = time.monotonic()
    await_counts(survivors[1], {"u0": 0, "u1": 1, "u299": 0}, "the dead node's are gone", TTL_S + 1)
    assert time.monotonic() - killed < TTL_S + 1
    reaped = lambda: [one.metric("throng_registry_nodes_reaped_total") for one in survivors]
    eventually(lambda: sum(reaped()) == 1, "it is removed")
    assert sum(one.metric("throng_registry_connections_reaped_total") for one in survivors) == 300
    eventually(lambda: not keys(redis, "node:{v:*"), "nothing of it is left")
    eventually(lambda: survivors[0].metric("throng_cluster_nodes") == 2, "it is off the roll")
    listed = [one["id"] for one in survivors[1].admin("/v1/cluster").json["nodes"]]
    assert listed == ["a", "b"]
    assert len(keys(redis, "conn:*")) == 1
    assert sorted(reaped()) == [0, 1], "and never again"
    for wire in [stays, *wires]:
        wire.cut()


def test_without_survivors_everything_of_a_dead_node_expires(node, redis):
    a = node("a")
    wires = [a.join("r", f"?user=u{number}") for number in range(10)]
    eventually(lambda: len(keys(redis, "conn:*")) == 10, "all are written")
    a.kill()
    eventually(lambda: not keys(redis, "conn:*") and not keys(redis, "user:*"), "entries expire", TTL_S + 1)
    eventually(lambda: not keys(redis), "all the rest, too", 2 * TTL_S + 2)
    for wire in wires:
        wire.cut()


def test_a_restarted_node_is_not_taken_for_its_former_self(node, redis):
    first = node("a")
    old = [first.join("r", f"?user=u{number}") for number in range(5)]
    eventually(lambda: len(keys(redis, "conn:*")) == 5, "all are written")
    first.kill()
    second = node("a")
    new = second.join("r", "?user=u0")
    await_counts(second, {"u0": 1, "u1": 0, "u4": 0}, "the former's are gone, the new one's is there", TTL_S)
    eventually(lambda: second.metric("throng_registry_nodes_reaped_total") == 1, "it has removed them itself")
    assert len(keys(redis, "conn:*")) == 1
    for wire in [*old, new]:
        wire.cut()


def test_a_redis_that_comes_back_empty_knows_all_again_within_seconds(node, redis):
    a, b = node("a"), node("b")
    wires = [one.join("r", f"?user=u{number}") for number in range(50) for one in (a, b)]
    users = {f"u{number}": 2 for number in range(50)}
    await_counts(a, users, "all are known")
    redis.kill()
    body = json.dumps({"users": ["u0"]}).encode()
    away = eventually(
        lambda: (answer := a.admin("/v1/users/online", "POST", body=body)).status == 503 and answer, "nobody knows"
    )
    assert away.json["error"]["code"] == "backplane_lost"
    assert a.admin("/v1/users/u0").status == 503
    redis.start()
    began = time.monotonic()
    wait = lambda one: eventually(
        lambda: (answer := one.admin("/v1/users/online", "POST", body=json.dumps({"users": list(users)}).encode())).status
        == 200
        and all(user["connections"] == 2 for user in answer.json["users"]),
        "all are known again",
        10,
    )
    wait(a)
    wait(b)
    assert time.monotonic() - began < 8
    assert a.metric("throng_registry_announcements_total") >= 1
    assert len(keys(redis, "conn:*")) == 100
    for wire in wires:
        wire.cut()
    await_counts(b, dict.fromkeys(users, 0), "all have gone")


def test_who_leaves_while_redis_is_away_is_forgotten_when_it_is_back(node, redis):
    a, b = node("a", ttl="60s"), node("b", ttl="60s")
    stays, goes = a.join("r", "?user=stays"), a.join("r", "?user=goes")
    await_counts(b, {"stays": 1, "goes": 1}, "both are known")
    redis.signal(signal.SIGSTOP)
    eventually(lambda: a.metric("throng_registry_up") == 0, "it is known to be away", 15)
    goes.cut()
    a.await_open(1)
    redis.signal(signal.SIGCONT)
    eventually(lambda: b.metric("throng_registry_up") == 1, "it is back", 15)
    comes = a.join("r", "?user=comes")
    await_counts(b, {"stays": 1, "goes": 0, "comes": 1}, "who left is forgotten", 10)
    for wire in (stays, comes):
        wire.cut()


def test_a_node_that_was_only_stopped_comes_back_with_all_its_connections(node, redis):
    a, b = node("a"), node("b")
    wires = [b.join("r", f"?user=u{number}") for number in range(20)]
    users = {f"u{number}": 1 for number in range(20)}
    await_counts(a, users, "all are known")
    b.signal(signal.SIGSTOP)
    try:
        await_counts(a, dict.fromkeys(users, 0), "it is taken for dead", TTL_S + 1)
        eventually(lambda: a.metric("throng_registry_nodes_reaped_total") == 1, "and removed")
    finally:
        b.signal(signal.SIGCONT)
    await_counts(a, users, "it has told of all of them again", 15)
    assert b.metric("throng_registry_announcements_total") >= 2
    wires[0].send_text("still here")
    assert wires[1].read_text() == "still here"
    for wire in wires:
        wire.cut()


def test_a_graceful_stop_leaves_nothing_behind(node, redis):
    a, b = node("a"), node("b")
    wires = [b.join("r", f"?user=u{number}") for number in range(200)]
    eventually(lambda: len(keys(redis, "conn:*")) == 200, "all are written")
    assert b.stop() == 0
    assert [key for key in keys(redis) if "{b:" in key or "conn" in key or "user:" in key] == [], "nothing of it"
    assert [one["id"] for one in a.admin("/v1/cluster").json["nodes"]] == ["a"]
    assert a.stop() == 0
    assert [key for key in keys(redis) if ":users:{seen}:" not in key] == [], "nor of the last"
    for wire in wires:
        wire.cut()


@pytest.mark.parametrize(("kept", "expected"), [("off", 0), ("users", 1), ("all", 2)])
def test_whose_connections_are_written_is_a_setting(node, redis, kept, expected):
    a = node("a", f'registry = "{kept}"\n')
    wires = [a.join("r"), a.join("r", "?user=ann")]
    if expected:
        eventually(lambda: len(keys(redis, "conn:*")) == expected, "they are written")
    refreshed = a.metric("throng_registry_heartbeats_total") + 10
    a.await_metric("throng_registry_heartbeats_total", refreshed)
    assert len(keys(redis, "conn:*")) == expected
    answer = online(a, ["ann"])
    assert (answer["scope"], answer["users"][0]["connections"]) == ("node" if kept == "off" else "cluster", 1)
    for wire in wires:
        wire.cut()
    eventually(lambda: not keys(redis, "conn:*"), "they have gone")


def test_without_redis_a_node_answers_for_itself(serve):
    for shards in (1, 3):
        one = serve("drain_window_ms = 200\nclose_timeout_ms = 300\n", shards=shards)
        wires = [one.join("r", "?user=ann"), one.join("s", "?user=ann"), one.join("s")]
        answer = online(one, ["ann", "eve"], nodes=True)
        assert answer["scope"] == "node"
        name = one.stats()["node"]
        assert answer["users"] == [
            {"user": "ann", "online": True, "connections": 2, "nodes": [name]},
            {"user": "eve", "online": False, "connections": 0, "nodes": []},
        ]
        ann = one.admin("/v1/users/ann").json
        assert sorted(connection["room"] for connection in ann["connections"]) == ["r", "s"]
        assert ann["connection_count"] == 2
        for wire in wires:
            wire.cut()


def several(serve, urls):
    flags = [flag for url in urls for flag in ("--redis", url)]
    started = []
    for name in ("a", "b", "v"):
        one = serve(SETTINGS, flags=[*flags, "--node-id", name, "--registry-ttl-ms", "6s"])
        eventually(lambda: one.metric("throng_registry_up") == 1, "the registry is kept up")
        started.append(one)
    return started


def check_over_several_servers(a, b, victim):
    """Users whose keys are at different servers are found, and removed with their node."""
    users = {f"u{number}": 2 for number in range(40)}
    wires = [one.join("r", f"?user={user}") for user in users for one in (a, victim)]
    await_counts(b, users, "all are known")
    room = b.admin("/v1/users/u7").json["connections"]
    assert sorted((one["node"], one["room"]) for one in room) == [("a", "r"), ("v", "r")]
    eventually(lambda: b.admin("/v1/cluster").json["totals"]["users"] == 40, "each user is counted once")
    states = lambda: [one["state"] for one in b.admin("/v1/cluster").json["nodes"]]
    eventually(lambda: states() == ["ready", "ready", "ready"], "each node has said that it is ready")
    victim.kill()
    await_counts(b, dict.fromkeys(users, 1), "the dead node's are gone", 7)
    eventually(
        lambda: a.metric("throng_registry_nodes_reaped_total") + b.metric("throng_registry_nodes_reaped_total") == 1,
        "one has removed it",
    )
    reaped = [one.metric("throng_registry_connections_reaped_total") for one in (a, b)]
    assert sorted(reaped) == [0, 40]
    assert sum(one.metric("throng_registry_errors_total") for one in (a, b)) == 0
    for wire in wires:
        wire.cut()
    await_counts(b, dict.fromkeys(users, 0), "all have gone")


def test_the_registry_is_spread_over_several_servers(serve, tmp_path):
    with Redis(tmp_path) as one, Redis(tmp_path) as other:
        a, b, victim = several(serve, [one.url, other.url])
        wires = [a.join("r", f"?user=x{number}") for number in range(40)]
        eventually(lambda: len(keys(one, "conn:*")) + len(keys(other, "conn:*")) == 40, "all are written")
        assert min(len(keys(one, "conn:*")), len(keys(other, "conn:*"))) > 5, "to both"
        for wire in wires:
            wire.cut()
        check_over_several_servers(a, b, victim)
        assert (a.stop(), b.stop()) == (0, 0)
        left = [key for server in (one, other) for key in keys(server) if ":users:{seen}:" not in key]
        assert [key for key in left if not key.startswith("throng:reap:{v:")] == []


def test_one_of_several_servers_that_is_away_takes_only_its_own_users_along(serve, tmp_path):
    with Redis(tmp_path) as one, Redis(tmp_path) as other:
        a, b, victim = several(serve, [one.url, other.url])
        wires = [a.join("r", f"?user=u{number}") for number in range(40)]
        eventually(lambda: len(keys(one, "conn:*")) + len(keys(other, "conn:*")) == 40, "all are written")
        name = lambda key: key.removeprefix("throng:conn:{").split("}")[0]
        ours, theirs = ([name(key) for key in keys(server, "conn:*")] for server in (one, other))
        # The one that has b's heartbeat stays: then b goes on answering for whom it has.
        if not keys(one, "node:{b:*}"):
            one, other, ours, theirs = other, one, theirs, ours
        ask = lambda user: b.admin(f"/v1/users/{user}").status
        other.kill()
        eventually(lambda: ask(theirs[0]) == 503, "nobody knows of these")
        assert [ask(user) for user in ours] == [200] * len(ours)
        other.start()
        eventually(lambda: ask(theirs[0]) == 200, "it is back", 15)
        await_counts(b, {f"u{number}": 1 for number in range(40)}, "all are known again", 15)
        for wire in wires:
            wire.cut()


def test_the_users_of_other_servers_stay_online_when_the_heartbeats_server_is_away(serve, tmp_path):
    with Redis(tmp_path) as one, Redis(tmp_path) as other:
        a, b, _ = several(serve, [one.url, other.url])
        wires = [a.join("r", f"?user=u{number}") for number in range(40)]
        eventually(lambda: len(keys(one, "conn:*")) + len(keys(other, "conn:*")) == 40, "all are written")
        if not keys(one, "node:{a:*}"):
            one, other = other, one
        ours = [key.removeprefix("throng:conn:{").split("}")[0] for key in keys(other, "conn:*")]
        one.kill()
        eventually(lambda: a.metric("throng_registry_up") == 0, "its heartbeat is lost", 15)
        # Longer than a TTL: who has a server that answers is told of again.
        until = time.monotonic() + 8
        while time.monotonic() < until:
            assert counts(b, *ours) == [1] * len(ours)
            time.sleep(0.2)
        wires.pop(int(ours[0][1:])).cut()
        await_counts(b, {ours[0]: 0}, "who leaves is forgotten at once", 5)
        for wire in wires:
            wire.cut()


def test_what_redis_does_not_permit_is_said_and_nobody_is_called_offline(node, redis):
    a, b = node("a"), node("b")
    redis.command("ACL", "SETUSER", "default", "-zremrangebyscore")
    wire = a.join("r", "?user=ann")
    eventually(lambda: a.metric("throng_registry_up") == 0, "it is refused")
    body = json.dumps({"users": ["ann"]}).encode()
    answer = a.admin("/v1/users/online", "POST", body=body)
    assert (answer.status, answer.json["error"]["code"]) == (503, "backplane_lost")
    assert "+zremrangebyscore" in answer.json["error"]["message"]
    redis.command("ACL", "SETUSER", "default", "+zremrangebyscore")
    eventually(lambda: a.metric("throng_registry_up") == 1, "it is permitted", 2 * TTL_S)
    await_counts(a, {"ann": 1}, "ann is known")
    await_counts(b, {"ann": 1}, "to all")
    wire.cut()


def test_the_registry_is_spread_over_a_cluster(serve, tmp_path):
    with RedisCluster(tmp_path, 3) as cluster:
        url = cluster.servers[0].url.replace("redis://", "redis-cluster://")
        a, b, victim = several(serve, [url])
        check_over_several_servers(a, b, victim)
        assert (a.stop(), b.stop()) == (0, 0)


def test_bad_questions_are_refused_with_what_they_should_be(node):
    a = node("a")
    for path, method, body, words in [
        ("/v1/users/online", "POST", b"{", "the body is"),
        ("/v1/users/online?nodes=2", "POST", b'{"users":[]}', "`nodes` is 0 or 1"),
        ("/v1/users/online", "POST", b'{"users":["\\u0001"]}', "users[0] is no user's id"),
        ("/v1/users/%00", "GET", b"", "no control characters"),
        ("/v1/users/ann?limit=0", "GET", b"", "`limit` is a number from 1"),
        ("/v1/cluster?x=1", "GET", b"", "no parameters"),
    ]:
        answer = a.admin(path, method, body=body)
        assert answer.status == 400 and words in answer.body.decode(), (path, answer)
    assert a.admin("/v1/cluster", "POST").status == 405
    assert online(a, [])["users"] == []
