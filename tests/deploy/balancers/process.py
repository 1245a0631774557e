"""A balancer as a process of its own: started in the foreground, awaited, reloaded, stopped by its pid."""

import signal
import subprocess

from harness import Wire, eventually, free_port, http_get


class Balancer:
    """What nginx and HAProxy have in common. Subclasses write their files and give a command."""

    def __init__(self, directory):
        self.directory = directory
        self.address = ("127.0.0.1", free_port())
        self.process = None
        self.log_path = directory / "balancer.log"

    def start(self, command):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        eventually(self._listens, "the balancer listens")
        return self

    def _listens(self):
        assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log()}"
        try:
            return self.get("/").status == 404
        except OSError:
            return False

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def stop(self):
        """Ends it at once; it takes its workers along."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    def get(self, path, headers=()):
        return http_get(self.address, path, headers=headers)

    def url(self, path="/rooms/lobby"):
        return "ws://{}:{}{}".format(*self.address, path)

    def wire(self, **how):
        return Wire(self.address, **how)

    def join(self, room="lobby", headers=(), **how):
        """A member of `room` through the balancer; `wire.answer` is the 101."""
        wire = Keeping(self.address, **how)
        try:
            return wire.upgrade(f"/rooms/{room}", headers)
        except BaseException:
            wire.cut()
            raise


class Keeping(Wire):
    """A wire that remembers the last HTTP answer."""

    answer = None

    def read_response(self, *arguments, **how):
        self.answer = super().read_response(*arguments, **how)
        return self.answer

    @property
    def cookie(self):
        """The cookie that the 101 hands out, as `name=value`; `None` when it hands out none."""
        line = self.answer.headers.get("set-cookie")
        return line.split(";")[0] if line else None
