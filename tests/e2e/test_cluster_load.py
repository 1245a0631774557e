"""Nodes under load, small: one order on all of them, and one subscription for each room and node, whatever Redis does."""

import json
import subprocess

import pytest
from harness import eventually
from harness.load import load_binary
from harness.server import clean_environment

QUICK = "drain_window_ms = 200\nclose_timeout_ms = 300\n"


def run(directory, *words, code=0):
    """One run of throng-load that ends with `code`: its figures, or what it said where there are none."""
    path = directory / "load.json"
    done = subprocess.run(
        [load_binary(), *map(str, words), "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=80,
        env=clean_environment(),
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(path.read_text())["figures"] if path.exists() else done.stderr


@pytest.fixture
def nodes(serve, redis):
    """Starts nodes on the test's Redis."""

    def start(count, settings=""):
        names = [f"node-{index}" for index in range(count)]
        return [serve(QUICK + settings, flags=["--redis", redis.url, "--node-id", name], shards=1) for name in names]

    return start


def targets(started):
    return [word for node in started for word in ("--target", node.url(""))]


@pytest.mark.parametrize("count", [2, 5])
def test_everybody_gets_everything_once_and_in_one_order(nodes, tmp_path, count):
    started = nodes(count)
    figures = run(
        tmp_path,
        "fanout",
        "-q",
        *targets(started),
        *("--rooms", 100, "--members", 10, "--publishers", 5, "--rate", 2, "--duration", 3),
        *("--expect", "lost=0", "--expect", "duplicated=0"),
        *("--expect", "order_rooms_compared=100", "--expect", "order_members_apart=0"),
    )
    assert figures["delivered"] == 10 * figures["published"] > 10_000, figures
    for node in started:
        assert node.metric("throng_redis_gaps_total") == 0
        assert node.metric("throng_redis_messages_published_total") > 0, "publishers are on all nodes"


def test_nodes_that_nobody_joins_have_no_common_order_and_the_report_says_so(serve, tmp_path):
    """The check of the order can fail: two servers with the same rooms and no Redis, each with publishers of its own."""
    pair = [serve(QUICK, shards=1) for _ in range(2)]
    words = ["--rooms", 5, "--members", 4, "--publishers", 2, "--rate", 20, "--duration", 1]
    figures = run(tmp_path, "fanout", "-q", *targets(pair), *words, code=1)
    assert figures["lost"] > 0 and figures.get("order_rooms_compared", 0) == 0, figures


def test_a_bare_pair_of_redis_clients_gets_everything_once(redis, tmp_path):
    pair = ["floor", "redis", "--duration", 1, "--warm-up", 0.2]
    for url in (redis.url, redis.unix_url):
        figures = run(tmp_path, *pair, "--redis", url, "--rate", 500, "--subscribers", 2, "--channels", 700)
        assert figures["delivered"] == 2 * figures["published"] > 1_000, figures
        assert 450 < figures["publishes_per_s"] < 550 and figures["latency_p50_ms"] > 0, figures
    figures = run(tmp_path, *pair, "--redis", redis.url, "--in-flight", 64)
    assert figures["delivered"] == figures["published"] > 5_000, figures


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--redis", "redis://192.0.2.1:6379"], "of this machine's loopback is expected"),
        (["--redis", "localhost"], "redis://ADDR:PORT"),
        (["--redis", "redis://127.0.0.1:1"], "refused"),
        (["--redis", "redis://127.0.0.1:1", "--size", 8], "the stamp needs them"),
    ],
)
def test_what_the_bare_pair_cannot_do_is_said(tmp_path, words, said):
    assert said in run(tmp_path, "floor", "redis", *words, code=2)


def followers(redis, rooms):
    """How many subscriptions each of the rooms has that anybody follows."""
    names = redis.command("PUBSUB", "CHANNELS", "throng:room:idle-*")  # not the room that the generator tries first
    assert len(names) == rooms
    return set(redis.command("PUBSUB", "NUMSUB", *names)[1::2])


def test_a_room_has_one_subscription_for_each_node_before_and_after_redis_restarts(nodes, redis, tmp_path):
    pair, rooms = nodes(2), 2_000
    words = ["idle", "-q", *targets(pair), "--rooms", rooms, "--connections", 2 * rooms, "--hold", 60, "--settle", 0]
    loading = subprocess.Popen(
        [load_binary(), *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_environment()
    )
    try:
        for node in pair:
            node.await_open(rooms, 60)
        assert followers(redis, rooms) == {2}, "one a node"
        assert redis.command("PUBSUB", "NUMPAT") == 0
        redis.kill()
        eventually(lambda: not any(node.admin("/readyz").status == 200 for node in pair), "no node is ready", 10)
        redis.start()
        eventually(lambda: all(node.admin("/readyz").status == 200 for node in pair), "all nodes are ready", 20)
        assert followers(redis, rooms) == {2}, "one a node, again"
        stats = redis.command("INFO", "commandstats").decode()
        calls = int(stats.split("cmdstat_subscribe:calls=")[1].split(",")[0])
        assert calls <= 2 * (rooms / 512 + 3), f"{calls} SUBSCRIBE commands"
        assert all(node.open_count() == rooms for node in pair), "nobody was disconnected"
    finally:
        loading.kill()
        loading.wait(10)
