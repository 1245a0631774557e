"""The server as a process: started on free ports, awaited, asked, stopped; its exit code and its log are checked."""

import os
import random
import resource
import signal
import socket
import subprocess
from pathlib import Path

from .eventually import eventually
from .metrics import Metrics
from .wire import Wire, http_get

REPOSITORY = Path(__file__).resolve().parents[3]


def binary():
    """The program under test: `THRONG_BIN`, or the debug build."""
    path = Path(os.environ.get("THRONG_BIN", REPOSITORY / "target/debug/throng")).resolve()
    assert path.exists(), f"{path} is not there: run `cargo build`, or set THRONG_BIN"
    return str(path)


_ports_given = set()


def free_port():
    """A port that nobody has: below the ephemeral range, so that no outgoing connection takes it meanwhile.

    Never the same one twice: it is bound only later, by a process.
    """
    while True:
        port = random.randint(20_000, 32_000)
        if port in _ports_given:
            continue
        _ports_given.add(port)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def clean_environment():
    """Ours without the server's own settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("THRONG_")}


class Server:
    """One running `throng serve`.

    `settings` are TOML lines; `flags` go behind the harness's own. `ready`: whether the start is awaited. Stops at the end of the `with` block: a process that
    does not end with `exit_code` by itself fails the test.
    """

    def __init__(self, directory, settings="", flags=(), shards=2, env=None, admin_key=None, open_files=None, ready=True):
        self.directory = Path(directory)
        self.address = ("127.0.0.1", free_port())
        self.admin_address = ("127.0.0.1", free_port())
        self.admin_key = admin_key
        self.log_path = self.directory / f"throng-{self.address[1]}.log"
        self.command = [
            binary(),
            "serve",
            "--listen",
            "{}:{}".format(*self.address),
            "--admin",
            "{}:{}".format(*self.admin_address),
            "--shards",
            str(shards),
            *flags,
        ]
        if settings:
            config = self.directory / f"throng-{self.address[1]}.toml"
            config.write_text(settings)
            self.command += ["--config", str(config)]
        self.environment = clean_environment() | (env or {})
        if admin_key:
            self.environment["THRONG_ADMIN_KEY"] = admin_key
        self.open_files = open_files
        self.ready = ready
        self.process = None
        self.stopped = False

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, kind, *_):
        if kind is None and not self.stopped:
            try:
                assert self.stop() == 0, f"exit code {self.process.returncode}\n{self.log()}"
            finally:
                self.kill()
        else:
            self.kill()
        assert "panicked" not in self.log(), self.log()

    def start(self):
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                preexec_fn=self._limit_open_files if self.open_files else None,
            )
        if self.ready:
            eventually(self._ready, "readyz answers 200")
        return self

    def _limit_open_files(self):
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.open_files, self.open_files))

    def _ready(self):
        assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log()}"
        try:
            return self.admin("/readyz").status == 200
        except OSError:
            return False

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # --- stopping -----------------------------------------------------------------------------------------------

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout_s=20.0):
        """Awaits the end and returns the exit code."""
        code = self.process.wait(timeout_s)
        self.stopped = True
        return code

    def stop(self, timeout_s=20.0):
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self.stopped = True

    # --- asking -------------------------------------------------------------------------------------------------

    @property
    def host_port(self):
        return "{}:{}".format(*self.address)

    def url(self, path="/rooms/lobby"):
        return f"ws://{self.host_port}{path}"

    def wire(self, **how):
        return Wire(self.address, **how)

    def join(self, room="lobby", query="", headers=(), **how):
        """A member of `room`: connected, upgraded."""
        wire = Wire(self.address, **how)
        try:
            return wire.upgrade(f"/rooms/{room}{query}", headers)
        except BaseException:
            wire.cut()
            raise

    def admin(self, path, method="GET", headers=(), body=b"", key=None):
        key = self.admin_key if key is None else key
        bearer = [f"Authorization: Bearer {key}"] if key else []
        return http_get(self.admin_address, path, method, [*bearer, *headers], body)

    def reasons(self):
        """Why it is not ready: none when it is, or as long as nobody answers."""
        try:
            return self.admin("/readyz").json["reasons"]
        except OSError:
            return []

    def get(self, path, method="GET", headers=()):
        """A plain HTTP request to the WebSocket port."""
        return http_get(self.address, path, method, headers)

    def metrics(self):
        answer = self.admin("/metrics", headers=["Accept: application/openmetrics-text; version=1.0.0"])
        assert answer.status == 200, answer
        return Metrics(answer.body.decode())

    def metric(self, name, **labels):
        return self.metrics().sum(name, **labels)

    def await_metric(self, name, at_least, timeout_s=10.0, **labels):
        """Awaits a count or gauge of at least so much and returns it."""

        def seen():
            value = self.metric(name, **labels)
            return value if value >= at_least else None

        return eventually(seen, f"{name}{labels} >= {at_least}", timeout_s)

    def stats(self):
        answer = self.admin("/v1/stats")
        assert answer.status == 200, answer
        return answer.json

    def open_count(self):
        """Upgraded connections."""
        return self.metric("throng_connections")

    def await_open(self, count, timeout_s=10.0):
        eventually(lambda: self.open_count() == count, f"{count} connections open", timeout_s)

    def memory_bytes(self):
        """Resident memory of the process."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")


def run(*arguments, env=None, stdin=None, timeout_s=20):
    """Runs the program to its end: a `CompletedProcess` with text."""
    return subprocess.run(
        [binary(), *map(str, arguments)],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=timeout_s,
        env=clean_environment() | (env or {}),
        check=False,
    )
