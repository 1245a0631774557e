"""What comes through a balancer: PROXY headers, X-Forwarded-For, the user's header, the affinity cookie."""

import ipaddress
import struct

import pytest
from harness import raw_exchange, run
from harness.wire import Wire
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

PROXY = "127.0.0.2"
STRANGER = "127.0.0.3"
TRUSTED = f'trusted_proxies = ["{PROXY}", "10.0.0.0/8"]\n'
KEY = "a-key-of-the-test"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v1(client, port=4000):
    family = "TCP6" if ":" in client else "TCP4"
    here = "::1" if ":" in client else "127.0.0.1"
    return f"PROXY {family} {client} {here} {port} 80\r\n".encode()


def v2(client=None, port=4000, tlvs=b""):
    """A header of version 2; without a client it is the proxy's own (LOCAL)."""
    if client is None:
        return SIGNATURE + b"\x20\x00" + struct.pack("!H", len(tlvs)) + tlvs
    address = ipaddress.ip_address(client).packed
    body = address + bytes(len(address)) + struct.pack("!HH", port, 80) + tlvs
    family = b"\x11" if len(address) == 4 else b"\x21"
    return SIGNATURE + b"\x21" + family + struct.pack("!H", len(body)) + body


class Through(Wire):
    """A wire that begins with a PROXY header."""

    def __init__(self, server, header, source=PROXY):
        super().__init__(server.address, source=source)
        self.send(header)


def peers(server, room="lobby"):
    """Addresses of a room's members, as the API has them."""
    room = server.admin(f"/v1/rooms/{room}").json
    found = [server.admin(f"/v1/connections/{member}").json["peer"] for member in room["connections"]]
    return sorted(found)


def refusal(wire):
    """Status of the answer to an upgrade that is not to be had."""
    wire.send(b"GET /rooms/lobby HTTP/1.1\r\nHost: x\r\n\r\n")
    return wire.read_response().status


@pytest.mark.parametrize("mode", ("accept", "require"))
def test_clients_behind_a_proxy_header_are_limited_by_their_own_address(serve, mode):
    server = serve(TRUSTED + f'proxy_protocol = "{mode}"\naddress_connection_count_max = 2\n', admin_key=KEY)
    headers = [v1("203.0.113.9"), v2("203.0.113.9", 4001, tlvs=b"\x04\x00\x05ab\0cd"), v2("2001:db8::9"), v1("2001:db8:1::9")]
    wires = [Through(server, header).upgrade() for header in headers]
    assert peers(server) == sorted(["203.0.113.9:4000", "203.0.113.9:4001", "[2001:db8::9]:4000", "[2001:db8:1::9]:4000"])
    with Through(server, v2("203.0.113.9")) as third:
        assert refusal(third) == 429
    with Through(server, v1("203.0.113.10")) as other:
        other.upgrade()
    wires.pop(0).cut()
    server.await_open(3)
    with Through(server, v1("203.0.113.9")) as again:
        again.upgrade()
        again.send_text("hello")
        assert [wire.read_text() for wire in [again, *wires]] == ["hello"] * 4
    for wire in wires:
        wire.cut()
    server.await_open(0)
    assert server.metric("throng_client_addresses_total", how="proxy_header") == 7


def test_a_proxy_header_may_come_byte_by_byte_and_the_proxy_may_ask_for_itself(serve):
    server = serve(TRUSTED + 'proxy_protocol = "require"\n', admin_key=KEY)
    for header in (v1("203.0.113.9"), v2("203.0.113.9")):
        with Wire(server.address, source=PROXY) as wire:
            for byte in header + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n":
                wire.send(bytes([byte]))
            assert wire.read_response().status == 200
            wire.upgrade()
            assert peers(server) == ["203.0.113.9:4000"]
        server.await_open(0)
    for header in (v2(), v2(tlvs=b"anything"), b"PROXY UNKNOWN\r\n"):
        with Through(server, header) as wire:
            wire.send(b"GET /health HTTP/1.0\r\n\r\n")
            assert wire.read_response().status == 200
    assert server.metric("throng_client_addresses_total", how="proxy_own") == 3


