"""Servers that are not ours: rooms on other makers' libraries as processes, and one that says what a test tells it to."""

import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

PEERS = Path(__file__).resolve().parents[1] / "peers"
NODE_WS = Path(__file__).resolve().parents[1] / "clients/node_modules/ws"
START_S = 20


def has_node_ws():
    return bool(shutil.which("node")) and NODE_WS.exists()


class Peer:
    """One running server of tests/e2e/peers, which prints `listening PORT`. Ended with the `with` block."""

    def __init__(self, name):
        path = PEERS / name
        program = [shutil.which("node")] if path.suffix == ".mjs" else [sys.executable]
        self.command = [*program, str(path)]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        try:
            readable, _, _ = select.select([self.process.stdout], [], [], START_S)
            line = self.process.stdout.readline().decode().split() if readable else []
            assert line[:1] == ["listening"], f"{self.command} said {line} instead of its port"
            self.url = f"ws://127.0.0.1:{line[1]}"
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()


class Scripted:
    """A TCP server on which `answer(socket, index)` is called for each connection, on a thread of its own.

    Connections are counted from 0. What it leaves open stays open until the `with` block ends.
    """

    def __init__(self, answer):
        self.answer = answer
        self.kept = []

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for one in self.kept:
            one.close()

    def _accept(self):
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            one.settimeout(30)
            self.kept.append(one)
            threading.Thread(target=self._serve, args=(one, len(self.kept) - 1), daemon=True).start()

    def _serve(self, one, index):
        try:
            self.answer(one, index)
        except OSError:
            pass


def read_request(one):
    """The head of an HTTP request."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = one.recv(4096)
        if not chunk:
            break
        data += chunk
    return data


def refuse(status, body, headers=()):
    """An `answer` that refuses each upgrade so, with a body, and ends the connection."""
    payload = body.encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(payload)}", "Connection: close", *headers]

    def answer(one, _index):
        read_request(one)
        one.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + payload)
        one.close()

    return answer


def pipe_end():
    """The write end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing
