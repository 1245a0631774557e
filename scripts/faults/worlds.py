"""What a fault happens to: nodes, and the Redis that joins them, alone, with Sentinels, or as a cluster. All on loopback."""

import asyncio
import json
import re
import subprocess
import time
from contextlib import ExitStack
from datetime import datetime

from harness import Redis, Sentinel, Server, StallingProxy, eventually, free_port

QUICK = "drain_window_ms = 200\ndrain_deadline_ms = 4000\nclose_timeout_ms = 300\n"
LOOK_EVERY_S = 0.05
CLUSTER_MASTERS = 3


class Watch:
    """Asks a node's `/readyz` all the time; `None`: no answer within a second."""

    def __init__(self, node):
        self.node = node
        self.changes = [(time.monotonic(), 200)]

    async def run(self):
        while True:
            status = await self._look()
            if status != self.changes[-1][1]:
                self.changes.append((time.monotonic(), status))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self):
        try:
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection(*self.node.admin_address)
                try:
                    writer.write(b"GET /readyz HTTP/1.1\r\nHost: throng\r\nConnection: close\r\n\r\n")
                    return int((await reader.readline()).split()[1])
                finally:
                    writer.close()
        except (OSError, TimeoutError, IndexError, ValueError):
            return None

    @property
    def status(self):
        return self.changes[-1][1]

    def not_ready(self, since):
        """Seconds since then in which it was not ready, by what it said instead."""
        spent = {}
        ends = [at for at, _ in self.changes[1:]] + [time.monotonic()]
        for (begin, status), end in zip(self.changes, ends, strict=True):
            seconds = end - max(begin, since)
            if status != 200 and seconds > 0:
                spent[status] = spent.get(status, 0) + seconds
        return spent

    def first_not_ready(self, since):
        """When the node itself first said so; that it does not answer is nothing that a node has found."""
        return next((at for at, status in self.changes if at >= since and status == 503), None)

    def last_ready(self):
        return self.changes[-1][0] if self.status == 200 else None


class World:
    """Nodes on one Redis. Subclasses have others."""

    modes = ("pubsub", "sharded", "streams")
    redis_settings = ()
    settings = ""

    def __init__(self, directory, mode, node_count=3):
        self.directory, self.mode, self.node_count = directory, mode, node_count
        self.stack = ExitStack()
        self.nodes, self.watches, self.tasks = [], [], []

    def __enter__(self):
        try:
            self.start_redis()
            for index in range(self.node_count):
                flags = [word for url in self.redis_urls(index) for word in ("--redis", url)] + ["--node-id", f"node-{index + 1}"]
                if self.mode != "pubsub":
                    flags += ["--backplane-mode", self.mode]
                node = Server(self.directory, QUICK + self.settings, flags=flags, shards=1)
                node.start()
                self.nodes.append(node)
                self.stack.callback(node.kill)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_):
        for task in self.tasks:
            task.cancel()
        self.stack.close()

    def start_redis(self):
        self.redis = self.stack.enter_context(Redis(self.directory, self.redis_settings))

    def url(self, _index):
        return self.redis.url

    def redis_urls(self, index):
        """What a node is given."""
        return [self.url(index)]

    def untouched(self):
        """Rooms that no fault of this world may take anything from."""
        return set()

    def urls(self):
        return [f"ws://{node.host_port}" for node in self.nodes]

    def watch(self):
        self.watches = [Watch(node) for node in self.nodes]
        self.tasks = [asyncio.create_task(watch.run()) for watch in self.watches]

    def living(self):
        return [watch for watch in self.watches if watch.node.process.poll() is None]

    def lost_by_log(self, since_wall):
        """When a node first said, after that moment, that it lost Redis: seconds after it."""
        first = None
        for node in self.nodes:
            for line in node.log().splitlines():
                if "Redis" not in line or '"WARN"' not in line:
                    continue
                at = datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
                if at >= since_wall and (first is None or at < first):
                    first = at
        return None if first is None else first - since_wall

    def panics(self):
        return [node.log_path.name for node in self.nodes if "panicked" in node.log()]


class Narrow(World):
    """Redis cuts a subscriber that has a quarter of a MiB waiting."""

    redis_settings = ("client-output-buffer-limit pubsub 256kb 0 0", "client-output-buffer-limit normal 0 0 0")
    settings = "connection_queue_bytes_max = 8388608\n"


class Proxied(World):
    """The second node's links go through something that can stop to pass them on."""

    def start_redis(self):
        super().start_redis()
        self.proxy = self.stack.enter_context(StallingProxy(self.redis.address))

    def url(self, index):
        return "redis://127.0.0.1:%d" % self.proxy.address[1] if index == 1 else self.redis.url


class Several(World):
    """Two Redis servers by themselves; rooms are spread over them. Faults are for the first one."""

    def start_redis(self):
        super().start_redis()
        self.other = self.stack.enter_context(Redis(self.directory))

    def redis_urls(self, index):
        return [self.redis.url, self.other.url]

    def untouched(self):
        """The rooms of the second server."""
        listed = {"pubsub": ("PUBSUB", "CHANNELS"), "sharded": ("PUBSUB", "SHARDCHANNELS"), "streams": ("KEYS", "*")}[self.mode]
        first, second = (set(re.findall(r"room-\d+", b" ".join(one.command(*listed)).decode())) for one in (self.redis, self.other))
        assert first ^ second == first | second != set(), f"rooms of the first server: {first}, of the second: {second}"
        return second


class Sentinels(World):
    """A master, two replicas, three Sentinels."""

    def start_redis(self):
        self.redis = self.stack.enter_context(Redis(self.directory))
        replica = [f"replicaof 127.0.0.1 {self.redis.port}", "repl-diskless-sync-delay 0"]
        self.replicas = [self.stack.enter_context(Redis(self.directory, replica)) for _ in range(2)]
        settings = [
            f"sentinel monitor throng 127.0.0.1 {self.redis.port} 2",
            "sentinel down-after-milliseconds throng 1000",
            "sentinel failover-timeout throng 6000",
            "sentinel parallel-syncs throng 2",
        ]
        self.sentinels = [self.stack.enter_context(Sentinel(self.directory, settings)) for _ in range(3)]
        eventually(self._knows_all, "the Sentinels know each other and the replicas", 30)

    def _knows_all(self):
        for sentinel in self.sentinels:
            flat = sentinel.command("SENTINEL", "MASTER", "throng")
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            if (int(fields[b"num-slaves"]), int(fields[b"num-other-sentinels"])) != (2, 2):
                return False
        return all(b"master_link_status:up" in replica.command("INFO", "replication") for replica in self.replicas)

    def url(self, _index):
        return "redis-sentinel://" + ",".join("127.0.0.1:%d" % one.port for one in self.sentinels) + "/throng"


class Cluster(World):
    """Three masters with a replica each."""

    def start_redis(self):
        settings = ["cluster-enabled yes", "cluster-node-timeout 2000", "cluster-require-full-coverage no", "repl-diskless-sync-delay 0"]
        self.all = []
        for _ in range(2 * CLUSTER_MASTERS):
            one = Redis(self.directory, settings)
            one.settings += [f"cluster-config-file nodes-{one.port}.conf", f"cluster-port {free_port()}"]
            self.all.append(self.stack.enter_context(one))
        addresses = [f"127.0.0.1:{one.port}" for one in self.all]
        self.cli("--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes")
        eventually(lambda: all(b"cluster_state:ok" in one.command("CLUSTER", "INFO") for one in self.all), "the cluster stands", 30)
        eventually(lambda: len(self.masters()) == CLUSTER_MASTERS and self._has_replicas(), "each master has a replica", 30)
        self.redis = self.all[0]

    @staticmethod
    def cli(*words):
        done = subprocess.run(["redis-cli", *words], capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-500:]
        return done.stdout

    def _fields(self):
        """`CLUSTER NODES`, as one that lives sees it: `[(id, port, flags, fields)]`."""
        one = next(one for one in self.all if one.process.poll() is None)
        for line in one.command("CLUSTER", "NODES").decode().splitlines():
            words = line.split()
            yield words[0], int(words[1].split("@")[0].rsplit(":", 1)[1]), words[2], words

    def masters(self):
        """Ids and ports of masters with slots that are not failed, by their first slot."""
        found = [
            (int(words[8].split("-")[0]), name, port)
            for name, port, flags, words in self._fields()
            if "master" in flags and "fail" not in flags and len(words) > 8
        ]
        return [(name, port) for _, name, port in sorted(found)]

    def _has_replicas(self):
        slaves = [words for *_, flags, words in self._fields() if "slave" in flags]
        up = [one for one in self.all if b"master_link_status:up" in one.command("INFO", "replication")]
        return len(slaves) == CLUSTER_MASTERS == len(up)

    def by_port(self, port):
        return next(one for one in self.all if one.port == port)

    def url(self, _index):
        return "redis-cluster://" + ",".join(f"127.0.0.1:{one.port}" for one in self.all[:3])
