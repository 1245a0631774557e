"""A client that says exactly what it is told, right or wrong, and reads frames with a deadline."""

import base64
import hashlib
import json
import os
import socket
import struct
import time
from dataclasses import dataclass, field

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3


@dataclass
class Frame:
    """One frame as it came."""

    fin: bool
    rsv: int
    opcode: int
    payload: bytes

    @property
    def text(self):
        return self.payload.decode()


@dataclass
class Closed:
    """How the server ended it: close frame's code and reason; `code` is `None` when there was no close frame."""

    code: int | None
    reason: str = ""
    frames: list = field(default_factory=list)


@dataclass
class Response:
    """An HTTP answer."""

    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Wire:
    """A TCP connection, WebSocket by hand. Everything that waits has a deadline."""

    def __init__(self, address, timeout_s=10.0, source=None, receive_buffer_bytes=None):
        self.timeout_s = timeout_s
        self.socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        if source:
            self.socket.bind((source, 0))
        self.socket.settimeout(timeout_s)
        self.socket.connect(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()
        self.ended = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cut()

    # --- what is said -------------------------------------------------------------------------------------------

    def send(self, data):
        self.socket.sendall(data)

    def frame_bytes(self, opcode, payload=b"", fin=True, rsv=0, masked=True, announced=None):
        if isinstance(payload, str):
            payload = payload.encode()
        length = len(payload) if announced is None else announced
        head = bytearray([(0x80 if fin else 0) | rsv << 4 | opcode])
        mask_bit = 0x80 if masked else 0
        if length < 126:
            head.append(mask_bit | length)
        elif length < 1 << 16:
            head += struct.pack("!BH", mask_bit | 126, length)
        else:
            head += struct.pack("!BQ", mask_bit | 127, length)
        if not masked:
            return bytes(head) + payload
        mask = os.urandom(4)
        keystream = (mask * (len(payload) // 4 + 1))[: len(payload)]
        body = (int.from_bytes(payload, "big") ^ int.from_bytes(keystream, "big")).to_bytes(len(payload), "big")
        return bytes(head) + mask + body

    def send_frame(self, opcode, payload=b"", **how):
        self.send(self.frame_bytes(opcode, payload, **how))

    def send_text(self, text, **how):
        self.send_frame(TEXT, text, **how)

    def send_binary(self, data, **how):
        self.send_frame(BINARY, data, **how)

    def send_close(self, code=None, reason=""):
        self.send_frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode())

    def cut(self, reset=False):
        """Ends the TCP connection: politely, or with RST."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # --- what is heard ------------------------------------------------------------------------------------------

    def _fill(self, deadline):
        """Reads once; false at the end of the stream."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"nothing in time; {len(self.buffer)} bytes wait: {bytes(self.buffer[:80])!r}")
        self.socket.settimeout(left)
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            self.ended = True
            return False
        self.buffer += data
        return True

    def _deadline(self, timeout_s):
        return time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)

    def read_response(self, timeout_s=None, head=False):
        """One HTTP answer with the body that its Content-Length announces."""
        deadline = self._deadline(timeout_s)
        while b"\r\n\r\n" not in self.buffer:
            if not self._fill(deadline):
                raise EOFError(f"stream ended within an answer: {bytes(self.buffer)!r}")
        raw, _, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        lines = raw.decode("latin-1").split("\r\n")
        version, status, *_ = lines[0].split(" ", 2)
        assert version == "HTTP/1.1", lines[0]
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        body_bytes = 0 if head or status in ("101", "204", "304") else int(headers.get("content-length", 0))
        self.buffer = bytearray(rest)
        while len(self.buffer) < body_bytes:
            if not self._fill(deadline):
                raise EOFError("stream ended within a body")
        body = bytes(self.buffer[:body_bytes])
        del self.buffer[:body_bytes]
        return Response(int(status), headers, body)

    def upgrade(self, path="/rooms/lobby", headers=(), then=b""):
        """The handshake; fails unless the answer is a right 101. `then` goes out in the same write."""
        key = base64.b64encode(os.urandom(16))
        host = "{}:{}".format(*self.socket.getpeername()[:2])
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key.decode()}",
            "Sec-WebSocket-Version: 13",
            *headers,
        ]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + then)
        response = self.read_response()
        assert response.status == 101, f"{response.status} {response.body!r}"
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
        assert response.headers["sec-websocket-accept"] == accept
        assert response.headers["upgrade"].lower() == "websocket"
        assert "upgrade" in response.headers["connection"].lower()
        return self

    def read_frame(self, timeout_s=None):
        """The next frame; `EOFError` at the end of the stream. A masked or reserved one fails the test."""
        deadline = self._deadline(timeout_s)
        while True:
            frame = self._take_frame()
            if frame is not None:
                return frame
            if not self._fill(deadline):
                raise EOFError(f"stream ended, {len(self.buffer)} bytes of a frame left")

    def _take_frame(self):
        data = self.buffer
        if len(data) < 2:
            return None
        assert not data[1] & 0x80, "a server must not mask (RFC 6455 §5.1)"
        length, at = data[1] & 0x7F, 2
        if length == 126:
            if len(data) < 4:
                return None
            length, at = struct.unpack_from("!H", data, 2)[0], 4
        elif length == 127:
            if len(data) < 10:
                return None
            length, at = struct.unpack_from("!Q", data, 2)[0], 10
        if len(data) < at + length:
            return None
        frame = Frame(bool(data[0] & 0x80), data[0] >> 4 & 7, data[0] & 0xF, bytes(data[at : at + length]))
        del data[: at + length]
        assert frame.rsv == 0, "reserved bits without an extension (RFC 6455 §5.2)"
        return frame

    def read_message(self, timeout_s=None):
        """The next text or binary frame; pings on the way are answered."""
        deadline = self._deadline(timeout_s)
        while True:
            frame = self.read_frame(deadline - time.monotonic())
            if frame.opcode == PING:
                self.send_frame(PONG, frame.payload)
            elif frame.opcode in (TEXT, BINARY):
                assert frame.fin, "deliveries are whole frames"
                return frame
            elif frame.opcode == CLOSE:
                raise AssertionError(f"closed instead of a message: {frame.payload!r}")

    def read_text(self, timeout_s=None):
        frame = self.read_message(timeout_s)
        assert frame.opcode == TEXT, frame
        return frame.text

    def silent(self, for_s):
        """Whether nothing but pings came for so long. The only honest way to see that something does not come."""
        try:
            self.read_message(for_s)
        except TimeoutError:
            return True
        return False

    def read_close(self, timeout_s=None, answer=True):
        """Reads to the end of the stream. What came before the close frame is in `frames`."""
        deadline = self._deadline(timeout_s)
        closed = Closed(None)
        while True:
            try:
                frame = self.read_frame(deadline - time.monotonic())
            except EOFError:
                return closed
            if frame.opcode == CLOSE:
                assert closed.code is None, "two close frames"
                assert len(frame.payload) != 1 and len(frame.payload) <= 125, frame
                if frame.payload:
                    closed.code = struct.unpack_from("!H", frame.payload)[0]
                    closed.reason = frame.payload[2:].decode()
                else:
                    closed.code = 1005
                if answer:
                    try:
                        self.send_frame(CLOSE, frame.payload[:2])
                    except ConnectionError:
                        pass
            else:
                assert closed.code is None, f"a frame behind the close frame: {frame}"
                if frame.opcode == PING:
                    self.send_frame(PONG, frame.payload)
                closed.frames.append(frame)

    def at_end(self, timeout_s=None):
        """Whether the stream ends in time, whatever still comes."""
        deadline = self._deadline(timeout_s)
        try:
            while self._fill(deadline):
                pass
        except TimeoutError:
            return False
        return True

    @property
    def source_port(self):
        return self.socket.getsockname()[1]


def raw_exchange(address, data, timeout_s=8.0):
    """Sends bytes and returns all that comes until the server ends the stream."""
    with Wire(address, timeout_s) as wire:
        try:
            wire.send(data)
        except ConnectionError:
            pass
        assert wire.at_end(timeout_s), f"not ended in {timeout_s} s after {data[:60]!r}"
        return bytes(wire.buffer)


def http_get(address, path, method="GET", headers=(), body=b"", timeout_s=10.0):
    """One HTTP request on a connection of its own."""
    with Wire(address, timeout_s) as wire:
        lines = [f"{method} {path} HTTP/1.1", "Host: {}:{}".format(*address), "Connection: close", *headers]
        if body or method in ("POST", "PUT"):
            lines.append(f"Content-Length: {len(body)}")
        wire.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return wire.read_response(timeout_s, head=method == "HEAD")
