"""A real Redis Cluster of the test's own: masters that share the slots, replicas, failovers and slots that move."""

from .eventually import eventually
from .redis import Redis, RedisError
from .server import free_port

SLOT_COUNT = 16384


class RedisCluster:
    """`master_count` masters with an even share of the slots each, and `replica_count` replicas of the first ones."""

    def __init__(self, directory, master_count=3, replica_count=0, settings=()):
        settings = [
            "cluster-enabled yes",
            "cluster-node-timeout 1000",
            "cluster-require-full-coverage no",
            "cluster-replica-validity-factor 0",
            "repl-ping-replica-period 1",
            *settings,
        ]
        count = master_count + replica_count
        self.servers = []
        self.bus_ports = []
        for index in range(count):
            place = directory / f"cluster-{index}"
            place.mkdir()
            # Not the usual one, port + 10000: that may be somebody's outgoing connection.
            bus_port = free_port()
            self.bus_ports.append(bus_port)
            self.servers.append(Redis(place, [*settings, f"cluster-port {bus_port}"]))
        self.masters = self.servers[:master_count]
        self.replicas = self.servers[master_count:]

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        for one in self.servers:
            one.kill()

    def start(self):
        for one in self.servers:
            one.start()
        first = self.servers[0]
        for index, one in enumerate(self.servers):
            one.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            one.command("CLUSTER", "MEET", "127.0.0.1", first.port, self.bus_ports[0])
        for index, one in enumerate(self.masters):
            begin = SLOT_COUNT * index // len(self.masters)
            end = SLOT_COUNT * (index + 1) // len(self.masters) - 1
            one.command("CLUSTER", "ADDSLOTSRANGE", begin, end)
        eventually(lambda: all(self._known(one) == len(self.servers) for one in self.servers), "all know each other")
        for master, replica in zip(self.masters, self.replicas):
            replica.command("CLUSTER", "REPLICATE", self.id(master))
        eventually(lambda: all(self.is_ok(one) for one in self.servers), "the cluster is whole", timeout_s=30)
        for replica in self.replicas:
            eventually(
                lambda replica=replica: b"master_link_status:up" in replica.command("INFO", "replication"),
                "the replica follows",
                timeout_s=30,
            )
        return self

    def _known(self, one):
        return int(self.info(one)["cluster_known_nodes"])

    def info(self, one):
        lines = one.command("CLUSTER", "INFO").decode().split()
        return dict(line.split(":", 1) for line in lines)

    def is_ok(self, one):
        info = self.info(one)
        return info["cluster_state"] == "ok" and info["cluster_slots_assigned"] == str(SLOT_COUNT)

    def id(self, one):
        return one.command("CLUSTER", "MYID").decode()

    @property
    def url(self):
        return self.url_of(*self.masters)

    @staticmethod
    def url_of(*servers):
        return "redis-cluster://" + ",".join(f"127.0.0.1:{one.port}" for one in servers)

    def alive(self):
        return [one for one in self.servers if one.process.poll() is None]

    def master_of(self, slot):
        """The server that serves a slot, as the others say."""
        for first, last, (_, port, *_), *_ in self.alive()[0].command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(one for one in self.servers if one.port == port)
        return None

    def slot_of(self, channel):
        return self.alive()[0].command("CLUSTER", "KEYSLOT", channel)

    def move_slot(self, slot, target):
        """As `redis-cli --cluster reshard` does it."""
        source = self.master_of(slot)
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id(source))
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id(target))
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for one in [target, source, *(other for other in self.alive() if other not in (source, target))]:
            try:
                one.command("CLUSTER", "SETSLOT", slot, "NODE", self.id(target))
            except RedisError as error:
                assert "replica" in str(error), error

    def shard_subscribers(self, channel):
        """Nodes that follow a channel by SSUBSCRIBE, whichever server they follow it at."""
        counts = []
        for one in self.alive():
            try:
                counts.append(one.command("PUBSUB", "SHARDNUMSUB", channel)[1])
            except RedisError:
                continue
        return sum(counts)
