"""throng-load against servers that others made: npm `ws` and PyPI `websockets`, unchanged, with paths as rooms."""

import pytest
from harness import Peer, has_node_ws, load
from test_load import assert_true

PEERS = [
    pytest.param(
        "ws_server.mjs",
        marks=pytest.mark.skipif(not has_node_ws(), reason="needs node and `npm install` in tests/e2e/clients"),
        id="npm-ws",
    ),
    pytest.param("websockets_server.py", id="pypi-websockets"),
]


@pytest.fixture(scope="module", params=PEERS)
def peer(request):
    with Peer(request.param) as running:
        yield running


def test_fanout_is_measured_like_our_own(tmp_path, peer):
    result = load(
        tmp_path,
        *("fanout", "--target", f"{peer.url}/chat/{{room}}", "--rooms", 3, "--members", 8, "--publishers", 2),
        *("--rate", 30, "--size", "20-300", "--warm-up", "0.2", "--duration", "0.6"),
        *("--server-pid", peer.process.pid),
    )
    assert_true(result)
    assert result["delivered"] == result["published"] * 8
    assert 0 < result["server_cpu_us_per_delivery"] < 100_000


def test_a_path_with_members_in_it_is_a_room_each(tmp_path, peer):
    result = load(
        tmp_path,
        *("echo", "--target", peer.url, "--path", "/alone/{room}/{member}", "--connections", 6, "--in-flight", 2),
        *("--warm-up", "0.1", "--duration", "0.3"),
    )
    assert_true(result)
    assert result["delivered"] > 0


def test_idle_churn_and_storm_work_as_well(tmp_path, peer):
    target = ("--target", f"{peer.url}/all")
    idle = load(tmp_path, "idle", *target, "--connections", 60, "--messages", 2, "--hold", 0, "--settle", "0.1")
    assert_true(idle)
    assert idle["held"] == 60 and idle["delivered"] == 120
    churn = load(tmp_path, "churn", *target, "--connections", 100, "--warm-up", 10, "--end", "close-frame")
    churn.assert_code(0)
    assert churn["handshakes"] == 100 and churn["upgraded"] == 110
    storm = load(tmp_path, "storm", *target, "--connections", 50, "--hold", "0.1", "--backoff", 100)
    assert_true(storm)
    assert storm["upgraded"] == 100 and storm["delivered"] == 50 and storm["attempts_made_again"] == 0


def test_a_path_without_rooms_has_one(tmp_path, peer):
    result = load(
        tmp_path, "fanout", "--target", f"{peer.url}/all", "--rooms", 2, "--members", 3, report=False
    ).assert_code(2)
    result.assert_says("{room}", "--path")


def test_members_that_never_read_are_told_apart(tmp_path, peer):
    """These servers queue without bound: nobody is cut, and readers have all of it."""
    result = load(
        tmp_path,
        *("slow", "--target", f"{peer.url}/slow", "--readers", 5, "--stalled", 3, "--rate", 50, "--size", 1024),
        *("--warm-up", "0.1", "--duration", "0.5"),
    )
    assert_true(result)
    assert result["slow_closed_by_server"] == 0 and result["slow_still_open"] == 3
