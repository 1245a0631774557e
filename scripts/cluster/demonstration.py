"""What scripts/cluster.sh shows: three nodes behind a balancer and joined by Redis, their clients, and what the loss of a
node and of Redis is to them. Whatever it says has been checked: what does not come true ends it with exit code 1."""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests/e2e"), str(REPOSITORY / "tests/deploy")]

from balancers import Cluster, Haproxy  # noqa: E402
from balancers.cluster import members  # noqa: E402
from harness import Redis  # noqa: E402
from people import Person, Ticker  # noqa: E402

BOLD, GREEN, RED, PLAIN = ("\033[1m", "\033[32m", "\033[31m", "\033[0m") if sys.stdout.isatty() else ("",) * 4
SETTINGS = 'redis = "{url}"\ndrain_delay_ms = 0\ndrain_window_ms = 1000\ndrain_deadline_ms = 5000\n'
ROOM = "lobby"
NAMES = ["Ada", "Bob", "Cleo", "Dan", "Eva", "Fay", "Gus", "Hana", "Ivo"]
WAIT_S = 15


def step(title):
    print(f"\n{BOLD}== {title}{PLAIN}", flush=True)


def say(line=""):
    print(f"   {line}", flush=True)


async def eventually(probe, what, timeout_s=WAIT_S):
    """Seconds until `probe` answers something true."""
    began = time.monotonic()
    while not probe():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def is_ready(node):
    return node.admin("/readyz").status == 200


def why_not_ready(node):
    """The messages of `/readyz`."""
    return [reason["message"] for reason in json.loads(node.admin("/readyz").body)["reasons"]]


