"""`backplane_mode = "streams"`: whatever happens to Redis and to the way there, nobody misses a message, or is told how many."""

import json
import signal
import threading
import time
from contextlib import contextmanager

import pytest
from harness import Redis, eventually

SETTINGS = "redis_probe_interval_ms = 500\nredis_probe_timeout_ms = 1000\ndrain_window_ms = 200\nclose_timeout_ms = 300\n"
KEPT = ["appendonly yes", "appendfsync everysec"]


@pytest.fixture
def kept(tmp_path):
    """A Redis that keeps what it is given."""
    with Redis(tmp_path, KEPT) as one:
        yield one


@pytest.fixture
def node(serve):
    def start(name, redis, settings="", mode="streams", **how):
        flags = ["--redis", redis.url, "--node-id", name, "--backplane-mode", mode]
        return serve(SETTINGS + settings, flags=flags, **how)

    return start


def is_ready(server):
    return server.admin("/readyz").status == 200


def heal(*servers, timeout_s=20):
    for one in servers:
        eventually(lambda one=one: is_ready(one), f"{one.host_port} is ready again", timeout_s)


def read_until(wire, wanted, timeout_s=20):
    """All texts up to `wanted`, and the notices among them: `(texts, notices)`."""
    texts, notices = [], []
    while True:
        text = wire.read_text(timeout_s)
        if text.startswith('{"type":'):
            notices.append(json.loads(text))
            continue
        texts.append(text)
        if text == wanted:
            return texts, notices


def exchange(one, *others, word):
    one.send_text(word)
    return [read_until(member, word) for member in (one, *others)]


@contextmanager
def traffic(*members, pause_s=0.002):
    """Each member sends `NAME-NUMBER`, counted up, until the block ends; gives the counts."""
    stop, counts = threading.Event(), [0] * len(members)

    def talk(index):
        while not stop.is_set():
            members[index].send_text(f"{index}-{counts[index]}")
            counts[index] += 1
            time.sleep(pause_s)

    threads = [threading.Thread(target=talk, args=(index,)) for index in range(len(members))]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def check_all(members, counts):
    """After the last word: everybody has everything once, each sender's in its order, and was told of nothing missing."""
    for member, (texts, notices) in zip(members, exchange(members[0], *members[1:], word="end"), strict=True):
        assert [notice for notice in notices if notice["type"] == "gap"] == [], member
        for index, count in enumerate(counts):
            numbers = [int(text.split("-")[1]) for text in texts[:-1] if text.startswith(f"{index}-")]
            assert numbers == list(range(count)), f"of {count} of sender {index}: {len(numbers)}"


def test_what_is_published_is_kept_and_comes_once(node, kept):
    a, b = node("a", kept), node("b", kept)
    one, other = a.join("r"), b.join("r")
    for number in range(10):
        one.send_text(f"a{number}")
        assert one.read_text() == other.read_text() == f"a{number}"
        other.send_text(f"b{number}")
        assert one.read_text() == other.read_text() == f"b{number}"
    assert kept.command("XLEN", "throng:stream:room:r") == 20
    assert kept.command("HGET", "throng:known:room:r", "o") == b"20"
    for key in ("throng:stream:room:r", "throng:known:room:r"):
        assert 590_000 < kept.command("PTTL", key) <= 600_000
    # Who joins later begins with what is published from then on.
    late = b.join("r")
    ((texts, _), *_) = exchange(one, other, late, word="after")
    assert texts == ["after"]
    assert a.metric("throng_stream_catch_ups_total") == b.metric("throng_stream_catch_ups_total") == 0


@pytest.mark.parametrize("link", ["publishing", "subscription", "commands"])
@pytest.mark.parametrize("degraded", ["local", "refuse"])
def test_a_killed_link_loses_nothing(node, kept, link, degraded):
    settings = f'redis_degraded = "{degraded}"\n'
    a, b = node("a", kept, settings), node("b", kept, settings)
    members = a.join("r"), b.join("r"), a.join("r"), b.join("r")
    exchange(*members, word="before")
    with traffic(*members[:2]) as counts:
        for _ in range(3):
            time.sleep(0.3)
            kept.kill_client(f"throng-a-{link}")
            eventually(lambda: f"throng-a-{link}" in kept.clients(), "it is back")
            heal(a)
    check_all(members, counts)


