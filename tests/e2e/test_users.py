"""Messages to users and to everybody, and users who are disconnected: on one shard, on several, on nodes around a Redis."""

import json
from urllib.parse import quote

import pytest
from harness import eventually
from harness.wire import CLOSE, PING, TEXT
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

CLOSE_QUICKLY = "close_timeout_ms = 300\ndrain_window_ms = 200\n"


class Nodes:
    """One node, or several around a Redis: members join them in turn, and the API is asked on them in turn."""

    def __init__(self, nodes):
        self.nodes, self.joined, self.asked = nodes, 0, 0

    def join(self, room="lobby", query="", **how):
        self.joined += 1
        return self.nodes[self.joined % len(self.nodes)].join(room, query, **how)

    def api(self, method, path, body=b"", headers=()):
        self.asked += 1
        return self.nodes[self.asked % len(self.nodes)].admin(path, method, headers, body)

    def accept(self, method, path, body=b"", headers=()):
        answer = self.api(method, path, body, headers)
        assert (answer.status, answer.json) == (202, {"accepted": True}), answer

    def send(self, user, text):
        self.accept("POST", f"/v1/users/{quote(user, safe='')}/send", text.encode())

    def broadcast(self, text):
        self.accept("POST", "/v1/broadcast", text.encode())


@pytest.fixture(params=["one shard", "three shards", "two nodes"])
def nodes(request, serve):
    """The same server to whoever uses it: without Redis and leases, with leases, with Redis."""
    if request.param == "two nodes":
        url = request.getfixturevalue("redis").url
        started = [
            serve(CLOSE_QUICKLY, flags=["--redis", url, "--node-id", name], shards=shards)
            for name, shards in (("a", 2), ("b", 1))
        ]
        return Nodes(started)
    return Nodes([serve(CLOSE_QUICKLY, shards=1 if request.param == "one shard" else 3)])


def texts(wire, count):
    return [wire.read_text() for _ in range(count)]


def close_of(wire):
    """What is read up to the close frame: texts, code and reason."""
    heard = []
    while True:
        frame = wire.read_frame()
        if frame.opcode == TEXT:
            heard.append(frame.text)
        elif frame.opcode == CLOSE:
            return heard, int.from_bytes(frame.payload[:2]), frame.payload[2:].decode()
        else:
            assert frame.opcode == PING, frame


def test_a_message_to_a_user_reaches_all_of_its_connections_and_nobody_else(nodes):
    tabs = [nodes.join(f"room-{index % 3}", "?user=ann") for index in range(6)]
    others = [nodes.join("room-0", "?user=anne"), nodes.join("room-0")]
    for number in range(20):
        nodes.send("ann", f"for ann {number}")
    for number in range(20):
        nodes.send("anne", f"for anne {number}")
    # A message in the room comes behind what was sent to the user before it, on whatever path.
    first = texts(tabs[0], 20)
    assert sorted(first) == sorted(f"for ann {number}" for number in range(20))
    for tab in tabs[1:]:
        assert texts(tab, 20) == first, "one order"
    assert len(set(texts(others[0], 20))) == 20
    tabs[0].send_text("in the room")
    for wire in (tabs[0], tabs[3], *others):
        assert wire.read_text() == "in the room", "and nothing for somebody else before it"
    nodes.broadcast("end")
    for wire in (*tabs, *others):
        assert wire.read_text() == "end"


def test_one_api_gives_a_user_its_messages_in_their_order(nodes):
    node = nodes.nodes[0]
    tab = nodes.join("r", "?user=ann")
    for number in range(50):
        assert node.admin("/v1/users/ann/send", "POST", body=str(number).encode()).status == 202
    assert texts(tab, 50) == [str(number) for number in range(50)]


def test_a_broadcast_reaches_everybody_in_every_room(nodes):
    members = [nodes.join(f"room-{index}", f"?user=u{index % 2}" if index % 3 else "?echo=0") for index in range(7)]
    for number in range(10):
        nodes.broadcast(str(number))
    first = texts(members[0], 10)
    assert sorted(first) == sorted(map(str, range(10)))
    for member in members[1:]:
        assert texts(member, 10) == first, "one order"


