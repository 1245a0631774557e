"""Nodes under load, small: one order on all of them, and one subscription for each room and node, whatever Redis does."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from harness import eventually
from harness.server import REPOSITORY, clean_environment

QUICK = "drain_window_ms = 200\nclose_timeout_ms = 300\n"


def load_generator():
    path = Path(os.environ.get("THRONG_LOAD_BIN", REPOSITORY / "target/debug/throng-load"))
    if not path.exists():
        pytest.skip(f"{path} is not there: run `cargo build --workspace`")
    return str(path)


def run(directory, *words):
    """One run of throng-load: its exit code with what it said, and its figures."""
    path = directory / "load.json"
    done = subprocess.run(
        [load_generator(), *map(str, words), "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=80,
        env=clean_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())["figures"]


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
    path = tmp_path / "load.json"
    words = ["fanout", "-q", *targets(pair), "--rooms", "5", "--members", "4", "--publishers", "2", "--rate", "20", "--duration", "1"]
    done = subprocess.run([load_generator(), *words, "--json", str(path)], capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)
    assert done.returncode == 1, "half of it is lost"
    figures = json.loads(path.read_text())["figures"]
    assert figures["lost"] > 0 and figures.get("order_rooms_compared", 0) == 0, figures


def followers(redis, rooms):
    """How many subscriptions each of the rooms has that anybody follows."""
    names = redis.command("PUBSUB", "CHANNELS", "throng:room:idle-*")  # not the room that the generator tries first
    assert len(names) == rooms
    return set(redis.command("PUBSUB", "NUMSUB", *names)[1::2])


def test_a_room_has_one_subscription_for_each_node_before_and_after_redis_restarts(nodes, redis, tmp_path):
    pair, rooms = nodes(2), 2_000
    words = ["idle", "-q", *targets(pair), "--rooms", rooms, "--connections", 2 * rooms, "--hold", 60, "--settle", 0]
    loading = subprocess.Popen(
        [load_generator(), *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_environment()
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
