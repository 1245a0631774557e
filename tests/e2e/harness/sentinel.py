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


class Group:
    """A master, replicas of it, and Sentinels that watch them under the name `name`."""

    def __init__(self, directory, replica_count=1, sentinel_count=3, password=None, sentinel_password=None, name="one/group"):
        self.name = name
        self.settings = ["repl-diskless-sync-delay 0"]
        if password:
            self.settings += [f"requirepass {password}", f"masterauth {password}"]
        self.servers = [Redis(directory, self.settings)]
        for _ in range(replica_count):
            follows = f"replicaof 127.0.0.1 {self.servers[0].port}"
            self.servers.append(Redis(directory, [*self.settings, follows]))
        quorum = sentinel_count // 2 + 1
        watching = [
            f"sentinel monitor {self.name} 127.0.0.1 {self.servers[0].port} {quorum}",
            f"sentinel down-after-milliseconds {self.name} 500",
            f"sentinel failover-timeout {self.name} 3000",
        ]
        if password:
            watching.append(f"sentinel auth-pass {self.name} {password}")
        if sentinel_password:
            watching.append(f"requirepass {sentinel_password}")
        self.sentinels = [Sentinel(directory, watching) for _ in range(sentinel_count)]
        for one in self.servers:
            one.password = password
        for one in self.sentinels:
            one.password = sentinel_password

    def __enter__(self):
        for one in self.servers + self.sentinels:
            one.start()
        eventually(self._is_complete, "the Sentinels know each other and the replicas", timeout_s=20)
        return self

    def __exit__(self, *_):
        for one in self.sentinels + self.servers:
            one.kill()

    def _is_complete(self):
        for sentinel in self.sentinels:
            flat = sentinel.command("SENTINEL", "MASTER", self.name)
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            known = int(fields[b"num-slaves"]), int(fields[b"num-other-sentinels"])
            if known != (len(self.servers) - 1, len(self.sentinels) - 1):
                return False
        return all("master_link_status:up" in self._replication(one) for one in self.servers[1:])

    @staticmethod
    def _replication(server):
        return server.command("INFO", "replication").decode()

    @property
    def url(self):
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis-sentinel://{places}/{self.name.replace('/', '%2F')}"

    def master(self):
        """The server that the Sentinels name."""
        _, port = self.sentinels[0].command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        return next(one for one in self.servers if one.port == int(port))

    def await_master(self, other_than):
        """The new master, once there is one."""

        def promoted():
            master = self.master()
            return master is not other_than and "role:master" in self._replication(master) and master

        return eventually(promoted, "a replica is promoted", timeout_s=30)
