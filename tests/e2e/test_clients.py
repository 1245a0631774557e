"""Three clients that others wrote, as they are: PyPI `websockets`, npm `ws`, headless Chromium. And all in one room."""

import asyncio
import base64
import functools
import http.server
import json
import shutil
import signal
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from harness import chromium
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

CLIENTS = Path(__file__).parent / "clients"
needs_ws = pytest.mark.skipif(
    not shutil.which("node") or not (CLIENTS / "node_modules/ws").exists(),
    reason="needs node and `npm install` in tests/e2e/clients",
)
needs_chromium = pytest.mark.skipif(not chromium.program(), reason="needs Chromium (Debian package chromium)")


# --- PyPI websockets --------------------------------------------------------------------------------------------


async def test_websockets_sends_and_hears_text_and_bytes(server):
    async with connect(server.url("/rooms/py")) as ada, connect(server.url("/rooms/py")) as bob:
        await ada.send("text")
        await ada.send(b"\x00bytes")
        for member in (ada, bob):
            assert [await member.recv(), await member.recv()] == ["text", b"\x00bytes"]


async def test_websockets_fragments_are_joined(server):
    async with connect(server.url("/rooms/py-fragments")) as ada:
        await ada.send(["in ", "three ", "pieces"])
        assert await ada.recv() == "in three pieces"


async def test_websockets_pings_are_answered_and_close_is_clean(server):
    async with connect(server.url("/rooms/py-ping")) as ada:
        assert await asyncio.wait_for(await ada.ping(), 5) >= 0
    assert ada.close_code == 1000


async def test_websockets_offers_compression_and_does_without(server):
    async with connect(server.url("/rooms/py-deflate"), compression="deflate") as ada:
        await ada.send("x" * 5000)
        assert await ada.recv() == "x" * 5000
        assert ada.response.headers.get("Sec-WebSocket-Extensions") is None


async def test_websockets_understands_a_refusal(server):
    with pytest.raises(InvalidStatus) as refused:
        await connect(server.url("/nowhere"))
    assert refused.value.response.status_code == 404


async def test_websockets_learns_that_a_message_was_too_big(server):
    async with connect(server.url("/rooms/py-big"), max_size=None) as ada:
        with pytest.raises(ConnectionClosed) as closed:
            await ada.send(b"x" * 70_000)
            await ada.recv()
        assert closed.value.rcvd.code == 1009


# --- npm ws -----------------------------------------------------------------------------------------------------


class Node:
    """A member by npm `ws` in a process of its own."""

    def __init__(self, process):
        self.process = process

    async def order(self, **order):
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        await self.process.stdin.drain()

    async def event(self, kind):
        """The next event, which must be of this kind."""
        line = await asyncio.wait_for(self.process.stdout.readline(), 20)
        event = json.loads(line)
        assert event["event"] == kind, event
        return event


