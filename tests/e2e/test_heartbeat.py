"""Heartbeats: who answers stays, who does not is gone in time, and pings are spread."""

import time

import pytest
from harness import eventually
from harness.wire import PING, PONG

FAST = "ping_interval_ms = 1000\npong_timeout_ms = 500\n"


def test_who_answers_pings_stays_and_who_does_not_is_cut(serve):
    server = serve(FAST, shards=2)
    with server.join("beat") as alive, server.join("beat") as dead:
        began = time.monotonic()
        answered = 0
        while time.monotonic() - began < 4:
            try:
                frame = alive.read_frame(0.2)
            except TimeoutError:
                continue
            assert frame.opcode == PING
            alive.send_frame(PONG, frame.payload)
            answered += 1
        assert 2 <= answered <= 6, f"{answered} pings in 4 s of a 1 s interval"
        closed = dead.read_close()
        assert closed.code is None, "a dead peer is cut, not asked"
        assert {frame.opcode for frame in closed.frames} == {PING}
        server.await_metric("throng_connections_closed_total", 1, reason="heartbeat_lost")
        server.await_metric("throng_heartbeats_total", answered, event="answered")
        alive.send_text("alive")
        while (frame := alive.read_frame()).opcode == PING:
            alive.send_frame(PONG, frame.payload)
        assert frame.text == "alive"


def test_a_stale_or_wrong_pong_is_no_answer(serve):
    server = serve(FAST, shards=1)
    with server.join("stale") as liar:
        began = time.monotonic()
        while not liar.ended and time.monotonic() - began < 8:
            try:
                frame = liar.read_frame(0.2)
                assert frame.opcode == PING
                liar.send_frame(PONG, b"not what you asked")
            except TimeoutError:
                continue
            except (EOFError, ConnectionError):
                break
        # Either verdict is right by RFC 6455 §5.5.3 (any pong shows life), but it must be one of the two at once.
        open_count = server.open_count()
        lost = server.metric("throng_connections_closed_total", reason="heartbeat_lost")
        assert open_count + lost == 1


def test_pings_are_spread_over_the_interval(serve):
    server = serve("ping_interval_ms = 2000\npong_timeout_ms = 1500\n", shards=2)
    members = [server.join("spread") for _ in range(100)]
    try:
        moments = []
        for member in members:
            member.socket.setblocking(False)
        deadline = time.monotonic() + 10
        waiting = set(members)
        while waiting and time.monotonic() < deadline:
            for member in list(waiting):
                try:
                    data = member.socket.recv(64)
                except BlockingIOError:
                    continue
                assert data, "cut before its first ping"
                moments.append(time.monotonic())
                waiting.discard(member)
            time.sleep(0.005)
        assert not waiting, f"{len(waiting)} were never pinged"
        moments.sort()
        fullest = max(sum(1 for other in moments if moment <= other < moment + 0.2) for moment in moments)
        assert fullest <= 50, f"{fullest} of 100 pings within 0.2 s of a 2 s interval"
    finally:
        for member in members:
            member.cut()


def test_round_trips_are_measured(serve):
    server = serve(FAST, shards=1)
    with server.join("rtt") as ada:
        frame = ada.read_frame(3)
        assert frame.opcode == PING
        ada.send_frame(PONG, frame.payload)
        server.await_metric("throng_round_trip_seconds_count", 1)


@pytest.mark.parametrize("seconds", [3])
def test_heartbeat_tcp_sends_no_pings_and_keeps_who_is_there(serve, seconds):
    server = serve('heartbeat = "tcp"\n' + FAST, shards=1)
    with server.join("kernel") as ada:
        with pytest.raises(TimeoutError):
            ada.read_frame(seconds)
        ada.send_text("still in")
        assert ada.read_text() == "still in"
        assert server.metric("throng_heartbeats_total", event="sent") == 0


def test_a_dead_member_does_not_stay_in_its_room(serve):
    server = serve(FAST, shards=2)
    with server.join("books"):
        server.await_open(1)
        eventually(lambda: server.open_count() == 0, "the dead one is gone from the books", timeout_s=6)
        assert server.metric("throng_rooms") == 0
