"""Slow consumers: each policy keeps its word, every gap is counted and told, and the others do not notice.

A slow member is a socket with a small receive buffer that nobody reads. Messages are numbered, so that every one of
them is either heard or missing, and the missing ones must be exactly those that the `gap` notices own up to.
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import eventually
from harness.wire import PING, TEXT

MESSAGE_BYTES = 1024
SETTINGS = """
connection_queue_bytes_max = 65536
socket_send_buffer_bytes = 16384

[[rooms]]
match = "oldest:*"
slow = "drop-oldest"

[[rooms]]
match = "newest:*"
slow = "drop-newest"

[[rooms]]
match = "latest:*"
slow = "latest"

[[rooms]]
match = "strict"
slow = "disconnect"
"""


def flood(publisher, count, first=0, readers=()):
    """Publishes `count` numbered messages; each is heard back, so that none is ahead of the server by much.

    `readers` hear each of them, too, so that only who is meant to be slow is.
    """
    for sequence in range(first, first + count):
        publisher.send_text(f"{sequence:08}".ljust(MESSAGE_BYTES, "."))
        publisher.read_message()
        for reader in readers:
            assert int(reader.read_text()[:8]) == sequence


def hear_all(member, until):
    """What a member hears up to the message numbered `until`: its numbers, and its gaps as `(after, missed)`."""
    numbers, gaps = [], []
    while not numbers or numbers[-1] < until:
        text = member.read_text()
        if text.startswith("{"):
            notice = json.loads(text)
            assert notice["type"] == "gap" and notice["missed"] > 0, notice
            gaps.append((numbers[-1] if numbers else None, notice["missed"]))
        else:
            numbers.append(int(text[:8]))
    return numbers, gaps


def assert_in_order(numbers):
    assert numbers == sorted(set(numbers)), "out of order, or twice"


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest", "latest"])
def test_a_policy_keeps_its_word_and_tells_of_every_gap(serve, policy):
    server = serve(SETTINGS, shards=2)
    room = {"drop-oldest": "oldest:x", "drop-newest": "newest:x", "latest": "latest:x"}[policy]
    count = 1500
    with server.join(room, receive_buffer_bytes=4096) as slow, server.join(room) as publisher:
        flood(publisher, count)
        server.await_metric("throng_messages_dropped_total", 1, policy=policy)
        assert server.metric("throng_connections") == 2, "nobody is closed"

        # The slow one comes back to life. One more message settles what is still owed to it.
        publisher.send_text(f"{count:08}")
        numbers, gaps = hear_all(slow, count)
        assert_in_order(numbers)
        missed = count + 1 - len(numbers)
        dropped = server.metric("throng_messages_dropped_total", policy=policy)
        assert missed == dropped == sum(missed for _, missed in gaps), (missed, dropped, gaps)
        assert missed > count / 2, "the slow one was not slow"

        if policy == "drop-newest":
            unbroken = next(i for i, number in enumerate(numbers) if number != i)
            assert unbroken >= 60, "what was queued first is kept"
        if policy == "drop-oldest":
            tail = numbers[-40:]
            assert tail == list(range(count - 39, count + 1)), "what came last is kept"
        if policy == "latest":
            assert count - 1 in numbers or count in numbers, "the newest is kept"
    eventually(lambda: server.metric("throng_gaps_told_total") >= 1, "gap notices are counted")


def test_a_member_without_notices_is_not_told_but_the_gap_is_counted(serve):
    server = serve(SETTINGS, shards=2)
    with server.join("newest:y", "?notices=0", receive_buffer_bytes=4096) as slow:
        with server.join("newest:y") as publisher:
            flood(publisher, 1000)
            server.await_metric("throng_messages_dropped_total", 1, policy="drop-newest")
            numbers = []
            while not slow.ended:
                try:
                    numbers.append(int(slow.read_text(1)[:8]))
                except TimeoutError:
                    break
            assert_in_order(numbers)
            dropped = server.metric("throng_messages_dropped_total", policy="drop-newest")
            assert len(numbers) + dropped == 1000


@pytest.mark.parametrize("room", ["strict", "matched-by-none"])
def test_disconnect_is_the_policy_of_its_rooms_and_of_all_others(serve, room):
    server = serve(SETTINGS, shards=2)
    with server.join(room, receive_buffer_bytes=4096) as slow, server.join(room) as publisher:
        flood(publisher, 1000)
        closed = slow.read_close()
        assert closed.code == 1013, closed.code
        numbers = [int(frame.text[:8]) for frame in closed.frames if frame.opcode == TEXT]
        assert numbers == list(range(len(numbers))), "what it heard before is unbroken"
        server.await_metric("throng_connections_closed_total", 1, reason="slow_consumer")
        publisher.send_text("on we go")
        assert publisher.read_text() == "on we go"


def test_a_slow_member_costs_its_room_nothing(serve):
    """A member that reads hears everything, at once, beside fifty that do not read at all."""
    server = serve(SETTINGS, shards=2)
    slow = [server.join("oldest:z", receive_buffer_bytes=4096) for _ in range(50)]
    with server.join("oldest:z") as reader, server.join("oldest:z", "?echo=0") as publisher:
        delays = []
        for sequence in range(600):
            began = time.monotonic()
            publisher.send_text(f"{sequence:08}".ljust(MESSAGE_BYTES, "."))
            assert int(reader.read_text()[:8]) == sequence
            delays.append(time.monotonic() - began)
        assert statistics.median(delays) < 0.05, statistics.median(delays)
        assert server.metric("throng_messages_dropped_total", policy="drop-oldest") > 50
        budget = 50 * (64 << 10)
        assert server.metric("throng_queued_bytes") <= budget + 2 * (64 << 10)
    for one in slow:
        one.cut()


def test_a_full_queue_never_costs_a_pong_or_a_close(serve):
    server = serve(SETTINGS, shards=1)
    with server.join("oldest:reserve", receive_buffer_bytes=4096) as slow, server.join("oldest:reserve") as publisher:
        flood(publisher, 500)
        slow.send_frame(PING, "are you there")
        slow.send_close(1000)
        closed = slow.read_close(answer=False)
        assert closed.code == 1000, closed.code
        assert any(frame.payload == b"are you there" for frame in closed.frames), "the pong is missing"


READER = """
import sys
sys.path.insert(0, {tests!r})
from harness.wire import Wire
wire = Wire((sys.argv[1], int(sys.argv[2])), timeout_s=60).upgrade("/rooms/" + sys.argv[3])
print("in", flush=True)
while True:
    wire.read_message()
