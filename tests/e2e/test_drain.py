"""Stopping: everybody is told, spread over the window, and the exit code says whether all went by themselves."""

import asyncio
import json
import signal
import socket
import time
from pathlib import Path

import pytest
from harness import eventually
from harness.wire import TEXT
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


def assert_refuses_connections(server):
    """Nobody listens there any more."""
    with socket.socket() as probe:
        probe.settimeout(2)
        with pytest.raises(OSError):
            probe.connect(server.address)
            # A socket left in a queue that nobody serves would be let in and never answered.
            probe.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            if not probe.recv(1):
                raise OSError("ended")


async def test_sigterm_under_load_tells_everybody_and_spreads_the_closes(serve):
    window_s = 2.0
    server = serve("drain_window_ms = 2000\ndrain_deadline_ms = 10000\nreconnect_after_ms = 700\n", shards=3)
    room_count, member_count = 10, 12
    sockets = {
        room: [await connect(server.url(f"/rooms/load-{room}"), compression=None) for _ in range(member_count)]
        for room in range(room_count)
    }
    stopping = None
    publishing = True

    async def publish(socket_):
        sequence = 0
        try:
            while publishing:
                await socket_.send(json.dumps({"type": "load", "sequence": sequence}))
                sequence += 1
                await asyncio.sleep(0.01)
        except ConnectionClosed:
            pass

    async def hear(socket_):
        """When it was told, when it was closed, by which code, and what it was told."""
        told = None
        try:
            async for message in socket_:
                parsed = json.loads(message)
                if parsed["type"] == "reconnect":
                    assert told is None, "told twice"
                    told = (time.monotonic(), parsed["after_ms"])
        except ConnectionClosed:
            pass
        return told, time.monotonic(), socket_.close_code

    hearing = [asyncio.create_task(hear(one)) for members in sockets.values() for one in members]
    talking = [asyncio.create_task(publish(members[0])) for members in sockets.values()]
    await asyncio.sleep(0.5)
    stopping = time.monotonic()
    server.signal(signal.SIGTERM)
    outcomes = await asyncio.gather(*hearing)
    publishing = False
    await asyncio.gather(*talking)

    assert await asyncio.to_thread(server.wait) == 0, server.log()
    assert {code for _, _, code in outcomes} == {1012}
    assert all(told for told, _, _ in outcomes), "not everybody was told"
    advice = [after_ms for (_, after_ms), _, _ in outcomes]
    assert all(700 <= after_ms <= 1400 for after_ms in advice), (min(advice), max(advice))
    assert len(set(advice)) > 10, "the advice is not jittered"
    moments = sorted(closed - stopping for _, closed, _ in outcomes)
    assert moments[-1] <= window_s + 1.5, moments[-1]
    assert moments[-1] - moments[0] >= 0.5 * window_s, f"all within {moments[-1] - moments[0]} s"
    for quarter in range(4):
        share = sum(quarter * window_s / 4 <= moment < (quarter + 1) * window_s / 4 for moment in moments)
        assert share <= 0.5 * len(moments), f"{share} of {len(moments)} closes in quarter {quarter}"


def test_readiness_and_health_say_no_while_draining_and_nobody_new_is_let_in(serve):
    server = serve("drain_window_ms = 3000\ndrain_deadline_ms = 10000\n", shards=2)
    members = [server.join("draining") for _ in range(12)]
    with server.wire() as checker:
        checker.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert checker.read_response().status == 200
        server.signal(signal.SIGTERM)
        unready = eventually(lambda: (a := server.admin("/readyz")).status == 503 and a, "readyz answers 503")
        assert b"drain" in unready.body
        assert server.admin("/livez").status == 200, "alive while it drains"
        assert server.metric("throng_drain_phase") >= 1
        try:
            checker.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = checker.read_response()
            assert (answer.status, answer.json["status"]) == (503, "draining")
        except (EOFError, ConnectionError):
            pass  # a kept-alive connection may also have been ended already
    eventually(lambda: not listening(server), "the listener is closed")
    assert_refuses_connections(server)
    # Who is still in is served until its turn comes: it hears itself, then the notice, then the close.
    for member in members:
        closed = member.read_close()
        assert closed.code == 1012
        last = json.loads(closed.frames[-1].text)
        assert last["type"] == "reconnect" and last["after_ms"] > 0
        member.cut()
    assert server.wait() == 0


def listening(server):
    """Whether the kernel still has a listener on the port."""
    wanted = f":{server.address[1]:04X} "
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if (fields[1] + " ").endswith(wanted) and fields[3] == "0A":
            return True
    return False


def test_messages_flow_until_a_member_is_told(serve):
    server = serve("drain_window_ms = 3000\ndrain_deadline_ms = 10000\n", shards=2)
    members = [server.join("flow") for _ in range(8)]
    server.signal(signal.SIGTERM)
    eventually(lambda: server.admin("/readyz").status == 503, "readyz answers 503")
    members[-1].send_text("during the drain")
    heard = 0
    for member in members:
        closed = member.read_close()
        texts = [frame.text for frame in closed.frames if frame.opcode == TEXT]
        heard += "during the drain" in texts
        assert json.loads(texts[-1])["type"] == "reconnect", "the notice comes last"
        member.cut()
    assert heard >= 1
    assert server.wait() == 0


def test_who_wants_no_notices_is_only_closed(serve):
    server = serve("drain_window_ms = 200\n", shards=1)
    with server.join("quiet", "?notices=0") as ada:
        server.signal(signal.SIGTERM)
        closed = ada.read_close()
        assert (closed.code, closed.frames) == (1012, [])
    assert server.wait() == 0


def test_sigint_stops_like_sigterm(serve):
    server = serve("drain_window_ms = 200\n", shards=1)
    with server.join("interrupted") as ada:
        server.signal(signal.SIGINT)
        assert ada.read_close().code == 1012
    assert server.wait() == 0


def test_without_connections_the_stop_is_at_once(serve):
    server = serve(shards=3)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 3, "a window nobody needs is not waited for"


def test_a_second_sigterm_hurries(serve):
    server = serve("drain_window_ms = 30000\ndrain_deadline_ms = 60000\n", shards=2)
    members = [server.join("hurry") for _ in range(20)]
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    eventually(lambda: server.admin("/readyz").status == 503, "readyz answers 503")
    server.signal(signal.SIGTERM)
    for member in members:
        assert member.read_close().code == 1012
        member.cut()
    assert server.wait() == 0
    assert time.monotonic() - began < 5


def test_who_never_answers_is_cut_at_the_deadline_and_the_exit_code_says_so(serve):
    server = serve("drain_window_ms = 200\ndrain_deadline_ms = 1500\nclose_timeout_ms = 30000\n", shards=2)
    with server.join("stubborn") as stubborn, server.join("stubborn") as polite:
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert polite.read_close().code == 1012
        polite.cut()
        assert stubborn.read_close(answer=False).code == 1012
        assert server.wait() == 1, server.log()
        assert "shards_left" in server.log()
        assert 1.0 < time.monotonic() - began < 5


def test_a_half_open_handshake_does_not_hold_up_the_stop(serve):
    server = serve("drain_window_ms = 200\ndrain_deadline_ms = 8000\n", shards=1)
    with server.wire() as half:
        half.send(b"GET /rooms/half HTTP/1.1\r\nHost: x\r\n")
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - began < 7
