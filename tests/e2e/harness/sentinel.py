"""Real Sentinels of the test's own, and a master with replicas that they watch; all on 127.0.0.1."""

import subprocess

from .eventually import eventually
from .redis import Redis


class Sentinel(Redis):
    """One running `redis-server --sentinel`. `settings`: lines of its configuration."""

    def start(self):
        config = self.directory / f"sentinel-{self.port}.conf"
        if not config.exists():  # it writes into it what it has learnt
            lines = [
                f"port {self.port}",
                "bind 127.0.0.1",
                f"dir {self.directory}",
                "sentinel announce-ip 127.0.0.1",
                f"sentinel announce-port {self.port}",
                *self.settings,
            ]
            config.write_text("\n".join(lines) + "\n")
        with open(self.directory / f"sentinel-{self.port}.log", "ab") as log:
            command = ["redis-server", str(config), "--sentinel"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(self._answers, "the Sentinel answers")
        return self
