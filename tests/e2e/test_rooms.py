"""Rooms: who hears what, in which order, as which kind of frame."""

import asyncio
import random
import re
from urllib.parse import quote

import pytest
from harness import eventually
from harness.wire import BINARY, TEXT
from websockets.asyncio.client import connect

SILENCE_S = 0.3


def join_many(server, room, count, query=""):
    """Members of one room, enough of them to be spread over the shards."""
    members = [server.join(room, query) for _ in range(count)]
    return members


def cut_all(members):
    for member in members:
        member.cut()


def test_a_text_frame_reaches_every_member_the_sender_included(server):
    with server.join("text") as ada, server.join("text") as bob:
        ada.send_text("héllo")
        assert ada.read_text() == "héllo"
        assert bob.read_text() == "héllo"


def test_a_binary_frame_stays_binary(server):
    payload = bytes(range(256)) * 3
    with server.join("binary") as ada, server.join("binary") as bob:
        ada.send_binary(payload)
        for member in (ada, bob):
            frame = member.read_message()
            assert (frame.opcode, frame.payload) == (BINARY, payload)


def test_kinds_may_alternate_and_an_empty_message_is_one(server):
    with server.join("kinds") as ada:
        for opcode, payload in [(TEXT, b"a"), (BINARY, b"\x00\xff"), (TEXT, b""), (BINARY, b""), (TEXT, b"z")]:
            ada.send_frame(opcode, payload)
            frame = ada.read_message()
            assert (frame.opcode, frame.payload) == (opcode, payload)


@pytest.mark.parametrize("payload_bytes", [1, 125, 126, 127, 65_535, 65_536])
def test_payloads_of_every_length_form_come_back_whole(server, payload_bytes):
    payload = random.Random(payload_bytes).randbytes(payload_bytes)
    with server.join("lengths") as ada:
        ada.send_binary(payload)
        assert ada.read_message().payload == payload


def test_rooms_do_not_hear_each_other(server):
    with server.join("left") as left, server.join("right") as right:
        left.send_text("left only")
        right.send_text("right only")
        assert left.read_text() == "left only"
        assert right.read_text() == "right only"
        assert left.silent(SILENCE_S)
        assert right.silent(SILENCE_S)


def test_who_joins_later_hears_only_what_comes_later(server):
    with server.join("later") as ada:
        ada.send_text("before")
        assert ada.read_text() == "before"
        with server.join("later") as bob:
            ada.send_text("after")
            assert bob.read_text() == "after"
            assert ada.read_text() == "after"


def test_who_has_left_is_heard_no_more_and_the_room_goes_on(server):
    with server.join("leaving") as ada, server.join("leaving") as bob:
        ada.send_close(1000)
        assert ada.read_close().code == 1000
        bob.send_text("still here")
        assert bob.read_text() == "still here"


def test_without_echo_the_sender_alone_is_left_out(server):
    members = join_many(server, "no-echo", 6, "?echo=0")
    try:
        members[0].send_text("from the first")
        for other in members[1:]:
            assert other.read_text() == "from the first"
        assert members[0].silent(SILENCE_S)
        members[1].send_text("from the second")
        assert members[0].read_text() == "from the second"
    finally:
        cut_all(members)


def test_echo_is_each_connections_own_choice(server):
    with server.join("mixed", "?echo=0") as quiet, server.join("mixed", "?echo=1") as loud:
        quiet.send_text("1")
        assert loud.read_text() == "1"
        loud.send_text("2")
        assert loud.read_text() == "2"
        assert quiet.read_text() == "2"


@pytest.mark.parametrize(
    "room",
    ["späße", "日本語", "🦀 rust", "a b", "100%", "with/slash", "q?a=1&b", "ticker:EUR", "ä" * 127, "x" * 255, "."],
)
def test_any_utf8_room_name_works_percent_encoded(server, room):
    escaped = quote(room, safe="")
    lower = re.sub("%..", lambda escape: escape[0].lower(), escaped)
    with server.join(escaped) as ada, server.join(lower) as bob:
        ada.send_text(room)
        assert bob.read_text() == room


def test_an_encoded_and_a_plain_name_are_the_same_room(server):
    with server.join("plain-name") as ada, server.join("%70lain%2Dname") as bob:
        ada.send_text("one room")
        assert bob.read_text() == "one room"


def test_room_names_are_told_apart_by_case_and_by_normal_form(server):
    with server.join("Case") as upper, server.join("case") as lower:
        upper.send_text("upper")
        lower.send_text("lower")
        assert upper.read_text() == "upper"
        assert lower.read_text() == "lower"
    with server.join(quote("é")) as composed, server.join(quote("e\u0301")) as decomposed:
        composed.send_text("composed")
        decomposed.send_text("decomposed")
        assert composed.read_text() == "composed"
        assert decomposed.read_text() == "decomposed"