"""


def reader_process(server, room):
    """A member in a process of its own, awaited until it is in."""
    process = subprocess.Popen(
        [sys.executable, "-c", READER.format(tests=str(Path(__file__).parent)), *map(str, server.address), room],
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"in\n"
    return process


def test_a_stopped_process_is_a_slow_member_and_nothing_more(serve):
    server = serve(SETTINGS, shards=2)
    process = reader_process(server, "oldest:stopped")
    try:
        with server.join("oldest:stopped") as publisher, server.join("oldest:stopped") as reader:
            flood(publisher, 100, readers=[reader])
            os.kill(process.pid, signal.SIGSTOP)
            began = time.monotonic()
            # As much as its kernel takes for it (it has no small buffer), and then its queue.
            sequence = 100
            while server.metric("throng_messages_dropped_total", policy="drop-oldest") == 0:
                flood(publisher, 500, sequence, [reader])
                sequence += 500
                assert time.monotonic() - began < 60, "its kernel takes it all"
            os.kill(process.pid, signal.SIGCONT)
            server.await_metric("throng_gaps_told_total", 1)
    finally:
        process.kill()
        process.wait()


def test_a_killed_process_is_gone_from_its_room_and_the_others_stay(serve):
    server = serve(shards=3)
    processes = [reader_process(server, "killed") for _ in range(6)]
    try:
        with server.join("killed") as stayer:
            server.await_open(7)
            for process in processes:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            server.await_open(1)
            stayer.send_text("alone")
            assert stayer.read_text() == "alone"
            gone = server.metrics()
            ended = sum(
                gone.sum("throng_connections_closed_total", reason=reason) for reason in ("peer_gone", "peer_reset")
            )
            assert ended == 6
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def test_a_reset_in_the_middle_of_a_delivery_hurts_nobody(serve):
    server = serve(SETTINGS, shards=2)
    with server.join("oldest:reset") as publisher, server.join("oldest:reset") as reader:
        for round_number in range(20):
            victim = server.join("oldest:reset", receive_buffer_bytes=4096)
            flood(publisher, 20, round_number * 20, [reader])
            victim.cut(reset=True)
        server.await_open(2)


def test_a_write_that_makes_no_progress_is_cut(serve):
    server = serve("write_stall_timeout_ms = 1000\n" + SETTINGS, shards=1)
    with server.join("oldest:stall", receive_buffer_bytes=4096) as stalled, server.join("oldest:stall") as publisher:
        flood(publisher, 500)
        server.await_metric("throng_connections_closed_total", 1, reason="write_stalled", timeout_s=8)
        assert stalled.at_end(5)
        publisher.send_text("on we go")
        assert publisher.read_text() == "on we go"


def test_a_half_closed_client_is_let_go(serve):
    server = serve(shards=1)
    with server.join("half") as half:
        half.socket.shutdown(socket.SHUT_WR)
        assert half.at_end(10)
        server.await_open(0)
