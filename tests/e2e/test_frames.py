"""Framing: RFC 6455 §5 to §8 as a server must keep it, seen from a socket that says anything."""

import pytest
from harness.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT


@pytest.fixture
def ada(server):
    with server.join("frames") as wire:
        yield wire


def assert_closes(wire, code):
    closed = wire.read_close()
    assert closed.code == code, closed
    assert closed.frames == [], closed


# --- fragmentation (§5.4) ---------------------------------------------------------------------------------------


def test_fragments_become_one_message(ada):
    ada.send_text("one ", fin=False)
    ada.send_frame(CONTINUATION, "two ", fin=False)
    ada.send_frame(CONTINUATION, "", fin=False)
    ada.send_frame(CONTINUATION, "three")
    assert ada.read_text() == "one two three"


def test_fragmented_binary_stays_binary(ada):
    ada.send_binary(b"\x00" * 1000, fin=False)
    ada.send_frame(CONTINUATION, b"\xff" * 1000)
    frame = ada.read_message()
    assert (frame.opcode, frame.payload) == (BINARY, b"\x00" * 1000 + b"\xff" * 1000)


def test_control_frames_may_come_between_fragments(ada):
    ada.send_text("be", fin=False)
    ada.send_frame(PING, "now")
    ada.send_frame(PONG, "unasked")
    ada.send_frame(CONTINUATION, "tween")
    pong = ada.read_frame()
    assert (pong.opcode, pong.payload) == (PONG, b"now")
    assert ada.read_text() == "between"


def test_a_message_may_come_byte_by_byte(ada):
    for byte in ada.frame_bytes(TEXT, "slowly, but all of it"):
        ada.send(bytes([byte]))
    assert ada.read_text() == "slowly, but all of it"


def test_frames_that_come_with_the_handshake_count(server):
    with server.wire() as wire:
        early = wire.frame_bytes(TEXT, "early") + wire.frame_bytes(TEXT, "bird")
        wire.upgrade("/rooms/early", then=early)
        assert wire.read_text() == "early"
        assert wire.read_text() == "bird"


def test_many_frames_in_one_segment_are_all_delivered_in_order(ada):
    ada.send(b"".join(ada.frame_bytes(TEXT, str(sequence)) for sequence in range(500)))
    assert [ada.read_text() for _ in range(500)] == [str(sequence) for sequence in range(500)]


# --- ping, pong, close (§5.5) -----------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"x", b"y" * 125, bytes(range(100))])
def test_a_ping_is_answered_with_its_payload(ada, payload):
    ada.send_frame(PING, payload)
    pong = ada.read_frame()
    assert (pong.opcode, pong.payload) == (PONG, payload)


def test_an_unasked_pong_is_ignored(ada):
    ada.send_frame(PONG, "unasked")
    ada.send_text("on we go")
    assert ada.read_text() == "on we go"


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1011, 1012, 3000, 3999, 4000, 4999])
def test_a_close_is_answered_with_its_code_and_the_stream_ends(ada, code):
    ada.send_close(code, "bye")
    assert_closes(ada, code)


def test_a_close_without_a_code_is_answered(ada):
    ada.send_close()
    closed = ada.read_close(answer=False)
    assert closed.code in (1000, 1005), closed


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535])
def test_a_close_code_that_must_not_be_sent_is_a_protocol_error(ada, code):
    ada.send_close(code)
    assert_closes(ada, 1002)


def test_a_close_payload_of_one_byte_is_a_protocol_error(ada):
    ada.send_frame(CLOSE, b"\x03")
    assert_closes(ada, 1002)


def test_a_close_reason_that_is_not_utf8_is_1007(ada):
    ada.send_frame(CLOSE, b"\x03\xe8\xff\xff")
    assert_closes(ada, 1007)


def test_nothing_is_delivered_behind_a_close(server):
    with server.join("behind") as ada, server.join("behind") as bob:
        ada.send(ada.frame_bytes(CLOSE, b"\x03\xe8") + ada.frame_bytes(TEXT, "too late"))
        assert ada.read_close().code == 1000
        bob.send_text("in time")
        assert bob.read_text() == "in time"


# --- what is refused --------------------------------------------------------------------------------------------


