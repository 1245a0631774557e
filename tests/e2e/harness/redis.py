"""A real Redis of the test's own: on a free port and a Unix socket, stopped by its process number, asked in RESP."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from .eventually import eventually
from .server import free_port


# The server under the tests: another one that speaks RESP, such as Valkey, is tried the same way.
REDIS_SERVER = os.environ.get("THRONG_REDIS_SERVER", "redis-server")


def has_redis():
    """Whether there is a `redis-server` to test with."""
    return shutil.which(REDIS_SERVER) is not None


class RedisError(Exception):
    """An error reply."""


class RedisClient:
    """A connection of the test's own, one command at a time (RESP2)."""

    def __init__(self, address, user=None, password=None):
        self.socket = socket.create_connection(address, timeout=10)
        self.file = self.socket.makefile("rb")
        if password:
            self.command("AUTH", *([user] if user else []), password)

    def command(self, *words):
        out = [b"*%d\r\n" % len(words)]
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode()
            out.append(b"$%d\r\n%s\r\n" % (len(data), data))
        self.socket.sendall(b"".join(out))
        return self._read()

    def _read(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            raise RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            length = int(rest)
            return None if length < 0 else self.file.read(length + 2)[:-2]
        if kind == b"*":
            return [self._read() for _ in range(int(rest))]
        raise EOFError(f"no reply: {line!r}")

    def close(self):
        self.file.close()
        self.socket.close()


class Redis:
    """One running `redis-server`. `settings`: lines of its configuration."""

    def __init__(self, directory, settings=(), port=None):
        self.directory = Path(directory)
        self.port = port or free_port()
        self.address = ("127.0.0.1", self.port)
        self.path = str(self.directory / f"redis-{self.port}.sock")
        self.settings = list(settings)
        self.process = None
        self.password = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.kill()

    def start(self):
        config = self.directory / f"redis-{self.port}.conf"
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"unixsocket {self.path}",
            'save ""',
            "appendonly no",
            f"dir {self.directory}",
            *self.settings,
        ]
        config.write_text("\n".join(lines) + "\n")
        with open(self.directory / f"redis-{self.port}.log", "ab") as log:
            self.process = subprocess.Popen([REDIS_SERVER, str(config)], stdout=log, stderr=log)
        eventually(self._answers, "Redis answers")
        return self

    def _answers(self):
        try:
            with socket.create_connection(self.address, timeout=1) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(1) in (b"+", b"-")
        except OSError:
            return False

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    @property
    def unix_url(self):
        return f"unix://{self.path}"

    def signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        """As a crash: nothing is said to anybody."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)

    def command(self, *words):
        client = RedisClient(self.address, password=self.password)
        try:
            return client.command(*words)
        finally:
            client.close()

    def subscribers(self, room, prefix="throng"):
        """Nodes that are subscribed to a room's channel."""
        return self.command("PUBSUB", "NUMSUB", f"{prefix}:room:{room}")[1]

    def clients(self):
        """The connections of Throng nodes: `{name: fields}`."""
        listed = self.command("CLIENT", "LIST").decode()
        all_fields = [dict(pair.split("=", 1) for pair in line.split(" ")) for line in listed.splitlines()]
        return {fields["name"]: fields for fields in all_fields if fields["name"].startswith("throng-")}

    def kill_client(self, name):
        return self.command("CLIENT", "KILL", "ID", self.clients()[name]["id"])


class StallingProxy:
    """Forwards TCP connections to `target`, until it is told to hold its breath: then nothing passes and nothing ends."""

    def __init__(self, target):
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.stalled = threading.Event()
        self.ended = threading.Event()
        self.sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.listener.close()
        for one in self.sockets:
            one.close()

    def stall(self):
        """Holds what is open now for good; who connects anew is served."""
        self.stalled.set()
        self.stalled = threading.Event()

    def _accept(self):
        while not self.ended.is_set():
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target)
            except OSError:
                client.close()  # the server is gone, and so is who asks for it
                continue
            self.sockets += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink, self.stalled), daemon=True).start()

    def _pump(self, source, sink, stalled):
        try:
            while data := source.recv(1 << 16):
                if stalled.is_set():
                    self.ended.wait()
                    return
                sink.sendall(data)
            while stalled.is_set() and not self.ended.is_set():
                time.sleep(0.05)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
