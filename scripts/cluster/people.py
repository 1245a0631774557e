"""Clients by PyPI `websockets` that keep what they hear, notice when they are cut off, and come back."""

import asyncio
import json
import random
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

BACK_FIRST_S = 0.1
BACK_MAX_S = 2.0


class Person:
    """A member of a room. Notices of the server are kept apart from what others said."""

    def __init__(self, name, url):
        self.name, self.url = name, url
        self.node = None
        self.heard, self.notices = [], []
        self.closed_count = 0
        self.close_code = None
        self.was_killed = False
        self.news = asyncio.Event()

    @classmethod
    async def enter(cls, name, url):
        person = cls(name, url)
        await person._connect()
        return person

    async def _connect(self):
        self.socket = await connect(self.url, compression=None, open_timeout=5)
        # Which node it is, to a balancer that keeps clients where they are. It is not sent back: nobody is to wait here.
        self.cookie = self.socket.response.headers.get("Set-Cookie", "").split(";")[0]
        self.closed = asyncio.ensure_future(self._listen(self.socket))

    async def _listen(self, socket):
        try:
            async for message in socket:
                if message.startswith('{"type":'):
                    self.notices.append(json.loads(message))
                else:
                    self.heard.append(message)
                self.news.set()
        except ConnectionClosed:
            pass
        self.closed_count += 1
        self.close_code = socket.close_code

    async def come_back(self):
        """As a client should after a connection that ended: full jitter, doubled up to a bound."""
        self.was_killed = True
        delay_s = BACK_FIRST_S
        while True:
            await asyncio.sleep(random.uniform(0, delay_s))
            try:
                return await self._connect()
            except (OSError, InvalidHandshake, TimeoutError):
                delay_s = min(delay_s * 2, BACK_MAX_S)

    async def say(self, line):
        await self.socket.send(line)

    async def hears(self, line, timeout_s):
        """Awaits a line."""
        deadline = time.monotonic() + timeout_s
        while line not in self.heard:
            self.news.clear()
            try:
                await asyncio.wait_for(self.news.wait(), deadline - time.monotonic())
            except TimeoutError:
                raise AssertionError(f"{self.name} has not heard {line!r} within {timeout_s} s") from None

    def ticks(self):
        """The numbers of a [`Ticker`] that it heard, in the order in which they came."""
        return [line for line in self.heard if line.startswith("tick ")]


class Ticker:
    """A person who says a number every so many seconds while the `with` block lasts. `count`: how many were said."""

    def __init__(self, person, every_s=0.02):
        self.person, self.every_s = person, every_s
        self.count = 0

    async def __aenter__(self):
        self.is_over = False
        self.task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_):
        self.is_over = True
        await self.task

    async def _run(self):
        while not self.is_over:
            await self.person.say(f"tick {self.count}")
            self.count += 1
            await asyncio.sleep(self.every_s)

    async def reaches(self, count):
        while self.count < count:
            await asyncio.sleep(self.every_s)
