"""Two nodes under load: nothing is lost and all see one order; a storm of new rooms is shaped."""

import asyncio
import json
import subprocess
import time

import pytest
from harness import eventually
from harness.load import load_binary
from harness.server import clean_environment

QUICK = "drain_window_ms = 200\nclose_timeout_ms = 300\n"


@pytest.fixture
def pair(serve, redis):
    return [serve(QUICK, flags=["--redis", redis.url, "--node-id", name], shards=1) for name in "ab"]


def test_a_fan_out_over_two_nodes_loses_nothing_and_has_one_order(pair, tmp_path):
    a, b = pair
    path = tmp_path / "load.json"
    done = subprocess.run(
        [
            load_binary(),
            "fanout",
            *("--target", a.url("")),
            *("--target", b.url("")),
            *("--rooms", "50", "--members", "10", "--publishers", "2"),
            *("--rate", "10", "--duration", "3", "--json", str(path)),
        ],
        capture_output=True,
        text=True,
        timeout=80,
        env=clean_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(path.read_text())["figures"]
    assert figures["published"] > 1_000 and figures["delivered"] == 10 * figures["published"], figures
    for fault in ("lost", "duplicated", "reordered", "corrupted", "misrouted", "lost_as_told"):
        assert figures[fault] == 0, figures
    assert a.metric("throng_redis_gaps_total") == 0 and b.metric("throng_redis_gaps_total") == 0
    assert a.metric("throng_redis_messages_published_total") > 0
    assert b.metric("throng_redis_messages_published_total") > 0


async def test_many_rooms_at_once_are_subscribed_to_in_batches(pair, redis):
    server = pair[0]
    count = 2_000
    request = (
        "GET /rooms/storm-{} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    writers = []

    async def join(index):
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(request.format(index).encode())
        writers.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1])

    began = time.monotonic()
    statuses = await asyncio.gather(*(join(index) for index in range(count)))
    print(f"{count} rooms in {time.monotonic() - began:.2f} s")
    assert set(statuses) == {101}
    assert server.metric("throng_redis_subscriptions") == count + 1, "and everybody"
    commands = server.metric("throng_redis_commands_total", command="subscribe")
    assert commands < count / 2, f"{commands} commands"
    redis.kill()
    redis.start()
    began = time.monotonic()
    eventually(lambda: server.admin("/readyz").status == 200, "it is ready", 20)
    assert server.metric("throng_redis_subscriptions") == count + 1, "and everybody"
    again = server.metric("throng_redis_commands_total", command="subscribe") - commands
    print(f"{count} rooms again in {time.monotonic() - began:.2f} s, {again} commands")
    assert again <= count / 512 + 3
    for writer in writers:
        writer.close()