def test_an_unmasked_frame_is_1002(ada):
    ada.send_text("naked", masked=False)
    assert_closes(ada, 1002)


@pytest.mark.parametrize("rsv", [1, 2, 4, 7])
def test_reserved_bits_are_1002(ada, rsv):
    ada.send_text("reserved", rsv=rsv)
    assert_closes(ada, 1002)


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_reserved_opcodes_are_1002(ada, opcode):
    ada.send_frame(opcode, "what is this")
    assert_closes(ada, 1002)


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_fragmented_control_frames_are_1002(ada, opcode):
    ada.send_frame(opcode, b"", fin=False)
    assert_closes(ada, 1002)


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_control_frames_over_125_bytes_are_1002(ada, opcode):
    ada.send_frame(opcode, b"\x03\xe8" + b"x" * 124)
    assert_closes(ada, 1002)


def test_a_continuation_of_nothing_is_1002(ada):
    ada.send_frame(CONTINUATION, "of what")
    assert_closes(ada, 1002)


def test_a_new_message_within_a_message_is_1002(ada):
    ada.send_text("first", fin=False)
    ada.send_text("second")
    assert_closes(ada, 1002)


@pytest.mark.parametrize(
    "head",
    [b"\x81\xfe\x00\x7d", b"\x81\xff" + (125).to_bytes(8, "big"), b"\x82\xff" + (65535).to_bytes(8, "big")],
    ids=["16 bits for 125", "64 bits for 125", "64 bits for 65535"],
)
def test_a_length_in_a_longer_form_than_needed_is_1002(ada, head):
    ada.send(head + b"\x00\x00\x00\x00")
    assert_closes(ada, 1002)


def test_a_length_with_the_top_bit_is_refused_at_its_header(ada):
    ada.send(b"\x82\xff" + b"\xff" * 8 + b"\x00\x00\x00\x00")
    assert_closes(ada, 1002)


# --- UTF-8 (§8.1) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"ok until \xe2\x28\xa1", b"cut off \xe2\x82"],
    ids=["ff", "overlong", "surrogate", "above U+10FFFF", "bad continuation", "cut off"],
)
def test_text_that_is_not_utf8_is_1007(ada, text):
    ada.send_text(text)
    assert_closes(ada, 1007)


def test_a_character_may_be_split_over_fragments(ada):
    euro = "€".encode()
    ada.send_text(euro[:1], fin=False)
    ada.send_frame(CONTINUATION, euro[1:2], fin=False)
    ada.send_frame(CONTINUATION, euro[2:])
    assert ada.read_text() == "€"


def test_bad_text_is_refused_before_its_message_is_whole(ada):
    ada.send_text(b"fine so far", fin=False)
    ada.send_frame(CONTINUATION, b"\xf4\x90", fin=False)
    assert_closes(ada, 1007)


def test_bad_text_is_refused_before_its_frame_is_whole(ada):
    ada.send(ada.frame_bytes(TEXT, b"\xce\xba\xf4\x90", announced=100))
    assert_closes(ada, 1007)


def test_bytes_that_are_not_utf8_are_fine_as_binary(ada):
    ada.send_binary(b"\xff\xfe")
    assert ada.read_message().payload == b"\xff\xfe"


# --- size -------------------------------------------------------------------------------------------------------


def test_a_message_of_exactly_the_limit_is_delivered(ada):
    ada.send_binary(b"m" * 65_536)
    assert len(ada.read_message().payload) == 65_536


def test_a_message_beyond_the_limit_is_1009_at_its_header(ada):
    ada.send(ada.frame_bytes(BINARY, b"", announced=65_537))
    assert_closes(ada, 1009)


def test_fragments_that_sum_up_beyond_the_limit_are_1009(ada):
    ada.send_binary(b"f" * 40_000, fin=False)
    ada.send_frame(CONTINUATION, b"", fin=False, announced=25_537)
    assert_closes(ada, 1009)


def test_one_members_fault_does_not_touch_the_others(server):
    with server.join("faulty") as bad, server.join("faulty") as good:
        bad.send_text("naked", masked=False)
        assert bad.read_close().code == 1002
        good.send_text("unhurt")
        assert good.read_text() == "unhurt"