def test_kinds_bodies_and_ids_are_those_of_rooms(nodes):
    tab = nodes.join("r", "?user=" + quote("Zoë / 7", safe=""))
    nodes.send("Zoë / 7", "hé")
    assert tab.read_text() == "hé"
    nodes.accept("POST", "/v1/users/Zo%C3%AB%20%2F%207/send?kind=binary", b"\xff")
    nodes.accept("POST", "/v1/broadcast", b"\xfe", ["Content-Type: application/octet-stream"])
    assert sorted((f.opcode, f.payload) for f in (tab.read_message(), tab.read_message())) == [(2, b"\xfe"), (2, b"\xff")]
    nodes.send("nobody", "to nobody")
    for method, path, body, status, code in [
        ("POST", "/v1/users//send", b"x", 400, "user_invalid"),
        ("POST", "/v1/users/a%0Ab/send", b"x", 400, "user_invalid"),
        ("POST", f"/v1/users/{'u' * 129}/send", b"x", 400, "user_invalid"),
        ("POST", "/v1/users/ann/send", b"\xff", 400, "text_invalid"),
        ("POST", "/v1/users/ann/send?kind=close", b"x", 400, "query_invalid"),
        ("POST", "/v1/users/ann/send", b"x" * 65_537, 413, "message_too_big"),
        ("POST", "/v1/broadcast?user=ann", b"x", 400, "query_invalid"),
        ("GET", "/v1/broadcast", b"", 405, "method_not_allowed"),
        ("DELETE", "/v1/users/ann?code=1006", b"", 400, "query_invalid"),
        ("DELETE", "/v1/users/ann?code=1010", b"", 400, "query_invalid"),
        ("DELETE", f"/v1/users/ann?reason={'r' * 124}", b"", 400, "query_invalid"),
        ("DELETE", "/v1/users/ann?reconnect=yes", b"", 400, "query_invalid"),
    ]:
        answer = nodes.api(method, path, body)
        assert (answer.status, answer.json["error"]["code"]) == (status, code), (method, path, answer)


def test_a_user_is_disconnected_everywhere_behind_what_was_sent_before(nodes):
    tabs = [nodes.join(f"room-{index}", "?user=ann") for index in range(4)]
    others = [nodes.join("room-0", "?user=bob"), nodes.join("room-0")]
    node = nodes.nodes[0]
    for number in range(10):
        assert node.admin("/v1/users/ann/send", "POST", body=str(number).encode()).status == 202
    assert node.admin("/v1/users/ann", "DELETE").status == 202
    for tab in tabs:
        assert close_of(tab) == ([str(number) for number in range(10)], 4001, "disconnected")
    eventually(lambda: sum(one.open_count() for one in nodes.nodes) == len(others), "the others are left")
    assert sum(one.metric("throng_connections_closed_total", reason="disconnected") for one in nodes.nodes) == 4
    nodes.broadcast("still here")
    for other in others:
        assert other.read_text() == "still here"
    # It may come back, and is as good as before.
    again = nodes.join("room-0", "?user=ann")
    nodes.send("ann", "again")
    assert again.read_text() == "again"


def test_a_disconnect_says_what_it_is_told_to(nodes):
    loud, quiet = nodes.join("r", "?user=ann"), nodes.join("r", "?user=ann&notices=0")
    nodes.accept("DELETE", "/v1/users/ann?code=1008&reason=come%20back%20sp%C3%A4ter&reconnect=1")
    heard, code, reason = close_of(loud)
    assert (code, reason) == (1008, "come back später")
    notice = json.loads(heard[0])
    assert (len(heard), notice["type"]) == (1, "reconnect") and notice["after_ms"] >= 0
    assert close_of(quiet) == ([], 1008, "come back später")