def test_members_are_on_several_shards(server):
    """What the tests of order below rest on."""
    members = join_many(server, "spread", 24)
    try:
        shards = {labels["shard"] for labels, value in server.metrics().matching("throng_connections") if value}
        assert len(shards) >= 2, f"24 connections all on shard {shards}"
    finally:
        cut_all(members)


async def test_all_members_on_all_shards_hear_one_order(server):
    """Many publishers at once, many members: everybody hears everything, in the same order."""
    publisher_count, member_count, each_count = 6, 18, 150
    expected = publisher_count * each_count
    members = [await connect(server.url("/rooms/order"), compression=None) for _ in range(member_count)]
    publishers = [await connect(server.url("/rooms/order?echo=0"), compression=None) for _ in range(publisher_count)]

    async def publish(index, socket):
        for sequence in range(each_count):
            await socket.send(f"{index}:{sequence}")
            if sequence % 10 == 9:
                await asyncio.sleep(0)

    async def hear(socket):
        return [await socket.recv() for _ in range(expected)]

    async def drain(socket):
        for _ in range(expected - each_count):
            await socket.recv()

    try:
        heard = [asyncio.create_task(hear(member)) for member in members]
        await asyncio.gather(
            *(publish(*pair) for pair in enumerate(publishers)), *(drain(socket) for socket in publishers)
        )
        heard = await asyncio.gather(*heard)
    finally:
        await asyncio.gather(*(socket.close() for socket in members + publishers))
    for other in heard[1:]:
        assert other == heard[0]
    for index in range(publisher_count):
        of_one = [message for message in heard[0] if message.startswith(f"{index}:")]
        assert of_one == [f"{index}:{sequence}" for sequence in range(each_count)]


async def test_the_order_stays_one_while_members_come_and_go(server):
    """Rooms move between one shard and several while messages flow; who stays misses nothing."""
    count = 600
    stayer = await connect(server.url("/rooms/moving"), compression=None)
    publisher = await connect(server.url("/rooms/moving?echo=0"), compression=None)
    done = asyncio.Event()

    async def publish():
        for sequence in range(count):
            await publisher.send(str(sequence))
            if sequence % 5 == 0:
                await asyncio.sleep(0.002)
        done.set()

    async def come_and_go():
        visits = 0
        while not done.is_set():
            # Without a bound on its queue: the library stops reading at 16 frames, and then misses the close.
            async with connect(server.url("/rooms/moving"), compression=None, max_queue=None) as visitor:
                heard = []
                for _ in range(3):
                    try:
                        heard.append(int(await asyncio.wait_for(visitor.recv(), 0.2)))
                    except TimeoutError:
                        break
                assert heard == list(range(heard[0], heard[0] + len(heard))) if heard else True
                visits += 1
        return visits

    try:
        visitors = [asyncio.create_task(come_and_go()) for _ in range(4)]
        publishing = asyncio.create_task(publish())
        heard = [int(await stayer.recv()) for _ in range(count)]
        await publishing
        visits = sum(await asyncio.gather(*visitors))
    finally:
        await stayer.close()
        await publisher.close()
    assert heard == list(range(count))
    assert visits >= 8, "the room was hardly moved"


async def test_many_rooms_at_once_keep_their_messages_apart(server):
    room_count, member_count, each_count = 40, 3, 20
    rooms = {
        index: [await connect(server.url(f"/rooms/many-{index}"), compression=None) for _ in range(member_count)]
        for index in range(room_count)
    }

    async def talk(index, sockets):
        async def hear(socket):
            return [await socket.recv() for _ in range(each_count)]

        async def say():
            for sequence in range(each_count):
                await sockets[sequence % member_count].send(f"{index}/{sequence}")

        *heard, _ = await asyncio.gather(*(hear(socket) for socket in sockets), say())
        for one in heard:
            assert one == heard[0]
            assert sorted(one) == sorted(f"{index}/{sequence}" for sequence in range(each_count))

    try:
        await asyncio.gather(*(talk(*pair) for pair in rooms.items()))
    finally:
        await asyncio.gather(*(socket.close() for sockets in rooms.values() for socket in sockets))


def test_empty_rooms_leave_the_books(server):
    with server.join("gone"):
        eventually(lambda: server.metric("throng_rooms") >= 1, "a room is counted")
    eventually(lambda: server.metric("throng_rooms") == 0, "no room is left")