def test_where_proxy_headers_are_required_nobody_comes_without(serve):
    server = serve(TRUSTED + 'proxy_protocol = "require"\nhandshake_timeout_ms = 500\n')
    with Wire(server.address, source=STRANGER) as wire:
        assert wire.at_end(5), "at once, and without a word"
    for data, how in (
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", "proxy_missing"),
        (b"PROXY TCP4 1.2.3.4\r\nGET /health HTTP/1.1\r\n\r\n", "proxy_malformed"),
        (SIGNATURE + b"\x21\x11\xff\xff", "proxy_malformed"),
    ):
        with Wire(server.address, source=PROXY) as wire:
            wire.send(data)
            answer = wire.read_response()
            assert answer.status == 400 and b"PROXY header" in answer.body, answer
            assert wire.at_end(5)
        assert server.metric("throng_client_addresses_total", how=how) >= 1
    with Wire(server.address, source=PROXY) as wire:
        wire.send(b"PROXY TCP4 ")
        assert wire.read_response().status == 408
    assert server.metric("throng_client_addresses_total", how="proxy_untrusted") == 1


def test_where_proxy_headers_are_not_read_they_are_no_http(serve):
    data = v1("203.0.113.9") + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    accepting = serve(TRUSTED + 'proxy_protocol = "accept"\n')
    with Wire(accepting.address, source=STRANGER) as wire:
        wire.send(data)
        assert wire.read_response().status == 400
    with Wire(accepting.address, source=PROXY) as wire:
        assert wire.upgrade(), "one without is served"
    plain = serve(TRUSTED)
    assert raw_exchange(plain.address, data).startswith(b"HTTP/1.1 400 ")


def test_forwarded_clients_are_limited_by_their_own_address(serve):
    server = serve(TRUSTED + 'forwarded_for = "on"\naddress_connection_count_max = 1\n', admin_key=KEY)
    join = lambda *values, source=PROXY: server.join(headers=[f"X-Forwarded-For: {value}" for value in values], source=source)
    with join("198.51.100.66, 203.0.113.9") as first, join("forged", "203.0.113.10:999", "10.0.0.3") as second:
        assert peers(server) == ["203.0.113.10:999", "203.0.113.9:0"]
        with pytest.raises(AssertionError, match="429"):
            join("198.51.100.67, 203.0.113.9")
        with join("203.0.113.9", source=STRANGER):
            assert any(peer.startswith(f"{STRANGER}:") for peer in peers(server)), "its word does not count"
        first.send_text("hello")
        assert second.read_text() == "hello"
    server.await_open(0)
    with join("unknown") as one, join("unknown") as other, server.join(source=PROXY) as third:
        assert all(peer.startswith(f"{PROXY}:") for peer in peers(server)), "it has as many as it likes"
        for wire in (one, other, third):
            wire.cut()
    assert server.metric("throng_client_addresses_total", how="forwarded_malformed") == 2


def user(server):
    """The user of the only member of the lobby."""
    (member,) = server.admin("/v1/rooms/lobby").json["connections"]
    return server.admin(f"/v1/connections/{member}").json["user"]


def test_only_a_trusted_proxy_names_users_by_the_header(serve):
    server = serve(TRUSTED + 'auth = "header"\nidentity_header = "X-Who"\n', admin_key=KEY)
    with server.join(headers=["X-Who: anna%20é"], source=PROXY):
        assert user(server) == "anna%20é", "as it stands"
    server.await_open(0)
    server.join(source=STRANGER).cut()
    for query, headers, source in (
        ("", ["X-Who: anna"], STRANGER),
        ("?user=anna", [], STRANGER),
        ("?user=anna", [], PROXY),
    ):
        with pytest.raises(AssertionError, match="403 .*[Uu]ser"):
            server.join(query=query, headers=headers, source=source)
    for headers in (["X-Who: anna", "X-Who: anna"], ["X-Who:"], [f"X-Who: {'x' * 129}"]):
        with pytest.raises(AssertionError, match="400"):
            server.join(headers=headers, source=PROXY)
    assert server.metric("throng_handshakes_total", outcome="identity_forbidden") == 3