def test_hidden_rooms_are_in_no_list_and_users_are_counted(nodes):
    members = [nodes.join("r", "?user=ann"), nodes.join("r", "?user=ann"), nodes.join("r", "?user=bob"), nodes.join("s")]
    for one in nodes.nodes:
        assert one.admin("/v1/rooms").json["rooms"] and all(
            room["room"] in ("r", "s") for room in one.admin("/v1/rooms").json["rooms"]
        )
        here = one.metric("throng_node_users")
        assert one.stats()["totals"]["users"] == here
        assert here <= one.metric("throng_users") <= 2 * here
        assert one.metric("throng_node_rooms") == len(one.admin("/v1/rooms").json["rooms"])
        for name in ("%01ann", "%02", "a%01"):
            assert one.admin(f"/v1/rooms/{name}").status == 400
            assert one.get(f"/rooms/{name}", headers=UPGRADE).status == 400
            assert one.admin(f"/v1/rooms/{name}/publish", "POST", body=b"x").status == 400
    if len(nodes.nodes) == 1:
        assert nodes.nodes[0].metric("throng_node_users") == 2
    else:
        assert sum(one.metric("throng_node_users") for one in nodes.nodes) == 3, "ann on both"
    for member in members:
        member.cut()
    eventually(lambda: sum(one.metric("throng_users") for one in nodes.nodes) == 0, "nobody is left")


def test_a_user_has_no_more_connections_than_it_may(serve):
    server = serve("user_connection_count_max = 2\n", shards=3)
    members = [server.join("r", "?user=ann"), server.join("s", "?user=ann")]
    answer = server.get("/rooms/r?user=ann", headers=UPGRADE)
    assert answer.status == 429 and b"this user has as many connections as it may" in answer.body, answer
    assert int(answer.headers["retry-after"]) >= 1
    assert server.metric("throng_handshakes_total", outcome="user_full") == 1
    members += [server.join("r", query) for query in ("?user=bob", "", "")]
    members[0].cut()
    eventually(lambda: server.metric("throng_connections") == 4, "the first is gone")
    members.append(server.join("r", "?user=ann"))


UPGRADE = [
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
]


def test_a_slow_connection_meets_the_policy_of_its_own_room(serve):
    settings = """
connection_queue_bytes_max = 65536
socket_send_buffer_bytes = 16384

[[rooms]]
match = "patient"
slow = "drop-oldest"
"""
    server = serve(settings, shards=2)
    patient = server.join("patient", "?user=ann", receive_buffer_bytes=4096)
    strict = server.join("strict", "?user=ann", receive_buffer_bytes=4096)
    reader = server.join("strict", "?user=ann")
    count = 600
    for number in range(count):
        path = "/v1/users/ann/send" if number % 2 else "/v1/broadcast"
        assert server.admin(path, "POST", body=f"{number:08}".ljust(4096, ".").encode()).status == 202
        assert int(reader.read_text()[:8]) == number
    server.await_metric("throng_connections_closed_total", 1, reason="slow_consumer")
    server.await_metric("throng_messages_dropped_total", 1, policy="drop-oldest")
    assert server.admin("/v1/broadcast", "POST", body=b"end").status == 202
    numbers, missed = [], 0
    while (text := patient.read_text()) != "end":
        if text.startswith("{"):
            missed += json.loads(text)["missed"]
        else:
            numbers.append(int(text[:8]))
    assert len(set(numbers)) == len(numbers) and len(numbers) + missed == count
    for kind in (0, 1):  # to the user, and to everybody: each has an order of its own
        one = [number for number in numbers if number % 2 == kind]
        assert one == sorted(one)
    strict.cut()