class Show:
    """Everything that runs, and the steps of the demonstration in order."""

    def __init__(self, directory, stack):
        self.redis = stack.enter_context(Redis(directory))
        self.cluster = Cluster(directory, SETTINGS.format(url=self.redis.url))
        stack.callback(self.cluster.kill)
        self.balancer = Haproxy(directory, self.cluster, "cookie")
        stack.callback(self.balancer.stop)
        self.people = []
        self.cookies = {}  # as the balancer sets them in the 101: which node each stands for

    def show_addresses(self):
        say(f"Redis      {self.redis.url}")
        for index, node in enumerate(self.cluster, 1):
            say(f"node-{index}     ws://{node.host_port}   admin http://{node.admin_address[0]}:{node.admin_address[1]}")
        say(f"balancer   ws://{self.balancer.address[0]}:{self.balancer.address[1]}/rooms/ROOM   (HAProxy, deploy/haproxy/haproxy.cfg)")

    def on(self, index):
        """Who is connected to a node."""
        return [person for person in self.people if person.node == index]

    def show_where(self):
        for index, node in enumerate(self.cluster):
            say(f"node-{index + 1}: {', '.join(person.name for person in self.on(index)) or 'nobody'}")

    async def settle(self, person):
        """Finds the node that a person who has just entered came to, and learns which cookie stands for it."""

        def found():
            for index, node in enumerate(self.cluster):
                if members(node, ROOM) > len(self.on(index)):
                    return index
            return None

        await eventually(lambda: found() is not None, f"{person.name} is on a node")
        person.node = found()
        assert self.cookies.setdefault(person.cookie, person.node) == person.node, "a cookie stands for one node"

    async def enter(self):
        step(f"4. {len(NAMES)} clients in one room, through the balancer")
        for name in NAMES:
            person = await Person.enter(name, self.balancer.url(f"/rooms/{ROOM}"))
            await self.settle(person)
            self.people.append(person)
        self.show_where()
        assert all(len(self.on(index)) == 3 for index in range(3)), "three on each node"
        assert self.redis.subscribers(ROOM) == 3
        say(f"PUBSUB NUMSUB throng:room:{ROOM}: 3, one subscription a node")

    async def cross(self):
        step("5. A message crosses nodes")
        for index in range(3):
            speaker = self.on(index)[0]
            line = f"{speaker.name}: hello from node-{index + 1}"
            began = time.monotonic()
            await speaker.say(line)
            await self.all_hear(line)
            ms = (time.monotonic() - began) * 1_000
            say(f"{line:<28} → all {len(self.people)} on 3 nodes, within {ms:.1f} ms")
        answer = self.cluster[2].admin(f"/v1/rooms/{ROOM}/publish", "POST", body=b"the API of node-3: hello")
        assert answer.status == 202, answer
        await self.all_hear("the API of node-3: hello")
        say(f"{'the API of node-3: hello':<28} → all {len(self.people)}")

    async def all_hear(self, line, people=None):
        await asyncio.gather(*(person.hears(line, WAIT_S) for person in people or self.people))

    async def order(self):
        count = 100
        step(f"6. All {len(self.people)} send {count} messages at the same time")
        before = {person: len(person.heard) for person in self.people}
        began = time.monotonic()
        await asyncio.gather(*(self.burst(person, count) for person in self.people))
        whole = count * len(self.people)
        await eventually(
            lambda: all(len(person.heard) - before[person] >= whole for person in self.people), "everybody has all of it"
        )
        took_ms = (time.monotonic() - began) * 1_000
        heard = [person.heard[before[person] :] for person in self.people]
        assert len(set(heard[0])) == whole, "each once"
        assert all(one == heard[0] for one in heard), "one order"
        say(f"each heard {whole}, none twice, all in the same order, within {took_ms:.0f} ms")

    @staticmethod
    async def burst(person, count):
        for number in range(count):
            await person.say(f"{person.name} {number}")

    async def lose_a_node(self):
        step("7. kill -9 of node-2, while Ada on node-1 says a number every 20 ms")
        speaker = self.on(0)[0]
        lost = self.on(1)
        others = [person for person in self.people if person not in lost]
        async with Ticker(speaker) as ticker:
            await ticker.reaches(20)
            self.cluster[1].kill()
            began = time.monotonic()
            for person in lost:
                await person.closed
            say(f"{', '.join(person.name for person in lost)}: closed with {lost[0].close_code} after {ms_since(began)} ms")
            for person in lost:
                person.node = None
            await asyncio.gather(*(person.come_back() for person in lost))
            say(f"they came back by the balancer within {ms_since(began)} ms, with backoff and jitter of their own:")
            for person in lost:
                person.node = self.cookies[person.cookie]
            self.show_where()
            assert not self.on(1), "nobody is on a node that is not there"
            await ticker.reaches(ticker.count + 30)
        numbers = [f"tick {number}" for number in range(ticker.count)]
        await self.all_hear(numbers[-1])
        for person in others:
            assert person.ticks() == numbers, f"{person.name} has missed something"
        say(f"the {len(others)} on node-1 and node-3 heard all {len(numbers)} numbers, each once, in order")
        for person in lost:
            heard = person.ticks()
            assert heard == [number for number in numbers if number in set(heard)], "each once, in order"
        missed = [len(numbers) - len(person.ticks()) for person in lost]
        say(f"who was away missed {', '.join(map(str, missed))} of them: nothing is kept for clients that are not connected")
        assert all(is_ready(node) for node in (self.cluster[0], self.cluster[2]))
        self.cluster[1].again()
        await eventually(lambda: self.balancer.servers("nodes")["node-2"]["status"] == "UP", "the balancer has it back")
        late = await Person.enter("Juno", self.balancer.url(f"/rooms/{ROOM}"))
        await self.settle(late)
        self.people.append(late)
        assert late.node == 1, "the balancer gives it to the empty node"
        await late.say("Juno: hello from the new node-2")
        await self.all_hear("Juno: hello from the new node-2")
        say("node-2 is started again, the balancer gives it Juno, and all hear her")

    async def lose_redis(self):
        step("8. kill -9 of Redis, and a new one after three seconds")
        for person in self.people:
            person.notices.clear()
        self.redis.kill()
        began = time.monotonic()
        await eventually(lambda: not any(map(is_ready, self.cluster)), "no node is ready")
        say(f"GET /readyz: 503 on all three after {ms_since(began)} ms: {why_not_ready(self.cluster[0])[0]}")
        assert all(node.admin("/livez").status == 200 for node in self.cluster)
        say("GET /livez: 200 on all three; nobody is disconnected")
        speaker = self.on(0)[0]
        line = f"{speaker.name}: is anybody there?"
        await speaker.say(line)
        await self.all_hear(line, self.on(0))
        assert not any(line in person.heard for person in self.people if person.node != 0)
        say(f"{line} → {', '.join(person.name for person in self.on(0))} (node-1) at once, the others not yet")
        await asyncio.sleep(max(0.0, 3 - (time.monotonic() - began)))
        self.redis.start()
        back = time.monotonic()
        await eventually(lambda: all(map(is_ready, self.cluster)), "all nodes are ready")
        say(f"Redis is back: /readyz is 200 on all three {ms_since(back)} ms later")
        assert self.redis.subscribers(ROOM) == 3
        last = f"{speaker.name}: there you are"
        await speaker.say(last)
        await self.all_hear(last)
        for person in self.people:
            assert person.closed_count == (1 if person.was_killed else 0), "nobody lost a connection to it"
            assert person.heard.count(line) <= 1, "each once"
            told = [notice for notice in person.notices if notice["type"] == "gap"]
            assert told, f"{person.name} was not told that something may be missing"
            assert line in person.heard or told, "no silent loss"
        late = [person for person in self.people if person.node != 0 and line in person.heard]
        say(f"what was said meanwhile was kept, and came to {len(late)} of the {len(self.people) - len(self.on(0))} others now")
        say(f"every client was told that it may have missed something: {json.dumps(self.people[-1].notices[0])}")
        say(f"{last} → all {len(self.people)}")

    async def stop(self):
        step("9. SIGTERM to all nodes: everybody is told to reconnect, and closed with 1012")
        for node in self.cluster:
            node.signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*(person.closed for person in self.people)), WAIT_S)
        codes = {person.close_code for person in self.people}
        assert codes == {1012}, codes
        exits = [await asyncio.to_thread(node.wait) for node in self.cluster]
        say(f"all {len(self.people)} were closed with 1012; exit codes of the nodes: {exits}")
        assert exits == [0, 0, 0]


