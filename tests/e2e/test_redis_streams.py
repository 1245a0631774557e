"""`backplane_mode = "streams"`: whatever happens to Redis and to the way there, nobody misses a message, or is told how many."""

import json
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Redis, RedisError, eventually

SETTINGS = "ping_interval_ms = 120000\nredis_probe_interval_ms = 500\nredis_probe_timeout_ms = 1000\ndrain_window_ms = 200\nclose_timeout_ms = 300\n"
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


class Member:
    """Somebody in a room whose texts are read as they come: who does not read is a slow consumer, and loses by policy."""

    def __init__(self, wire):
        self.wire = wire
        self.texts, self.notices = [], []
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def _read(self):
        while True:
            try:
                text = self.wire.read_text(300)
            except (AssertionError, EOFError, OSError):  # it was closed
                return
            if text.startswith('{"type":'):
                self.notices.append(json.loads(text))
            else:
                self.texts.append(text)

    def say(self, text):
        self.wire.send_text(text)

    def await_text(self, text, timeout_s=20):
        eventually(lambda: self.texts[-1:] == [text], f"{text} has come, behind {len(self.texts)} others", timeout_s)

    @property
    def gaps(self):
        return [notice["missed"] for notice in self.notices if notice["type"] == "gap"]


def join(server, room, query=""):
    return Member(server.join(room, query))


def say(members, word):
    """The first says `word`; all have it, as the last text."""
    members[0].say(word)
    for member in members:
        member.await_text(word)


@contextmanager
def traffic(*members, pause_s=0.002):
    """Each member sends `NAME-NUMBER`, counted up, until the block ends; gives the counts."""
    stop, counts = threading.Event(), [0] * len(members)

    def talk(index):
        while not stop.is_set():
            members[index].say(f"{index}-{counts[index]}")
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
    """Everybody has everything once, each sender's in its order, and was told of nothing missing."""
    for number, member in enumerate(members):
        for index, count in enumerate(counts):
            heard = lambda: [int(text.split("-")[1]) for text in list(member.texts) if text.startswith(f"{index}-")]  # noqa: B023,E731
            eventually(lambda: len(heard()) >= count, f"member {number} has all of sender {index}", 20)  # noqa: B023
            assert heard() == list(range(count)), f"member {number}, sender {index}"
        assert member.gaps == [], f"member {number}"


def test_what_is_published_is_kept_and_comes_once(node, kept):
    a, b = node("a", kept), node("b", kept)
    one, other = join(a, "r"), join(b, "r")
    for number in range(10):
        say((one, other), f"a{number}")
        say((other, one), f"b{number}")
    assert kept.command("XLEN", "throng:stream:room:r") == 20
    assert kept.command("HGET", "throng:known:room:r", "o") == b"20"
    for key in ("throng:stream:room:r", "throng:known:room:r"):
        assert 590_000 < kept.command("PTTL", key) <= 600_000
    # Who joins later begins with what is published from then on.
    late = join(b, "r")
    say((one, other, late), "after")
    assert late.texts == ["after"] and len(one.texts) == 21
    assert a.metric("throng_stream_catch_ups_total") == b.metric("throng_stream_catch_ups_total") == 0


@pytest.mark.parametrize("link", ["publishing", "subscription", "commands"])
@pytest.mark.parametrize("degraded", ["local", "refuse"])
def test_a_killed_link_loses_nothing(node, kept, link, degraded):
    settings = f'redis_degraded = "{degraded}"\nstreams_length_max = 100000\n'
    a, b = node("a", kept, settings), node("b", kept, settings)
    members = join(a, "r"), join(b, "r"), join(a, "r"), join(b, "r")
    with traffic(*members[:2]) as counts:
        for round in range(1, 4):
            time.sleep(0.3)
            kept.kill_client(f"throng-a-{link}")
            a.await_metric("throng_redis_losses_total", round, link=link)
            eventually(lambda: f"throng-a-{link}" in kept.clients(), "it is back")
            heal(a)
    check_all(members, counts)


@pytest.mark.parametrize("degraded", ["local", "refuse"])
def test_a_redis_that_dies_and_comes_back_with_its_data_has_lost_nothing(node, kept, degraded):
    settings = f'redis_degraded = "{degraded}"\nstreams_length_max = 100000\n'
    a, b = node("a", kept, settings), node("b", kept, settings)
    members = join(a, "r"), join(b, "r"), join(a, "r"), join(b, "r")
    quiet = join(a, "quiet"), join(b, "quiet")
    with traffic(*members[:2]) as counts:
        for _ in range(2):
            time.sleep(0.5)
            kept.kill()
            time.sleep(0.5)
            kept.start()
            heal(a, b)
    check_all(members, counts)
    say(quiet, "after")
    check_all(quiet, [])


