"""The state of all nodes, as each of them shows it."""

import json
import signal
import threading

import pytest
from harness import eventually, run
from harness.redis import RedisClient

SETTINGS = """
registry_ttl_ms = "6s"
cluster_interval_ms = 200
drain_window_ms = 200
close_timeout_ms = 300
"""
FIELDS = {
    "id", "incarnation", "age_ms", "state", "reasons", "version", "uptime_s", "connections", "connections_max", "users",
    "rooms", "messages_in_per_s", "messages_out_per_s", "buffered_bytes", "memory_bytes", "memory_bytes_max", "lag_us",
    "cpu_percent", "mode", "layout",
}  # fmt: skip
TOTALS = {
    "nodes", "ready", "connections", "connections_max", "users", "messages_in_per_s", "messages_out_per_s",
    "buffered_bytes",
}  # fmt: skip


@pytest.fixture
def node(serve, redis):
    def start(name, settings="", **how):
        one = serve(SETTINGS + settings, flags=["--redis", redis.url, "--node-id", name], **how)
        eventually(lambda: one.metric("throng_registry_up") == 1, "the registry is kept up")
        return one

    return start


def cluster(one):
    answer = one.admin("/v1/cluster")
    assert answer.status == 200, answer
    return answer.json


def await_cluster(one, probe, what, timeout_s=10.0):
    return eventually(lambda: (seen := cluster(one)) and probe(seen) and seen, what, timeout_s)


def states(seen):
    return {node["id"]: node["state"] for node in seen["nodes"]}


def test_every_node_shows_all_nodes_and_their_sums(node):
    a, b = node("a"), node("b", shards=1)
    wires = [a.join("r", "?user=ann"), b.join("r", "?user=ann"), b.join("q", "?user=bob"), b.join("q")]
    for one, name in ((a, "a"), (b, "b")):
        seen = await_cluster(one, lambda seen: seen["totals"]["connections"] == 4 and seen["totals"]["users"] == 2, "all")
        assert (seen["node"], seen["redis"]) == (name, True)
        assert states(seen) == {"a": "ready", "b": "ready"}
        assert set(seen["totals"]) == TOTALS
        assert (seen["totals"]["nodes"], seen["totals"]["ready"]) == (2, 2)
        by_id = {one["id"]: one for one in seen["nodes"]}
        for shown in by_id.values():
            assert set(shown) == FIELDS
            assert 0 <= shown["age_ms"] < 600 and shown["mode"] == "pubsub" and shown["reasons"] == []
            assert shown["memory_bytes"] > 1 << 20 and shown["memory_bytes_max"] > 1 << 20
        assert [by_id[name]["connections"] for name in "ab"] == [1, 3]
        assert [by_id[name]["users"] for name in "ab"] == [1, 2], "ann counts on each, once in the sum"
        assert [by_id[name]["rooms"] for name in "ab"] == [1, 2]
    for wire in wires:
        wire.cut()


def test_rates_and_lag_are_those_of_the_last_interval(node):
    a, b = node("a"), node("b")
    one, other = a.join("r"), b.join("r")
    stop = threading.Event()

    def talk():
        while not stop.wait(0.005):
            one.send_text("x")

    talking = threading.Thread(target=talk)
    talking.start()
    try:

        def busy(seen):
            by_id = {shown["id"]: shown for shown in seen["nodes"]}
            return (
                50 < by_id["a"]["messages_in_per_s"] < 250
                and by_id["b"]["messages_in_per_s"] == 0
                and 50 < by_id["b"]["messages_out_per_s"] < 250
                and by_id["a"]["lag_us"]
                and by_id["a"]["lag_us"]["p50"] <= by_id["a"]["lag_us"]["p99"]
            )

        await_cluster(b, busy, "about 200 messages a second")
    finally:
        stop.set()
        talking.join()
    await_cluster(b, lambda seen: seen["totals"]["messages_in_per_s"] == 0, "silence")
    one.cut()
    other.cut()


def test_states_are_published_on_a_channel(node, redis):
    follower = RedisClient(redis.address)
    assert follower.command("SUBSCRIBE", "throng:server:metrics")[0] == b"subscribe"
    a = node("a")
    kind, channel, payload = follower._read()
    assert (kind, channel) == (b"message", b"throng:server:metrics")
    assert set(json.loads(payload)) == FIELDS - {"age_ms"}
    assert json.loads(payload)["id"] == "a"
    follower.close()
    assert a.stop() == 0


def test_a_killed_node_is_silent_then_gone(node, redis):
    a, b = node("a"), node("b")
    await_cluster(a, lambda seen: states(seen) == {"a": "ready", "b": "ready"}, "both")
    b.kill()
    seen = await_cluster(a, lambda seen: states(seen) == {"a": "ready", "b": "silent"}, "it is silent", 3)
    silent = seen["nodes"][1]
    assert silent["age_ms"] > 600 and silent["connections"] is None and silent["mode"] is None
    assert (seen["totals"]["nodes"], seen["totals"]["ready"]) == (1, 1)
    await_cluster(a, lambda seen: states(seen) == {"a": "ready"}, "it is removed")