async def test_a_client_that_others_wrote_is_sent_to_and_disconnected(nodes):
    query = "/rooms/py?user=ada%40example.org"
    async with connect(nodes.nodes[0].url(query)) as one, connect(nodes.nodes[-1].url(query)) as two:
        nodes.send("ada@example.org", "hello")
        assert [await one.recv(), await two.recv()] == ["hello", "hello"]
        nodes.accept("DELETE", "/v1/users/ada%40example.org?code=4321&reason=bye")
        for tab in (one, two):
            with pytest.raises(ConnectionClosed) as closed:
                await tab.recv()
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4321, "bye")
    for query in ("?user=", "?user=%00", "?user=a&user=b", "?user=" + "u" * 129):
        with pytest.raises(InvalidStatus) as refused:
            await connect(nodes.nodes[0].url(f"/rooms/py{query}"))
        assert refused.value.response.status_code == 400, query


def test_with_redis_users_are_followed_as_rooms_are(serve, redis):
    settings = "redis_hold_ms = 500\n" + CLOSE_QUICKLY
    a, b = (serve(settings, flags=["--redis", redis.url, "--node-id", name]) for name in ("a", "b"))

    def following(channel):
        return redis.command("PUBSUB", "NUMSUB", channel)[1]

    eventually(lambda: following("throng:all") == 2, "both nodes follow everybody's channel")
    assert following("throng:user:ann") == 0
    tab = a.join("r", "?user=ann")
    assert following("throng:user:ann") == 1, "it stood when the upgrade was answered"
    assert b.admin("/v1/users/ann/send", "POST", body=b"from b").status == 202
    assert tab.read_text() == "from b"
    tab.cut()
    eventually(lambda: following("throng:user:ann") == 0, "it is left behind the last connection")
    assert following("throng:all") == 2
    for one in (a, b):
        assert one.metric("throng_redis_gaps_total") == 0
        assert one.metric("throng_redis_malformed_total") == 0


def test_a_redis_that_comes_back_tells_each_connection_that_something_may_be_missing(serve, redis):
    settings = "redis_probe_interval_ms = 300\nredis_probe_timeout_ms = 300\n" + CLOSE_QUICKLY
    node = serve(settings, flags=["--redis", redis.url, "--node-id", "a"])
    tab, other = node.join("r", "?user=ann"), node.join("r")
    redis.kill()
    eventually(lambda: node.admin("/readyz").status == 503, "the loss is noticed")
    assert node.admin("/v1/users/ann/send", "POST", body=b"meanwhile").status == 202
    assert tab.read_text() == "meanwhile", "connections of this node hear it"
    redis.start()
    eventually(lambda: node.admin("/readyz").status == 200, "Redis is back")
    assert node.admin("/v1/broadcast", "POST", body=b"behind").status == 202
    for wire in (tab, other):
        heard = []
        while (text := wire.read_text()) != "behind":
            heard.append(json.loads(text))
        assert 1 <= len(heard) <= 3, "one notice for each of its rooms at most"
        assert all(notice == {"type": "gap", "missed": None} for notice in heard)


@pytest.mark.parametrize("mode", ["sharded", "streams"])
def test_the_other_modes_carry_the_same(serve, redis, mode):
    settings = f'backplane_mode = "{mode}"\n' + CLOSE_QUICKLY
    a, b = (serve(settings, flags=["--redis", redis.url, "--node-id", name]) for name in ("a", "b"))
    tabs = [a.join("r", "?user=ann"), b.join("s", "?user=ann")]
    other = b.join("r")
    for number in range(20):
        assert a.admin("/v1/users/ann/send", "POST", body=str(number).encode()).status == 202
    assert b.admin("/v1/broadcast", "POST", body=b"to all").status == 202
    assert other.read_text() == "to all"
    for tab in tabs:
        heard = texts(tab, 21)
        heard.remove("to all")
        assert heard == [str(number) for number in range(20)]
    assert b.admin("/v1/users/ann?code=4100&reason=enough", "DELETE").status == 202
    for tab in tabs:
        assert close_of(tab) == ([], 4100, "enough")
    for one in (a, b):
        assert one.metric("throng_redis_gaps_total") == 0
        assert one.metric("throng_redis_malformed_total") == 0
    assert a.admin("/v1/broadcast", "POST", body=b"end").status == 202
    assert other.read_text() == "end"
