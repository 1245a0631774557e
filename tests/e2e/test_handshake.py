"""The opening handshake (RFC 6455 §4, RFC 9112), answer by answer, byte by byte."""

import pytest
from harness import eventually, raw_exchange
from harness.wire import TEXT

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 §1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
GOOD = {
    "Host": "127.0.0.1",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def request(path="/rooms/lobby", method="GET", version="HTTP/1.1", without=(), extra=(), **changed):
    headers = GOOD | {name.replace("_", "-"): value for name, value in changed.items()}
    lines = [f"{method} {path} {version}"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name not in without]
    lines += list(extra)
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def answer_to(server, data):
    """The answer to one request, parsed; a refusal must end the stream."""
    with server.wire() as wire:
        wire.send(data)
        response = wire.read_response()
        if response.status != 101:
            assert wire.at_end(5), f"a {response.status} must end the connection"
        return response


def refused(server, data, status):
    response = answer_to(server, data)
    assert response.status == status, response
    assert response.body, "a refusal says what is wrong"
    assert "close" in response.headers["connection"].lower().split(", "), response
    assert response.headers["content-type"].startswith("text/plain"), response
    return response


def test_the_answer_carries_the_accept_key_of_the_rfc(server):
    response = answer_to(server, request())
    assert response.status == 101
    assert response.headers["sec-websocket-accept"] == ACCEPT
    assert "sec-websocket-extensions" not in response.headers
    assert "sec-websocket-protocol" not in response.headers


@pytest.mark.parametrize(
    "changed",
    [
        {"Upgrade": "WebSocket"},
        {"Upgrade": "h2c, websocket"},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "upgrade"},
        {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"},
        {"Origin": "https://anywhere.example"},
        {"Cookie": "a=b; c=d"},
    ],
    ids=str,
)
def test_what_browsers_and_proxies_write_is_understood(server, changed):
    assert answer_to(server, request(**changed)).status == 101


def test_header_names_are_case_insensitive(server):
    assert answer_to(server, request().replace(b"Sec-WebSocket-Key", b"sEC-wEBSOCKET-kEY")).status == 101


def test_a_request_may_come_byte_by_byte(server):
    with server.wire() as wire:
        for byte in request("/rooms/bytewise"):
            wire.send(bytes([byte]))
        assert wire.read_response().status == 101
        wire.send_text("in")
        assert wire.read_text() == "in"


@pytest.mark.parametrize(
    "data",
    [
        request(without=["Host"]),
        request(extra=["Host: twice.example"]),
        request(without=["Sec-WebSocket-Key"]),
        request(Sec_WebSocket_Key="short"),
        request(Sec_WebSocket_Key="!" * 24),
        request(extra=[f"Sec-WebSocket-Key: {KEY}"]),
        request(version="HTTP/1.0"),
        request(version="HTTP/2.0"),
        request(extra=["Content-Length: 5"]) + b"hello",
        request(extra=["Transfer-Encoding: chunked"]) + b"0\r\n\r\n",
        request(extra=["Broken header without colon"]),
        request(extra=["Space : before colon"]),
        request(extra=["Folded: one", " two"]),
        request(extra=["Nul: \x00"]),
        request().replace(b"\r\n", b"\n"),
        request("/rooms/%zz"),
        request("/rooms/%2"),
        request("/rooms/%ff"),
        request("/rooms/%00"),
        request("/rooms/a%0Ab"),
        request("/rooms/a%7Fb"),
        request("/rooms/"),
        request("/rooms/lobby?echo=perhaps"),
        request("/rooms/lobby?notices=2"),
    ],
    ids=[
        "no Host",
        "two Hosts",
        "no key",
        "short key",
        "key not base64",
        "two keys",
        "HTTP/1.0",
        "HTTP/2.0",
        "body",
        "chunked body",
        "no colon",
        "space before colon",
        "folded",
        "NUL",
        "bare LF",
        "escape not hex",
        "escape cut",
        "room not UTF-8",
        "room with NUL",
        "room with newline",
        "room with DEL",
        "room empty",
        "echo=perhaps",
        "notices=2",
    ],
)
def test_a_malformed_request_is_400(server, data):
    # An unsupported HTTP version may as well be told as such; an empty room may as well not be found.
    response = answer_to(server, data)
    allowed = {400}
    if b"HTTP/2.0" in data:
        allowed.add(505)
    if b"/rooms/ " in data:
        allowed.add(404)
    assert response.status in allowed, response
    assert response.body


def test_the_parameter_at_fault_is_named(server):
    assert b"echo" in refused(server, request("/rooms/lobby?echo=perhaps"), 400).body
    assert b"notices" in refused(server, request("/rooms/lobby?notices=2"), 400).body


def test_unknown_parameters_are_ignored(server):
    assert answer_to(server, request("/rooms/lobby?token=abc&echo=0&x")).status == 101


@pytest.mark.parametrize("path", ["/", "/room/x", "/rooms", "/rooms/a/b", "/connection", "/healthy", "/v1/stats"])
def test_an_unknown_path_is_404(server, path):
    refused(server, request(path), 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_another_method_than_get_is_405_and_says_what_is_allowed(server, method):
    response = refused(server, request(method=method), 405)
    assert "GET" in response.headers["allow"]


def test_a_room_name_of_256_bytes_is_414_and_one_of_255_is_fine(server):
    assert answer_to(server, request("/rooms/" + "r" * 255)).status == 101
    assert answer_to(server, request("/rooms/" + "%C3%A4" * 127)).status == 101
    refused(server, request("/rooms/" + "r" * 256), 414)
    refused(server, request("/rooms/" + "%C3%A4" * 128), 414)


@pytest.mark.parametrize(
    "data",
    [
        request(without=["Upgrade", "Connection"]),
        request(without=["Upgrade"]),
        request(Upgrade="h2c"),
        request(Sec_WebSocket_Version="8"),
        request(without=["Sec-WebSocket-Version"]),
        request(Sec_WebSocket_Version="14"),
    ],
    ids=["plain GET", "no Upgrade", "other protocol", "version 8", "no version", "version 14"],
)
def test_no_websocket_or_another_version_is_426_with_what_is_needed(server, data):
    response = refused(server, data, 426)
    assert response.headers["sec-websocket-version"] == "13"
    assert response.headers["upgrade"].lower() == "websocket"


def test_too_many_header_bytes_are_431(server):
    refused(server, request(extra=["X-Big: " + "x" * 9000]), 431)


def test_a_long_request_line_is_414(server):
    refused(server, request("/rooms/lobby?" + "q" * 9000), 414)


def test_too_many_headers_are_431(server):
    refused(server, request(extra=[f"X-{index}: y" for index in range(100)]), 431)


def test_only_allowed_origins_may_connect(serve):
    server = serve('origins = ["https://chat.example", "https://*.trusted.example"]\n')
    for origin in ("https://chat.example", "https://a.trusted.example"):
        assert answer_to(server, request(Origin=origin)).status == 101, origin
    for origin in ("https://evil.example", "http://chat.example", "https://chat.example.evil.example", "null"):
        refused(server, request(Origin=origin), 403)
    assert answer_to(server, request()).status == 101, "who sends no Origin is no browser"
    assert server.metric("throng_handshakes_total", outcome="origin_forbidden") == 4


def test_refusals_are_counted_by_outcome(server):
    before = server.metric("throng_handshakes_total", outcome="not_found")
    refused(server, request("/nowhere"), 404)
    eventually(
        lambda: server.metric("throng_handshakes_total", outcome="not_found") == before + 1, "the refusal is counted"
    )


def test_health_answers_200(server):
    response = server.get("/health")
    assert (response.status, response.json) == (200, {"status": "ok"})
    assert response.headers["cache-control"] == "no-store"


def test_health_needs_no_body_for_head(server):
    response = server.get("/health", method="HEAD")
    assert response.status == 200


def test_health_may_be_asked_again_on_one_connection(server):
    with server.wire() as wire:
        for _ in range(3):
            wire.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert wire.read_response().status == 200
        wire.send(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert wire.read_response().status == 200
        assert wire.at_end(5)


def test_a_pipelined_frame_behind_a_refusal_is_not_executed(server):
    with server.join("refusal") as member:
        frame = member.frame_bytes(TEXT, "smuggled")
        raw_exchange(server.address, request("/nowhere") + frame)
        member.send_text("honest")
        assert member.read_text() == "honest"