@pytest.mark.parametrize("degraded", ["local", "refuse"])
def test_a_redis_that_dies_and_comes_back_with_its_data_has_lost_nothing(node, kept, degraded):
    settings = f'redis_degraded = "{degraded}"\n'
    a, b = node("a", kept, settings), node("b", kept, settings)
    members = a.join("r"), b.join("r"), a.join("r"), b.join("r")
    quiet = a.join("quiet"), b.join("quiet")
    exchange(*members, word="before")
    with traffic(*members[:2]) as counts:
        for _ in range(2):
            time.sleep(0.5)
            kept.kill()
            time.sleep(0.5)
            kept.start()
            heal(a, b)
    check_all(members, counts)
    check_all(quiet, [])


def test_a_redis_that_stands_still_has_lost_nothing(node, kept):
    a, b = node("a", kept, "redis_buffer_age_ms = 30000\n"), node("b", kept, "redis_buffer_age_ms = 30000\n")
    members = a.join("r"), b.join("r"), b.join("r")
    exchange(*members, word="before")
    with traffic(*members[:2], pause_s=0.01) as counts:
        time.sleep(0.3)
        kept.signal(signal.SIGSTOP)
        time.sleep(20)
        kept.signal(signal.SIGCONT)
        heal(a, b)
    check_all(members, counts)


def test_a_subscriber_that_redis_kills_for_its_output_reads_what_it_missed(node, tmp_path):
    settings = "message_bytes_max = 300000\nconnection_queue_bytes_max = 40000000\n"
    with Redis(tmp_path, [*KEPT, "client-output-buffer-limit pubsub 64kb 0 0"]) as redis:
        a, b = (node(name, redis, settings) for name in "ab")
        one, other = a.join("r", "?echo=0"), b.join("r")
        one.send_text("small")
        assert other.read_text() == "small"
        b.signal(signal.SIGSTOP)
        for number in range(120):
            one.send_text(f"{number:03}" + "x" * 60_000)
        eventually(lambda: "throng-b-subscription" not in redis.clients(), "Redis has cut it")
        a.await_metric("throng_redis_messages_published_total", 121)
        b.signal(signal.SIGCONT)
        heal(b)
        one.send_text("end")
        texts, notices = read_until(other, "end")
        assert [int(text[:3]) for text in texts[:-1]] == list(range(120))
        assert notices == []
        assert b.metric("throng_stream_recovered_messages_total") > 0
        assert (a.stop(), b.stop()) == (0, 0)


def test_what_redis_lost_with_its_data_is_told(node, redis):
    a, b = node("a", redis), node("b", redis)
    members = a.join("r"), b.join("r")
    quiet = b.join("quiet")
    exchange(*members, word="before")
    eventually(lambda: len(redis.command("KEYS", "throng:clock:*")) == 2, "both have written their clocks")
    redis.kill()
    redis.start()
    heal(a, b)
    for member in (*members, quiet):
        assert json.loads(member.read_text()) == {"type": "gap", "missed": None}
    assert [texts for texts, _ in exchange(*members, word="after")] == [["after"]] * 2


def test_what_a_stream_no_longer_holds_is_counted(node, kept):
    settings = "streams_length_max = 100\n"
    a, b = node("a", kept, settings), node("b", kept, settings)
    one, other = a.join("r", "?echo=0"), b.join("r")
    one.send_text("before")
    assert other.read_text() == "before"
    b.signal(signal.SIGSTOP)
    kept.kill_client("throng-b-subscription")
    for number in range(1_000):
        one.send_text(str(number))
        if number % 100 == 0:
            time.sleep(0.02)
    a.await_metric("throng_redis_messages_published_total", 1_001)
    b.signal(signal.SIGCONT)
    heal(b)
    one.send_text("end")
    texts, notices = read_until(other, "end")
    numbers = [int(text) for text in texts[:-1]]
    assert len(notices) <= 1
    told = sum(notice["missed"] for notice in notices)
    assert numbers == list(range(told, 1_000)), (told, numbers[:3])
    assert b.metric("throng_stream_gone_messages_total") == told


def test_streams_that_were_taken_away_are_told_or_begin_anew(node, kept):
    a, b = node("a", kept), node("b", kept)
    members = a.join("r"), b.join("r")
    exchange(*members, word="before")
    # While all links stand, nothing is missed with it.
    kept.command("FLUSHALL")
    check_all(members, [])
    # The script is forgotten: it is loaded again, and what was on its way is sent again.
    kept.command("SCRIPT", "FLUSH")
    members[0].send_text("again")
    assert [member.read_text(10) for member in members] == ["again", "again"]
    heal(a, b)
    check_all(members, [])


def test_modes_may_meet_while_they_are_changed(node, kept):
    a, b = node("a", kept), node("b", kept, mode="pubsub")
    one, other = a.join("r"), b.join("r")
    exchange(one, other, word="kept")
    exchange(other, one, word="not kept")
