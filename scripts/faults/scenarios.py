"""The faults. Each is done to a world with traffic on it, and says when it began and when it was over.

`Marks.began` is when the fault was done; `Marks.repaired`, when whatever was broken was there again: from then on the nodes
have to find back by themselves. Where nothing is repaired (a link is cut, another Redis takes over) both are the same.
"""

import asyncio
import signal
import time
from dataclasses import dataclass, field

from worlds import Cluster, Narrow, Proxied, Sentinels, Several, World


class Absent(Exception):
    """There is nothing here that the fault could be done to."""


@dataclass
class Marks:
    began: float
    repaired: float
    wall: float = field(default_factory=time.time)

    def wall_of(self, moment):
        """A moment of the monotonic clock as time of day, as logs have it."""
        return self.wall + moment - self.began


@dataclass(frozen=True)
class Scenario:
    """A fault. `detect_s`, `heal_s`: within which it has to be found, and healed after the repair."""

    name: str
    title: str
    world: type
    do: object
    detect_s: float = 9.0
    heal_s: float = 9.0
    node_count: int = 3
    # Whether a node that still runs has lost its link to Redis, and has to say so.
    finds_links: bool = True
    # From when a node could find it: `began`, `repaired` (it was held still before), or `None`: there is nothing for a node to find.
    found_from: str | None = "began"
    # What the table says beside the time, or in its place.
    found_words: str = ""


async def redis_killed(world, _traffic):
    marks = Marks(time.monotonic(), 0)
    world.redis.kill()
    await asyncio.sleep(3)
    await asyncio.to_thread(world.redis.start)
    marks.repaired = time.monotonic()
    return marks


async def redis_stopped(world, _traffic):
    marks = Marks(time.monotonic(), 0)
    world.redis.signal(signal.SIGSTOP)
    await asyncio.sleep(20)
    world.redis.signal(signal.SIGCONT)
    marks.repaired = time.monotonic()
    return marks


def link_killed(link):
    async def do(world, _traffic):
        name = f"throng-node-1-{link}"
        if name not in await asyncio.to_thread(world.redis.clients):
            raise Absent(f"a node has no link {name}")
        now = time.monotonic()
        marks = Marks(now, now)
        assert await asyncio.to_thread(world.redis.kill_client, name) == 1
        return marks

    return do


async def output_cut(world, traffic):
    """The second node is held still until Redis has more for it than it keeps for anybody."""
    node = world.nodes[1]
    marks = Marks(time.monotonic(), 0)
    node.signal(signal.SIGSTOP)
    traffic.filler_bytes = 50_000
    name = "throng-node-2-subscription"
    deadline = time.monotonic() + 30
    while name in await asyncio.to_thread(world.redis.clients):
        assert time.monotonic() < deadline, "Redis does not cut it"
        await asyncio.sleep(0.1)
    cut = (await asyncio.to_thread(world.redis.command, "INFO", "stats")).split(b"client_output_buffer_limit_disconnections:")
    assert len(cut) < 2 or int(cut[1].split()[0]) > 0, "Redis has cut it for another reason"
    traffic.filler_bytes = 0
    await asyncio.sleep(1)  # what is heavy has left the publishers, and does not cut it once more
    node.signal(signal.SIGCONT)
    marks.repaired = time.monotonic()
    return marks


async def link_stalled(world, _traffic):
    now = time.monotonic()
    marks = Marks(now, now)
    world.proxy.stall()
    return marks


async def node_killed(world, _traffic):
    now = time.monotonic()
    marks = Marks(now, now)
    world.nodes[1].process.kill()
    return marks


async def node_stopped(world, _traffic):
    marks = Marks(time.monotonic(), 0)
    world.nodes[1].signal(signal.SIGSTOP)
    await asyncio.sleep(10)
    world.nodes[1].signal(signal.SIGCONT)
    marks.repaired = time.monotonic()
    return marks


async def when_promoted(promoted, marks):
    """It is repaired once a replica has become a master."""
    deadline = time.monotonic() + 30
    while not await asyncio.to_thread(promoted):
        assert time.monotonic() < deadline, "no replica is promoted"
        await asyncio.sleep(0.02)
    marks.repaired = time.monotonic()
    return marks


async def sentinel_failover(world, _traffic):
    marks = Marks(time.monotonic(), 0)
    world.redis.kill()

    def promoted():
        return any(b"role:master" in one.command("INFO", "replication") for one in world.replicas)

    return await when_promoted(promoted, marks)


async def cluster_failover(world, _traffic):
    _, port = world.masters()[0]
    before = {port for _, port in world.masters()}
    marks = Marks(time.monotonic(), 0)
    world.by_port(port).kill()

    def promoted():
        return {port for _, port in world.masters()} - before

    return await when_promoted(promoted, marks)


async def slots_moved(world, _traffic):
    """A quarter of all slots goes from one master to another, slot by slot, as an operator does it."""
    (source, _), (target, port), *_ = world.masters()
    marks = Marks(time.monotonic(), 0)
    arguments = ["--cluster-from", source, "--cluster-to", target, "--cluster-slots", "4000", "--cluster-yes"]
    await asyncio.to_thread(world.cli, "--cluster", "reshard", f"127.0.0.1:{port}", *arguments)
    marks.repaired = time.monotonic()
    return marks


SCENARIOS = [
    Scenario("redis-killed", "kill -9 of Redis, started again after 3 s", World, redis_killed, detect_s=1),
    Scenario("redis-stopped", "Redis is stopped (SIGSTOP) for 20 s", World, redis_stopped),
    Scenario("link-publishing", "CLIENT KILL of a node's publishing link", World, link_killed("publishing"), detect_s=1, heal_s=3),
    Scenario("link-subscription", "CLIENT KILL of a node's subscription link", World, link_killed("subscription"), detect_s=1, heal_s=3),
    Scenario("link-commands", "CLIENT KILL of a node's link for commands", World, link_killed("commands"), detect_s=1, heal_s=3),
    Scenario(
        "output-limit",
        "a node is held still until Redis cuts it (output-buffer limit), then goes on",
        Narrow,
        output_cut,
        found_from="repaired",
        found_words="after it goes on",
    ),
    Scenario("link-stalled", "a node's links pass nothing any more, and do not end", Proxied, link_stalled),
    Scenario(
        "node-killed",
        "kill -9 of a node",
        World,
        node_killed,
        finds_links=False,
        found_from=None,
        found_words="by no node: its clients are cut off",
    ),
    Scenario(
        "node-stopped",
        "a node is stopped (SIGSTOP) for 10 s and goes on",
        World,
        node_stopped,
        finds_links=False,
        found_from=None,
        found_words="by no node: its links stay",
    ),
    Scenario("one-of-two", "kill -9 of one of two Redis servers, started again after 3 s", Several, redis_killed, detect_s=1),
    Scenario("sentinel-failover", "kill -9 of the master, Sentinels promote a replica", Sentinels, sentinel_failover, detect_s=1),
    Scenario("cluster-failover", "kill -9 of a master of a Redis Cluster, its replica takes over", Cluster, cluster_failover, detect_s=1),
    Scenario(
        "slots-moved",
        "a quarter of all slots moves to another master of a Redis Cluster",
        Cluster,
        slots_moved,
        finds_links=False,
        found_words="from the beginning of the resharding",
    ),
]
