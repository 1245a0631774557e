"""Members of rooms on every node, publishers among them, and the truth about what each heard, was told and missed."""

import asyncio
import json
import math
import random
import time
from collections import Counter

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

ROOM_COUNT = 8
MEMBERS_PER_NODE = 2  # of each room; the first one publishes
EVERY_S = 0.1
BACK_FIRST_S, BACK_MAX_S = 0.1, 2.0
# What was sent so shortly before a connection ended may have died with it: its end says so.
EDGE_S = 0.5
# A gap of unknown size speaks of what the fault took, and of this much after everything was found healed.
AFTER_HEALED_S = 1.0


class Member:
    """A member of a room. It comes back when its connection ends, to the next node that takes it."""

    def __init__(self, traffic, room, node, publisher):
        self.traffic, self.room, self.node, self.publisher = traffic, room, node, publisher
        self.heard = {}  # (publisher, number) -> when, in the order in which they came
        self.twice = 0
        self.notices = []
        self.away = []  # [from, to] of each absence, `to` None while it lasts
        self.close_codes = []
        self.sent = {}  # number -> when
        self.socket = None

    async def live(self):
        delay_s, index = BACK_FIRST_S, self.node
        while not self.traffic.is_over:
            try:
                url = f"{self.traffic.urls[index]}/rooms/{self.room}"
                self.socket = await connect(url, compression=None, open_timeout=3, ping_interval=None, max_queue=None)
            except (OSError, InvalidHandshake, TimeoutError, EOFError, ConnectionClosed):
                await asyncio.sleep(random.uniform(0, delay_s))
                delay_s = min(2 * delay_s, BACK_MAX_S)
                index = (index + 1) % len(self.traffic.urls)
                continue
            self.node, delay_s = index, BACK_FIRST_S
            if self.away:
                self.away[-1][1] = time.monotonic()
            self.traffic.opened.set()
            await self._listen()
            self.socket = None
            if not self.traffic.is_over:
                self.away.append([time.monotonic(), None])
                index = (index + 1) % len(self.traffic.urls)

    async def _listen(self):
        try:
            async for message in self.socket:
                self._hear(message, time.monotonic())
        except ConnectionClosed:
            pass
        self.close_codes.append(self.socket.close_code)

    def _hear(self, message, now):
        if message.startswith('{"type":'):
            notice = json.loads(message)
            self.notices.append((now, notice))
            return
        publisher, number = message.split(":", 2)[:2]
        key = int(publisher), int(number)
        if key in self.heard:
            self.twice += 1
        else:
            self.heard[key] = now

    async def publish(self):
        """A number every so often; more bytes while the traffic is heavy."""
        number = 0
        while not self.traffic.is_silent:
            await asyncio.sleep(EVERY_S)
            if self.socket is None:
                continue
            text = f"{self.publisher}:{number}:" + "x" * self.traffic.filler_bytes
            try:
                self.sent[number] = time.monotonic()
                number += 1
                await self.socket.send(text)
            except ConnectionClosed:
                pass

    def told(self, kind, key):
        """When it was told so, and what: `[(when, value)]`, the earliest first."""
        return [(when, notice[key]) for when, notice in self.notices if notice["type"] == kind]

    def is_away(self, at):
        """Whether what was sent at that moment may have missed it because it was not connected."""
        return any(begin - EDGE_S <= at <= (end or at) + EDGE_S for begin, end in self.away)

    def order_is_kept(self):
        """Whether it heard each publisher's numbers as they rise."""
        last = Counter()
        for publisher, number in self.heard:
            if number + 1 <= last[publisher]:
                return False
            last[publisher] = number + 1
        return True