def test_a_redis_that_stands_still_has_lost_nothing(node, kept):
    settings = "redis_buffer_age_ms = 30000\nstreams_length_max = 100000\n"
    a, b = node("a", kept, settings), node("b", kept, settings)
    members = join(a, "r"), join(b, "r"), join(b, "r")
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
        one, other = join(a, "r", "?echo=0"), join(b, "r")
        one.say("small")
        other.await_text("small")
        b.signal(signal.SIGSTOP)
        for number in range(120):
            one.say(f"0-{number}-" + "x" * 60_000)
        eventually(lambda: "throng-b-subscription" not in redis.clients(), "Redis has cut it")
        a.await_metric("throng_redis_messages_published_total", 121)
        b.signal(signal.SIGCONT)
        check_all([other], [120])
        assert b.metric("throng_stream_recovered_messages_total") > 0
        assert (a.stop(), b.stop()) == (0, 0)


def test_what_redis_lost_with_its_data_is_told(node, redis):
    a, b = node("a", redis), node("b", redis)
    members = join(a, "r"), join(b, "r")
    quiet = join(b, "quiet")
    say(members, "before")
    eventually(lambda: len(redis.command("KEYS", "throng:clock:*")) == 2, "both have written their clocks")
    redis.kill()
    redis.start()
    heal(a, b)
    for member in (*members, quiet):
        eventually(lambda member=member: member.gaps == [None], "it is told that nobody knows what is missing")
    say(members, "after")
    assert [member.texts for member in members] == [["before", "after"]] * 2


def test_what_a_stream_no_longer_holds_is_counted(node, kept):
    settings = "streams_length_max = 100\n"
    a, b = node("a", kept, settings), node("b", kept, settings)
    one, other = join(a, "r", "?echo=0"), join(b, "r")
    one.say("before")
    other.await_text("before")
    b.signal(signal.SIGSTOP)
    kept.kill_client("throng-b-subscription")
    for number in range(1_000):
        one.say(f"0-{number}")
        time.sleep(0.001)  # or they are one batch
    a.await_metric("throng_redis_messages_published_total", 1_001)
    b.signal(signal.SIGCONT)
    other.await_text("0-999")
    assert len(other.gaps) == 1, other.gaps
    assert [int(text[2:]) for text in other.texts[1:]] == list(range(other.gaps[0], 1_000)), other.gaps
    assert 500 < other.gaps[0] == b.metric("throng_stream_gone_messages_total")


def test_streams_that_are_taken_away_begin_anew(node, kept):
    a, b = node("a", kept), node("b", kept)
    members = join(a, "r"), join(b, "r")
    say(members, "before")
    # While all links stand, nothing is missed with it.
    kept.command("FLUSHALL")
    say(members, "after")
    # The script is forgotten: it is loaded again, and what was on its way is sent again.
    kept.command("SCRIPT", "FLUSH")
    say(members, "again")
    heal(a, b)
    assert [member.texts for member in members] == [["before", "after", "again"]] * 2
    check_all(members, [])


def test_modes_may_meet_while_they_are_changed(node, kept):
    a, b = node("a", kept), node("b", kept, mode="pubsub")
    one, other = join(a, "r"), join(b, "r")
    say((one, other), "kept")
    say((other, one), "not kept")


def test_what_follows_a_message_that_was_refused_is_refused_with_it_and_taken_in_its_order(kept):
    script = Path(__file__).parents[2] / "src/backplane/remote/streams/append.lua"

    def append(first, last, after, room="r"):
        keys = [f"throng:stream:room:{room}", f"throng:known:room:{room}"]
        words = ["parcel", last - first + 1, 100, 60_000, "server", "0" * 16, "PUBLISH", f"throng:room:{room}", "n1", 5, first, last, after]
        return kept.command("EVAL", script.read_text(), 2, *keys, *words)

    def is_refused(*words, **how):
        with pytest.raises(RedisError, match="^TRYAGAIN "):
            append(*words, **how)
        return True

    assert is_refused(2, 2, 1), "nothing is kept yet, and something was to come before it"
    assert append(1, 2, 0) == 2
    assert append(3, 3, 2) == 3, "what it follows was taken"
    assert is_refused(5, 6, 4), "4 was refused"
    assert is_refused(7, 7, 6)
    assert append(4, 4, 0) == 4
    assert append(5, 6, 4) == 6
    assert append(5, 6, 4) == 6, "once"
    assert append(3, 3, 2) == 6
    assert append(9, 9, 0) == 7, "what was given up is not waited for"
    assert kept.command("XLEN", "throng:stream:room:r") == 5