def test_a_stopped_node_is_silent_and_comes_back(node):
    a, b = node("a"), node("b")
    await_cluster(a, lambda seen: states(seen) == {"a": "ready", "b": "ready"}, "both")
    b.signal(signal.SIGSTOP)
    try:
        await_cluster(a, lambda seen: states(seen).get("b") == "silent", "it is silent")
    finally:
        b.signal(signal.SIGCONT)
    await_cluster(a, lambda seen: states(seen) == {"a": "ready", "b": "ready"}, "both again")


def test_a_node_that_stops_says_so(node):
    a, b = node("a"), node("b", "drain_delay_ms = 1500\n")
    b.signal(signal.SIGTERM)
    seen = await_cluster(a, lambda seen: states(seen).get("b") == "draining", "it is draining")
    shown = next(one for one in seen["nodes"] if one["id"] == "b")
    assert shown["reasons"] == ["draining"]
    assert (seen["totals"]["nodes"], seen["totals"]["ready"]) == (2, 1)
    assert b.wait() == 0
    assert states(cluster(a)) == {"a": "ready"}, "it has left by itself"


def test_while_redis_is_away_a_node_shows_itself_and_says_why(node, redis):
    a = node("a")
    redis.kill()
    answer = eventually(lambda: (one := a.admin("/v1/cluster")).status == 503 and one, "nobody knows of others")
    assert answer.json["error"]["code"] == "backplane_lost"
    assert [one["id"] for one in answer.json["nodes"]] == ["a"]
    eventually(lambda: a.admin("/v1/cluster").json["nodes"][0]["reasons"] == ["redis_link"], "it knows why")
    redis.start()
    eventually(lambda: a.admin("/v1/cluster").status == 200, "it is back", 15)
    await_cluster(a, lambda seen: states(seen) == {"a": "ready"}, "and ready")


def test_without_redis_the_cluster_is_this_node(serve):
    one = serve("cluster_interval_ms = 200\ndrain_window_ms = 200\nclose_timeout_ms = 300\n", shards=1)
    wire = one.join("r", "?user=ann")
    seen = await_cluster(one, lambda seen: seen["totals"]["connections"] == 1, "it is counted")
    assert seen["redis"] is False
    (shown,) = seen["nodes"]
    assert set(shown) == FIELDS
    assert (shown["state"], shown["mode"], shown["users"], shown["age_ms"]) == ("ready", "none", 1, 0)
    assert seen["totals"]["users"] == 1
    wire.cut()


def warned(one):
    """The log's lines about nodes that do not fit."""
    words = ("other nodes do not fit this one", "no other node fits this one")
    return [line for line in one.log().splitlines() if "WARN" in line and any(word in line for word in words)]


def test_a_node_that_does_not_fit_is_told_of_by_all_and_takes_nobody_out(node):
    a, b = node("a"), node("b")
    wrong = node("wrong", 'backplane_mode = "sharded"\nredis_partitions = 64\n')
    by = {"layout": 1, "mode": 1}
    for one in (a, b):
        for differs, count in by.items():
            probe = lambda: one.metric("throng_cluster_misfits", differs=differs) == count  # noqa: B023
            eventually(probe, f"{differs} is seen to differ")
        (line,) = warned(one)
        assert "other nodes do not fit this one" in line and "wrong" in line, line
        assert 'layout is \\"one server, 64 partitions\\" there and \\"one server\\" here' in line, line
        assert "give all nodes the same redis, redis_partitions and backplane_mode" in line, line
        assert one.admin("/readyz").status == 200
    eventually(lambda: wrong.metric("throng_cluster_misfits", differs="layout") == 2, "it sees both")
    (line,) = warned(wrong)
    assert "no other node fits this one, whose settings may be the wrong ones" in line and "a, b" in line, line
    assert wrong.admin("/readyz").status == 200
    beats = a.metric("throng_registry_heartbeats_total")
    eventually(lambda: a.metric("throng_registry_heartbeats_total") > beats + 12, "it has looked again, twice")
    assert len(warned(a)) == 1, "told once"
    assert wrong.stop() == 0
    for one in (a, b):
        eventually(lambda: one.metric("throng_cluster_misfits", differs="layout") == 0, "it is gone")  # noqa: B023
        over = [line for line in one.log().splitlines() if "now do, or are gone" in line]
        assert len(over) == 1 and "INFO" in over[0] and "wrong" in over[0], over


def test_contradictions_of_the_registrys_times_are_told(tmp_path):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('redis = "redis://127.0.0.1:1"\nregistry_ttl_ms = 1000\ncluster_interval_ms = 400\n')
    answer = run("serve", "--config", wrong)
    assert answer.returncode != 0
    assert "registry_ttl_ms" in answer.stderr + answer.stdout and "silent" in answer.stderr + answer.stdout