class Traffic:
    """All members, from `with` to its end."""

    def __init__(self, urls):
        self.urls = urls
        self.is_over = self.is_silent = False
        self.filler_bytes = 0
        self.opened = asyncio.Event()
        self.members, self.tasks = [], []
        publisher = 0
        for room in range(ROOM_COUNT):
            for node in range(len(urls)):
                for index in range(MEMBERS_PER_NODE):
                    publishes = index == 0
                    self.members.append(Member(self, f"room-{room}", node, publisher if publishes else None))
                    publisher += publishes

    async def __aenter__(self):
        for member in self.members:
            self.tasks.append(asyncio.create_task(member.live()))
        async with asyncio.timeout(30):
            while not all(member.socket for member in self.members):
                self.opened.clear()
                await self.opened.wait()
        for member in self.members:
            if member.publisher is not None:
                self.tasks.append(asyncio.create_task(member.publish()))
        return self

    async def __aexit__(self, *_):
        self.is_over = self.is_silent = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for member in self.members:
            if member.socket:
                member.socket.transport.abort()

    def mates(self, member):
        return [mate for mate in self.members if mate.room == member.room]

    def publishers(self, node=None):
        return [member for member in self.members if member.publisher is not None and node in (None, member.node)]

    async def crosses(self, since, timeout_s):
        """Awaits that in every room something that each publisher sent after `since` has come to each member; returns when that was so."""
        deadline = time.monotonic() + timeout_s
        open_pairs = {(sender, mate) for sender in self.publishers() for mate in self.mates(sender)}
        latest = since
        while True:
            for sender, mate in list(open_pairs):
                fresh = [number for number, at in reversed(sender.sent.items()) if at >= since]
                heard = [at for number in fresh if (at := mate.heard.get((sender.publisher, number))) is not None]
                if heard:
                    latest = max(latest, min(heard))
                    open_pairs.discard((sender, mate))
            if not open_pairs:
                return latest
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.02)

    async def fall_silent(self, timeout_s=10):
        """Ends the publishing, and awaits that everything that can come has come."""
        self.is_silent = True
        deadline = time.monotonic() + timeout_s
        count, since = -1, time.monotonic()
        while time.monotonic() < deadline and time.monotonic() - since < 1.5:
            now = sum(len(member.heard) + len(member.notices) for member in self.members)
            if now != count:
                count, since = now, time.monotonic()
            await asyncio.sleep(0.1)

    def not_accepted(self, sender):
        """Numbers of which the publisher was told that they go to nobody elsewhere: none elsewhere has them, and they were sent before it
        was told."""
        elsewhere = [mate for mate in self.mates(sender) if mate.node != sender.node]
        nobody = {number: at for number, at in sender.sent.items() if not any((sender.publisher, number) in mate.heard for mate in elsewhere)}
        return set(nobody) - set(counted_out(nobody, sender.told("backplane", "refused")))

    def verdict(self, began=0.0, healed=math.inf):
        """What was published, heard, missed, told, of a fault that began and was healed then; and what each room lost."""
        found, rooms = Counter(), Counter()
        codes, told = Counter(), Counter()
        refused = {sender: self.not_accepted(sender) for sender in self.publishers()}
        for member in self.members:
            missing = {}
            for sender in self.mates(member):
                if sender.publisher is None:
                    continue
                for number, at in sender.sent.items():
                    found["expected"] += 1
                    if (sender.publisher, number) in member.heard:
                        found["heard"] += 1
                    elif member.is_away(at) or sender.is_away(at):
                        found["away"] += 1
                    elif number in refused[sender]:
                        found["refused"] += 1
                    else:
                        missing[sender.publisher, number] = at
            found["lost"] += len(missing)
            rooms[member.room] += len(missing)
            found["twice"] += member.twice
            found["disordered"] += not member.order_is_kept()
            gaps = member.told("gap", "missed")
            for _, missed in gaps:
                told["a gap of unknown size" if missed is None else "a gap with its size"] += 1
            told["messages refused to their publishers"] += sum(count for _, count in member.told("backplane", "refused"))
            unknown = max((when for when, missed in gaps if missed is None), default=-math.inf)
            until = min(unknown, healed + AFTER_HEALED_S)
            missing = {key: at for key, at in missing.items() if not began - EDGE_S <= at <= until}
            found["silent"] += len(counted_out(missing, [gap for gap in gaps if gap[1] is not None]))
            codes.update(code for code in member.close_codes if code is not None)
        found["published"] = sum(len(member.sent) for member in self.publishers())
        return found, told, codes, +rooms


def counted_out(missing, notices):
    """What is left of `{key: when it was sent}` after notices `(when, count)`: each covers so many of what was sent before it."""
    left = sorted(missing, key=missing.get)
    for when, count in sorted(notices):
        sent = sum(missing[key] <= when for key in left)
        left = left[min(count, sent) :]
    return left