@asynccontextmanager
async def node(url):
    process = await asyncio.create_subprocess_exec(
        "node",
        str(CLIENTS / "talk.mjs"),
        url,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Node(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@needs_ws
async def test_ws_sends_and_hears_text_and_bytes(server):
    async with node(server.url("/rooms/js")) as ada, node(server.url("/rooms/js")) as bob:
        for member in (ada, bob):
            assert (await member.event("open"))["extensions"] == "", "no extension was agreed on"
        await ada.order(say="héllo 🦀")
        await ada.order(bytes=base64.b64encode(b"\x00\xff").decode())
        for member in (ada, bob):
            assert (await member.event("text"))["data"] == "héllo 🦀"
            assert base64.b64decode((await member.event("bytes"))["data"]) == b"\x00\xff"


@needs_ws
async def test_ws_pings_are_answered_and_close_is_clean(server):
    async with node(server.url("/rooms/js-ping")) as ada:
        await ada.event("open")
        await ada.order(ping="there?")
        assert (await ada.event("pong"))["data"] == "there?"
        await ada.order(close=4321)
        assert (await ada.event("closed"))["code"] == 4321


@needs_ws
async def test_ws_understands_a_refusal(server):
    async with node(server.url("/nowhere")) as ada:
        assert (await ada.event("failed"))["status"] == 404


# --- Chromium ---------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def origin(tmp_path):
    """A page at an origin of its own."""
    (tmp_path / "page.html").write_text("<!doctype html><title>throng</title>")
    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{pages.server_port}"
    pages.shutdown()
    pages.server_close()


JOIN = """
const join = (url) => new Promise((resolve, reject) => {
  const socket = new WebSocket(url);
  socket.binaryType = 'arraybuffer';
  const heard = [], waiting = [];
  const put = (event) => (waiting.length ? waiting.shift()(event) : heard.push(event));
  socket.onmessage = (m) => put(typeof m.data === 'string' ? m.data : [...new Uint8Array(m.data)]);
  socket.onclose = (c) => { put({ closed: c.code, clean: c.wasClean }); reject(new Error('closed ' + c.code)); };
  socket.onopen = () => resolve({ socket, next: () => heard.length ? heard.shift() : new Promise((r) => waiting.push(r)) });
});
"""


@needs_chromium
async def test_a_page_sends_and_hears_text_and_bytes_and_closes(server, tmp_path, origin):
    async with chromium.Chromium(tmp_path) as browser:
        run = await browser.page(f"{origin}/page.html")
        heard = await run(
            JOIN
            + f"""
            const ada = await join({server.url("/rooms/browser")!r});
            const bob = await join({server.url("/rooms/browser?echo=0")!r});
            ada.socket.send('hélló 🦀');
            ada.socket.send(new Uint8Array([0, 128, 255]));
            ada.socket.send('x'.repeat(65536));
            const heard = [await bob.next(), await bob.next(), (await bob.next()).length, await ada.next()];
            await ada.next(); await ada.next(); // a page hears nothing any more once it has begun to close
            ada.socket.close(4001, 'done');
            heard.push(await ada.next());
            bob.socket.close();
            return heard.concat([ada.socket.extensions, ada.socket.protocol]);
            """
        )
    assert heard[:4] == ["hélló 🦀", [0, 128, 255], 65_536, "hélló 🦀"]
    assert heard[4]["closed"] == 4001 and heard[4]["clean"], heard[4]
    assert heard[5:] == ["", ""], "no extension and no subprotocol was agreed on"


@needs_chromium
async def test_a_page_of_another_origin_is_refused(serve, tmp_path, origin):
    server = serve(f'origins = ["{origin}"]\n', shards=1)
    script = (
        JOIN
        + f"""
        try {{ const ada = await join({server.url("/rooms/origin")!r}); ada.socket.close(); return 'in'; }}
        catch (error) {{ return error.message; }}
    """
    )
    async with chromium.Chromium(tmp_path) as browser:
        allowed = await browser.page(f"{origin}/page.html")
        assert await allowed(script) == "in"
        foreign = await browser.page("about:blank")
        assert await foreign(script) == "closed 1006"
    assert server.metric("throng_handshakes_total", outcome="origin_forbidden") == 1


@needs_chromium
async def test_a_page_is_told_to_reconnect_when_the_server_stops(serve, tmp_path, origin):
    server = serve("drain_window_ms = 200\n", shards=1)
    async with chromium.Chromium(tmp_path) as browser:
        run = await browser.page(f"{origin}/page.html")
        hearing = asyncio.create_task(
            run(
                JOIN
                + f"""
                const ada = await join({server.url("/rooms/stop")!r});
                ada.socket.send('in');
                return [await ada.next(), JSON.parse(await ada.next()), await ada.next()];
                """
            )
        )
        await asyncio.to_thread(server.await_open, 1)
        await asyncio.to_thread(server.await_metric, "throng_deliveries_total", 1)
        server.signal(signal.SIGTERM)
        echo, notice, closed = await hearing
    assert echo == "in"
    assert notice["type"] == "reconnect" and notice["after_ms"] > 0
    assert closed["closed"] == 1012 and closed["clean"]
    assert await asyncio.to_thread(server.wait) == 0


# --- all of them ------------------------------------------------------------------------------------------------


@needs_ws
@needs_chromium
async def test_all_three_meet_in_one_room(server, tmp_path, origin):
    async with (
        chromium.Chromium(tmp_path) as browser,
        node(server.url("/rooms/meeting")) as javascript,
        connect(server.url("/rooms/meeting")) as python,
    ):
        await javascript.event("open")
        run = await browser.page(f"{origin}/page.html")
        page = asyncio.create_task(
            run(
                JOIN
                + f"""
                const page = await join({server.url("/rooms/meeting")!r});
                page.socket.send('from the page');
                const heard = [await page.next(), await page.next(), await page.next()];
                page.socket.close();
                return heard;
                """
            )
        )
        heard = [await python.recv()]
        await javascript.event("text")
        await python.send("from python")
        heard.append(await python.recv())
        await javascript.event("text")
        await javascript.order(say="from node")
        heard.append(await python.recv())
        await javascript.event("text")
        assert heard == ["from the page", "from python", "from node"]
        assert await page == heard