def ms_since(began):
    return round((time.monotonic() - began) * 1_000)


async def demonstrate(show):
    await show.enter()
    await show.cross()
    await show.order()
    await show.lose_a_node()
    await show.lose_redis()
    await show.stop()


def stay(show):
    url = f"ws://{show.balancer.address[0]}:{show.balancer.address[1]}/rooms/{ROOM}"
    admin = "http://{}:{}".format(*show.cluster[0].admin_address)
    say()
    say("In other terminals:")
    say(f"  join and talk     {sys.executable} -m websockets {url}")
    say(f"  say something     curl -d 'hello, everybody' {admin}/v1/rooms/{ROOM}/publish")
    say(f"  is it ready       curl -i {admin}/readyz")
    say(f"  what Redis sees   redis-cli -p {show.redis.port} pubsub numsub throng:room:{ROOM}")
    say(f"  kill node-2       kill -9 {show.cluster[1].process.pid}")
    say(f"  stop Redis        kill -STOP {show.redis.process.pid}; kill -CONT {show.redis.process.pid}")
    say()
    say("Ctrl-C ends all of it.")
    signal.pause()


def interrupted(number, _frame):
    sys.exit(128 + number)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--stay", action="store_true")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="throng-cluster-") as name, ExitStack() as stack:
        # Links of a Unix socket have short names; the directory is the demonstration's own.
        step("3. Starting: Redis, three nodes, HAProxy")
        show = Show(Path(name), stack)
        show.show_addresses()
        if options.stay:
            stay(show)
        try:
            asyncio.run(demonstrate(show))
        except (AssertionError, OSError, TimeoutError) as fault:
            for node in show.cluster:
                print(f"\n--- {node.log_path.name}\n" + "\n".join(node.log().splitlines()[-15:]))
            print(f"\n{RED}failed:{PLAIN} {fault!r}", file=sys.stderr)
            return 1
    print(f"\n{GREEN}All of it came true{PLAIN}, in {time.monotonic() - began:.0f} s.", end="   ")
    print("scripts/cluster.sh --stay leaves it running to play with.")
    return 0


if __name__ == "__main__":
    os.chdir(REPOSITORY)
    sys.exit(main())
