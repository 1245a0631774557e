"""Hostile clients: half-open handshakes by the thousand, garbage, resets. Who behaves is served all the while."""

import random
import socket
import ssl
import time

import pytest
from harness import Wire, eventually, raw_exchange
from harness.wire import BINARY
from test_handshake import request


def assert_serves(server):
    with server.join("sane") as ada:
        ada.send_text("sane")
        assert ada.read_text() == "sane"


def test_two_thousand_half_open_handshakes_are_answered_408_at_5_s_while_others_are_served(serve):
    server = serve(shards=2)
    count = 2000
    half = request("/rooms/never")[:-2]
    with server.join("served") as member:
        slow = []
        for index in range(count):
            wire = Wire(server.address)
            wire.send(half[: 1 + index % len(half)])
            slow.append((time.monotonic(), wire))
        ended = []
        answered = 0
        worst = 0.0
        deadline = time.monotonic() + 15
        waiting = list(slow)
        for _, wire in waiting:
            wire.socket.setblocking(False)
        while waiting and time.monotonic() < deadline:
            began = time.monotonic()
            member.send_text("served")
            assert member.read_text() == "served"
            worst = max(worst, time.monotonic() - began)
            still = []
            for opened, wire in waiting:
                try:
                    data = wire.socket.recv(4096)
                except BlockingIOError:
                    still.append((opened, wire))
                    continue
                except ConnectionError:
                    data = b""
                if data:
                    assert data.startswith(b"HTTP/1.1 408 "), data
                    answered += 1
                    still.append((opened, wire))
                else:
                    ended.append(time.monotonic() - opened)
            waiting = still
        for _, wire in slow:
            wire.cut()
        assert not waiting, f"{len(waiting)} half-open handshakes were never ended"
        assert answered == count, f"{answered} of {count} were told why"
        ended.sort()
        assert ended[0] >= 4.5, f"ended after {ended[0]} s already"
        assert ended[-1] <= 8, f"ended after {ended[-1]} s only"
        assert worst < 1, f"a member waited {worst} s"
        server.await_metric("throng_handshakes_total", count, outcome="timeout")
    server.await_open(0)


def test_a_request_that_does_not_come_is_cut_and_one_that_does_not_end_is_answered_408(serve):
    server = serve("handshake_timeout_ms = 500\n", shards=1)
    with server.wire() as silent, server.wire() as begun:
        begun.send(request("/rooms/never")[:-2])
        assert begun.at_end(4) and silent.at_end(4)
        head, body = bytes(begun.buffer).split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), head
        assert b"Connection: close" in head
        assert body.startswith(b"408 Request Timeout: "), body
        assert not silent.buffer, silent.buffer
    server.await_metric("throng_handshakes_total", 1, outcome="timeout")
    server.await_metric("throng_connections_closed_total", 1, reason="handshake_timeout")


def test_a_health_checker_that_idles_is_let_go_without_blame(serve):
    server = serve("handshake_timeout_ms = 500\n", shards=1)
    with server.wire() as checker:
        checker.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert checker.at_end(4)
        assert bytes(checker.buffer).startswith(b"HTTP/1.1 200 OK\r\n")
        assert bytes(checker.buffer).count(b"HTTP/1.1") == 1
    server.await_metric("throng_connections_closed_total", 1, reason="not_upgraded")
    assert server.metric("throng_connections_closed_total", reason="handshake_timeout") == 0


def test_a_handshake_that_trickles_is_ended_all_the_same(serve):
    server = serve("handshake_timeout_ms = 1000\n", shards=1)
    with server.wire() as wire:
        began = time.monotonic()
        cut = False
        for byte in request("/rooms/" + "t" * 200):
            try:
                wire.send(bytes([byte]))
            except ConnectionError:
                cut = True
                break
            time.sleep(0.02)
            if time.monotonic() - began > 5:
                break
        assert cut or wire.at_end(1), "each byte bought it more time"


