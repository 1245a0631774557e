"""What scripts/run.sh shows: people in rooms on several shards, what arrives, the metrics, and a graceful stop."""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

CLIENTS = Path(__file__).resolve().parent.parent / "tests/e2e/clients"
ROOMS = {
    "kitchen": ["Ada", "Bob", "Cleo", "Dan"],
    "ticker:EUR": ["Eva", "Fay", "Gus"],
    "日本語": ["Hana", "Ivo", "Juno"],
}
LINES = {
    "kitchen": [("Ada", "Is there any coffee left?"), ("Dan", "Half a pot."), ("Bob", "Was. Sorry.")],
    "ticker:EUR": [("Eva", "1.0842"), ("Gus", "1.0845")],
    "日本語": [("Hana", "こんにちは"), ("Juno", "やあ、元気?")],
}
METRICS = (
    "throng_connections{",
    "throng_rooms{",
    "throng_messages_received_total",
    "throng_deliveries_total",
    "throng_publish_to_deliver_seconds_count",
    "throng_queued_bytes{",
    "process_resident_memory_bytes",
)
BOLD, PLAIN = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
WAIT_S = 20


def step(title):
    print(f"\n{BOLD}== {title}{PLAIN}", flush=True)


def say(line):
    print(f"   {line}", flush=True)


class Admin:
    def __init__(self, url):
        self.url = url

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=5) as answer:
            return answer.read().decode()

    def status(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as refusal:
            return refusal.code
        except OSError:
            return None

    def shard_of_port(self, room):
        """For each member of a room, by the port it comes from: its shard."""
        about = json.loads(self.get("/v1/rooms/" + urllib.request.quote(room, safe="")))
        shards = {}
        for member in about["connections"]:
            connection = json.loads(self.get(f"/v1/connections/{member}"))
            shards[int(connection["peer"].rsplit(":", 1)[1])] = connection["shard"]
        return shards


class Person:
    """A member of a room by PyPI `websockets`; what is heard is kept."""

    def __init__(self, name, room, socket):
        self.name, self.room, self.socket = name, room, socket
        self.heard, self.told, self.closed_at, self.shard = [], None, None, None
        self.port = socket.local_address[1]
        self.news = asyncio.Event()
        self.task = asyncio.create_task(self._listen())

    async def _listen(self):
        try:
            async for message in self.socket:
                if message.startswith('{"type":"reconnect"'):
                    self.told = json.loads(message)
                else:
                    self.heard.append(message)
                self.news.set()
        except ConnectionClosed:
            pass
        self.closed_at = time.monotonic()

    async def hears(self, count):
        async with asyncio.timeout(WAIT_S):
            while len(self.heard) < count:
                self.news.clear()
                await self.news.wait()


async def enter(url):
    """Everybody joins."""
    people = []
    for room, names in ROOMS.items():
        for name in names:
            socket = await connect(f"{url}/rooms/{urllib.request.quote(room, safe='')}", compression=None)
            people.append(Person(name, room, socket))
    return people


async def node_client(url):
    """One more member, by npm `ws`."""
    process = await asyncio.create_subprocess_exec(
        "node",
        str(CLIENTS / "talk.mjs"),
        f"{url}/rooms/kitchen",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    opened = json.loads(await asyncio.wait_for(process.stdout.readline(), WAIT_S))
    assert opened["event"] == "open", opened
    return process


async def node_event(process):
    return json.loads(await asyncio.wait_for(process.stdout.readline(), WAIT_S))


async def ready(admin, pid):
    deadline = time.monotonic() + WAIT_S
    while admin.status("/readyz") != 200:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            sys.exit("the server has ended")
        if time.monotonic() > deadline:
            sys.exit("the server does not become ready")
        await asyncio.sleep(0.05)
    say("GET /readyz: 200")


async def talk(people, node):
    """Lines are said; each is shown with who heard it."""
    by_name = {person.name: person for person in people}
    expected = dict.fromkeys(ROOMS, 0)
    for room, lines in LINES.items():
        members = [person for person in people if person.room == room]
        print(f"\n   {BOLD}{room}{PLAIN}")
        for name, words in lines:
            line = f"{name}: {words}"
            await by_name[name].socket.send(line)
            expected[room] += 1
            await asyncio.gather(*(member.hears(expected[room]) for member in members))
            assert all(member.heard[-1] == line for member in members), "somebody heard something else"
            heard = ", ".join(f"{member.name} (shard {member.shard})" for member in members)
            if node and room == "kitchen":
                event = await node_event(node)
                assert event == {"event": "text", "data": line}, event
                heard += ", Node"
            say(f"{line:<32} → {heard}")
        if node and room == "kitchen":
            line = "Node: I will make some."
            node.stdin.write(json.dumps({"say": line}).encode() + b"\n")
            expected[room] += 1
            await asyncio.gather(*(member.hears(expected[room]) for member in members))
            assert await node_event(node) == {"event": "text", "data": line}
            say(f"{line:<32} → {', '.join(member.name for member in members)}, Node")


def show_stats(admin):
    stats = json.loads(admin.get("/v1/stats"))
    for shard in stats["shards"]:
        say(
            f"shard {shard['shard']} on processor {shard['processor']}: {shard['connections']} connections, "
            f"{shard['rooms']} rooms, {shard['messages_received']} messages in, {shard['deliveries']} deliveries"
        )


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--admin", required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--node", choices=["yes", "no"], default="no")
    options = parser.parse_args()
    admin = Admin(options.admin)
    await ready(admin, options.pid)

    shard_count = len(json.loads(admin.get("/v1/stats"))["shards"])
    people = await enter(options.url)
    node = await node_client(options.url) if options.node == "yes" else None
    step(f"4. {len(people) + bool(node)} clients in {len(ROOMS)} rooms, on {shard_count} shards")
    for room in ROOMS:
        shards = admin.shard_of_port(room)
        for person in people:
            if person.room == room:
                person.shard = shards[person.port]
    await talk(people, node)

    step("5. The same, shard by shard (GET /v1/stats)")
    show_stats(admin)
    step("6. Some lines of GET /metrics")
    for line in admin.get("/metrics").splitlines():
        if line.startswith(METRICS):
            say(line)

    step("7. SIGTERM: everybody is told to reconnect, and closed with 1012, spread over 3 s")
    began = time.monotonic()
    os.kill(options.pid, signal.SIGTERM)
    await asyncio.sleep(0.3)
    say(f"GET /readyz: {admin.status('/readyz')}")
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(person.task for person in people))
    for person in sorted(people, key=lambda person: person.closed_at):
        say(
            f"after {person.closed_at - began:4.2f} s: {person.name:<4} is told to reconnect after "
            f"{person.told['after_ms'] if person.told else '?'} ms, and closed with {person.socket.close_code}"
        )
    if node:
        events = [await node_event(node), await node_event(node)]
        say(f"and Node hears {events[0]['data']}, and is closed with {events[1]['code']}")
        assert events[1]["code"] == 1012
        await asyncio.wait_for(node.wait(), WAIT_S)
    assert all(person.told and person.socket.close_code == 1012 for person in people), "somebody was not told"


asyncio.run(main())
