"""Headless Chromium through its DevTools protocol: pages run scripts and answer with values."""

import asyncio
import itertools
import json
import shutil
import subprocess
from pathlib import Path

from websockets.asyncio.client import connect

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-proxy-server",
    # Nothing but this machine can be named.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
]


def program():
    """Where Chromium is, or `None`."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Chromium:
    """A browser with a profile of its own, ended with the `async with` block."""

    def __init__(self, directory):
        self.profile = Path(directory) / "profile"
        self.process = None
        self.numbers = itertools.count(1)
        self.waiting = {}

    async def __aenter__(self):
        self.process = subprocess.Popen(
            [program(), *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port, path = await self._debugger()
            self.socket = await connect(f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None, proxy=None)
        except BaseException:
            self._end()
            raise
        self.reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_):
        self.reading.cancel()
        await self.socket.close()
        self._end()

    def _end(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    async def _debugger(self):
        """The port and the path that the browser writes when it listens."""
        file = self.profile / "DevToolsActivePort"
        for _ in range(600):
            assert self.process.poll() is None, f"chromium ended with {self.process.returncode}"
            if file.exists() and len(lines := file.read_text().splitlines()) == 2:
                return int(lines[0]), lines[1]
            await asyncio.sleep(0.05)
        raise AssertionError("chromium does not listen for a debugger")

    async def _read(self):
        async for text in self.socket:
            message = json.loads(text)
            waiting = self.waiting.pop(message.get("id"), None)
            if waiting and not waiting.done():
                waiting.set_result(message)

    async def call(self, method, session=None, **parameters):
        number = next(self.numbers)
        self.waiting[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        await self.socket.send(json.dumps(message))
        answer = await asyncio.wait_for(self.waiting[number], 60)
        assert "error" not in answer, answer
        return answer["result"]

    async def page(self, url="about:blank"):
        """A new page, loaded. Answers a function that runs an async script body in it and returns its value."""
        target = (await self.call("Target.createTarget", url=url))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]

        async def run(body):
            result = await self.call(
                "Runtime.evaluate",
                session,
                expression=f"(async () => {{ {body} }})()",
                awaitPromise=True,
                returnByValue=True,
            )
            assert "exceptionDetails" not in result, result["exceptionDetails"]
            return result["result"].get("value")

        for _ in range(200):
            if await run("return document.readyState === 'complete' ? location.href : ''") == url:
                return run
            await asyncio.sleep(0.05)
        raise AssertionError(f"{url} was not loaded")
