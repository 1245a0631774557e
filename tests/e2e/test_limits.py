"""Limits on connections, rates and idleness: who meets one is told, and nobody else notices."""

import time

from harness import eventually
from harness.wire import BINARY, PING, PONG
from test_handshake import request


def refusal(server, source=None):
    """The answer to an upgrade that is expected to be refused."""
    with server.wire(source=source) as wire:
        wire.send(request())
        response = wire.read_response()
        assert wire.at_end(5)
        return response


def test_beyond_the_nodes_connections_an_upgrade_is_503_with_a_jittered_retry_after(serve):
    server = serve("connection_count_max = 4\nretry_after_s = 20\n", shards=2)
    members = [server.join("full") for _ in range(4)]
    answers = [refusal(server) for _ in range(30)]
    assert {answer.status for answer in answers} == {503}
    waits = [int(answer.headers["retry-after"]) for answer in answers]
    assert all(20 <= wait <= 40 for wait in waits), waits
    assert len(set(waits)) >= 4, f"not jittered: {waits}"
    server.await_metric("throng_handshakes_total", 30, outcome="node_full")

    members[0].send_text("nobody inside is hurt")
    assert [member.read_text() for member in members] == ["nobody inside is hurt"] * 4

    assert server.get("/health").status == 200, "a full node is still healthy"
    members.pop().cut()
    eventually(lambda: probe_upgrade(server) == 101, "the place that was left is given away")
    for member in members:
        member.cut()


def probe_upgrade(server, source=None):
    with server.wire(source=source) as wire:
        wire.send(request())
        return wire.read_response().status


def test_beyond_an_addresss_connections_an_upgrade_is_429_and_other_addresses_are_served(serve):
    server = serve("address_connection_count_max = 3\n", shards=2)
    members = [server.join("crowd", source="127.0.0.7") for _ in range(3)]
    answer = refusal(server, source="127.0.0.7")
    assert answer.status == 429, answer
    assert probe_upgrade(server, source="127.0.0.8") == 101
    assert server.metric("throng_handshakes_total", outcome="address_full") == 1
    members.pop().cut()
    eventually(lambda: probe_upgrade(server, source="127.0.0.7") == 101, "the place that was left is given away")
    for member in members:
        member.cut()


def test_beyond_the_handshake_rate_an_upgrade_is_503_and_a_second_later_it_is_not(serve):
    server = serve("handshakes_per_s_max = 5\n", shards=1)
    statuses = [probe_upgrade(server) for _ in range(20)]
    assert statuses[0] == 101
    assert statuses.count(503) >= 5, statuses
    eventually(lambda: probe_upgrade(server) == 101, "the rate recovers", timeout_s=3)


def test_who_sends_too_many_messages_is_closed_with_1008(serve):
    server = serve("messages_per_s_max = 20\n")
    with server.join("rate") as loud, server.join("rate", "?echo=0") as modest:
        loud.send(b"".join(loud.frame_bytes(BINARY, b"x") for _ in range(200)))
        closed = loud.read_close()
        assert closed.code == 1008, closed
        assert closed.reason, "a limit says its name"
        heard = 0
        while not modest.silent(0.3):
            heard += 1
        assert heard <= 40, f"{heard} messages passed a limit of 20 a second"
        modest.send_text("under the limit")
        modest.send_frame(PING, "well")
        assert modest.read_frame().opcode == PONG
    assert server.metric("throng_connections_closed_total", reason="rate_limited") == 1


def test_a_burst_of_one_second_is_allowed(serve):
    server = serve("messages_per_s_max = 50\n")
    with server.join("burst") as ada:
        ada.send(b"".join(ada.frame_bytes(BINARY, str(sequence)) for sequence in range(50)))
        assert [ada.read_message().payload for _ in range(50)] == [str(n).encode() for n in range(50)]


def test_who_sends_too_many_bytes_is_closed_with_1008(serve):
    server = serve("message_bytes_per_s_max = 100000\n")
    with server.join("bytes", "?echo=0") as ada:
        ada.send(b"".join(ada.frame_bytes(BINARY, b"x" * 30_000) for _ in range(6)))
        assert ada.read_close().code == 1008


def test_control_frames_are_bounded_too(serve):
    """A flood of pings costs the one who floods, not the server's memory."""
    server = serve(shards=1)
    with server.join("pings", receive_buffer_bytes=4096) as flooder, server.join("pings") as other:
        before = server.memory_bytes()
        ping = flooder.frame_bytes(PING, b"p" * 125)
        flooder.socket.settimeout(3)
        sent = 0
        try:
            while sent < 64 << 20:
                flooder.send(ping * 500)
                sent += len(ping) * 500
        except (TimeoutError, ConnectionError):
            pass
        other.send_text("still served")
        assert other.read_text() == "still served"
        assert server.memory_bytes() - before < 24 << 20


def test_a_message_limit_of_the_config_holds(serve):
    server = serve("message_bytes_max = 1000\n")
    with server.join("small") as ada:
        ada.send_binary(b"x" * 1000)
        assert len(ada.read_message().payload) == 1000
        ada.send_binary(b"x" * 1001)
        assert ada.read_close().code == 1009


def test_too_many_fragments_are_refused(serve):
    server = serve("message_fragment_count_max = 8\n")
    with server.join("fragments") as ada:
        ada.send_text("", fin=False)
        for _ in range(6):
            ada.send_frame(0, "x", fin=False)
        ada.send_frame(0, "x")
        assert ada.read_text() == "x" * 7
        ada.send_text("", fin=False)
        try:
            for _ in range(8):
                ada.send_frame(0, "x", fin=False)
        except ConnectionError:
            pass
        assert ada.read_close().code in (1008, 1009)


def test_the_room_limit_refuses_a_new_room_and_not_a_new_member(serve):
    server = serve("room_count_max = 2\n", shards=1)
    with server.join("one"), server.join("two") as member:
        with server.wire() as wire:
            wire.send(request("/rooms/three"))
            assert wire.read_response().status == 503
        with server.join("two") as newcomer:
            newcomer.send_text("room for one more")
            assert member.read_text() == "room for one more"


def test_who_says_nothing_for_the_idle_timeout_is_closed_with_4000(serve):
    server = serve("idle_timeout_ms = 1500\n")
    with server.join("idle") as quiet, server.join("idle") as talker:
        began = time.monotonic()
        while time.monotonic() - began < 3:
            talker.send_text("not idle")
            assert talker.read_text() == "not idle"
            time.sleep(0.2)
        closed = quiet.read_close()
        assert closed.code == 4000, closed
        talker.send_text("still in")
        assert talker.read_text() == "still in"
    assert server.metric("throng_connections_closed_total", reason="idle") == 1