def test_behind_a_proxy_header_that_names_nobody_no_header_is_believed(serve):
    server = serve(TRUSTED + 'proxy_protocol = "accept"\nforwarded_for = "on"\nauth = "header"\n', admin_key=KEY)
    for header in (b"PROXY UNKNOWN\r\n", v2(), v2(tlvs=b"anything"), SIGNATURE + b"\x21\x00\0\0", SIGNATURE + b"\x21\x31\0\xd8" + bytes(216)):
        with Through(server, header) as wire:
            with pytest.raises(AssertionError, match="403 .*[Uu]ser"):
                wire.upgrade(headers=["X-User-Id: anna"])
        with Through(server, header).upgrade(headers=["X-Forwarded-For: 203.0.113.9"]):
            assert [peer.partition(":")[0] for peer in peers(server)] == [PROXY]
        server.await_open(0)


def test_a_user_of_the_query_keeps_its_rules(server):
    with server.join(query="?user=anna%2F%C3%A9"):
        assert user(server) == "anna/é"
    server.await_open(0)
    server.join(query=f"?user={'x' * 128}&echo=0").cut()
    for query in ("?user=", "?user=%00", "?user=%FF", "?user=a&user=b", f"?user={'x' * 129}"):
        with pytest.raises(AssertionError, match="400"):
            server.join(query=query)


async def test_the_101_names_the_node_and_sets_the_cookie_once(serve):
    server = serve('affinity_cookie = "throng_node"\naffinity_secure = true\naffinity_max_age_s = "1h"\n', flags=["--node-id", "n.1"])
    async with connect(server.url()) as socket:
        headers = socket.response.headers
        assert headers["X-Throng-Node"] == "n.1"
        assert headers["Set-Cookie"] == "throng_node=n.1; Path=/; Max-Age=3600; SameSite=Lax; Secure; HttpOnly"
    for cookie, sets in (("throng_node=n.1", False), ("a=b; throng_node=n.1", False), ("throng_node=n.2", True)):
        async with connect(server.url(), additional_headers={"Cookie": cookie}) as socket:
            assert ("Set-Cookie" in socket.response.headers) == sets, cookie
    with pytest.raises(InvalidStatus) as refused:
        await connect(server.url("/nowhere"))
    assert "Set-Cookie" not in refused.value.response.headers


async def test_without_settings_no_cookie_is_set_and_the_node_can_be_left_unnamed(serve):
    async with connect(serve().url()) as socket:
        assert "Set-Cookie" not in socket.response.headers and "X-Throng-Node" in socket.response.headers
    async with connect(serve('node_header = "off"\n').url()) as socket:
        names = sorted(name.lower() for name, _ in socket.response.headers.raw_items())
        assert names == ["connection", "sec-websocket-accept", "upgrade"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--auth", "header"], "trusted_proxies"),
        (["--proxy-protocol", "require"], "nobody is trusted"),
        (["--trusted-proxies", "10.0.0.1/8"], "10.0.0.1/8"),
        (["--affinity-cookie", "a b"], "cookie's name"),
        (["--affinity-cookie", "a", "--affinity-same-site", "none"], "affinity_secure = true"),
        (["--affinity-cookie", "a", "--affinity-value", "a;b"], "without"),
        (["--identity-header", "X User"], "header's name"),
        (["--identity-header", "X-Who"], 'auth = "header"'),
        (["--auth", "header", "--trusted-proxies", "0.0.0.0/0"], "everybody is trusted"),
        (["--affinity-secure", "true"], "affinity_cookie"),
    ],
    ids=str,
)
def test_mistakes_are_told_at_the_start(flags, words):
    outcome = run("serve", *flags)
    assert outcome.returncode == 2 and words in outcome.stderr, outcome.stderr