def hello_tls():
    """A TLS client hello as a real client writes it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    session = context.wrap_bio(incoming, outgoing, server_hostname="example.test")
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


GARBAGE = {
    "TLS hello": hello_tls(),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "newlines": b"\r\n" * 1000,
    "zeroes": b"\x00" * 4096,
    "a frame without a handshake": b"\x81\x85\x00\x00\x00\x00hello",
    "one long line": b"GET /" + b"a" * 100_000,
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "proxy protocol": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + request(),
    "header that never ends": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000,
    "absolute form": b"GET http://a/../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused_or_cut_and_the_server_goes_on(server, name):
    answer = raw_exchange(server.address, GARBAGE[name])
    if answer:
        status = int(answer.split(b" ")[1])
        assert answer.startswith(b"HTTP/1.1 ") and 400 <= status < 500, answer[:100]
    assert_serves(server)


def test_random_bytes_never_bring_it_down(server):
    source = random.Random(20)
    for _ in range(150):
        with server.wire() as wire:
            try:
                wire.send(source.randbytes(source.randint(1, 3000)))
            except ConnectionError:
                pass
            if source.random() < 0.5:
                wire.cut(reset=True)
    assert_serves(server)


def test_random_frames_after_a_right_handshake_never_bring_it_down(server):
    source = random.Random(21)
    for _ in range(150):
        with server.join("mad") as wire:
            try:
                wire.send(source.randbytes(source.randint(1, 2000)))
                wire.socket.shutdown(socket.SHUT_WR)
                wire.at_end(8)
            except OSError:
                pass
    assert_serves(server)


def test_bits_flipped_in_a_right_stream_never_bring_it_down(server):
    source = random.Random(22)
    for _ in range(150):
        with server.wire() as wire:
            stream = bytearray(request("/rooms/flip"))
            for _ in range(5):
                stream += wire.frame_bytes(source.choice([0, 1, 2, 8, 9, 10]), source.randbytes(source.randint(0, 300)))
            for _ in range(source.randint(1, 6)):
                stream[source.randrange(len(stream))] ^= 1 << source.randrange(8)
            try:
                wire.send(bytes(stream))
                wire.socket.shutdown(socket.SHUT_WR)
                wire.at_end(8)
            except OSError:
                pass
    assert_serves(server)


def test_connecting_and_leaving_at_once_leaves_nothing_behind(serve):
    server = serve(shards=2)
    for index in range(3000):
        wire = Wire(server.address)
        if index % 3 == 1:
            wire.send(request())
        wire.cut(reset=index % 2 == 0)
    eventually(lambda: server.metric("throng_sockets") == 0, "every socket is given back")
    assert_serves(server)


def test_what_a_header_announces_is_charged_before_it_comes_and_refunded(serve):
    server = serve(shards=2)
    wires = [server.join(f"promise-{index}") for index in range(200)]
    before = server.metric("throng_ledger_bytes")
    for wire in wires:
        wire.send(wire.frame_bytes(BINARY, b"x" * 10, announced=60_000))
    server.await_metric("throng_ledger_bytes", before + 200 * 60_000)
    assert_serves(server)
    for wire in wires:
        wire.cut()
    eventually(lambda: server.metric("throng_ledger_bytes") == 0, "everything is refunded")


def test_over_the_nodes_memory_budget_new_upgrades_are_503_and_who_is_in_is_served(serve):
    server = serve("node_bytes_max = 4194304\nshard_bytes_max = 4194304\n", shards=1)
    with server.join("inside") as inside:
        wires = []
        refused = False
        for index in range(400):
            with_promise = server.wire()
            with_promise.send(request(f"/rooms/hoard-{index}"))
            status = with_promise.read_response().status
            if status == 503:
                refused = True
                with_promise.cut()
                break
            wires.append(with_promise)
            try:
                with_promise.send(with_promise.frame_bytes(BINARY, b"x" * 30_000, announced=60_000))
            except ConnectionError:
                pass
        assert refused, "4 MiB of budget never ran out"
        assert server.metric("throng_handshakes_total", outcome="over_budget") >= 1
        inside.send_text("not hurt")
        assert inside.read_text() == "not hurt"
        for wire in wires:
            wire.cut()
    eventually(lambda: server.metric("throng_ledger_bytes") == 0, "everything is refunded")


def test_more_connections_than_descriptors_are_a_normal_state(serve):
    """Plain descriptors and a low limit: accepting runs out, and goes on when there is room again."""
    server = serve('descriptors = "plain"\n', shards=1, open_files=240)
    with server.join("first") as first:
        wires = [Wire(server.address) for _ in range(300)]
        first.send_text("still served")
        assert first.read_text() == "still served"
        for wire in wires:
            wire.cut()
    eventually(lambda: server.get("/health").status == 200, "it accepts again")
    assert_serves(server)
