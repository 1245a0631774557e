"""Nodes that stop behind a balancer: nobody new, everybody told, nobody refused, and a restart of all of them in turn."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from balancers.cluster import Cluster, members
from balancers.render import DEPLOY
from conftest import need
from harness import Redis, eventually
from harness.server import binary
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

both = pytest.mark.parametrize("kind", ("nginx", "haproxy"))

# As deploy/ has it for HAProxy: longer than its checks take to see a 503 (2 s, 500 ms, and the checks themselves).
SETTINGS = """\
drain_delay_ms = 4000
drain_window_ms = 2000
drain_deadline_ms = 12000
reconnect_after_ms = 300
"""


class Client:
    """One that stays: told to come back it waits as long as it was told, and comes. Counts what it should never see."""

    def __init__(self, url):
        self.url = url
        self.told = 0
        self.untold = 0
        self.refused = []
        self.waits_s = []
        self.codes = set()
        self.heard = []
        self.task = asyncio.create_task(self._stay())
        self.joined = asyncio.Event()

    async def connect(self):
        return await connect(self.url, compression=None, open_timeout=None)

    async def _stay(self):
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(10):
                    room = await self.connect()
            except (InvalidHandshake, OSError, TimeoutError) as refusal:
                self.refused.append(repr(refusal))
                await asyncio.sleep(0.5)
                continue
            self.waits_s.append(time.monotonic() - began)
            self.joined.set()
            advice_s = None
            try:
                async for message in room:
                    if message.startswith('{"type":"reconnect"'):
                        advice_s = json.loads(message)["after_ms"] / 1000
                    else:
                        self.heard.append(message)
            except ConnectionClosed:
                pass
            except asyncio.CancelledError:
                await room.close()
                raise
            self.codes.add(room.close_code)
            if advice_s is None:
                self.untold += 1
            else:
                self.told += 1
                await asyncio.sleep(advice_s)


async def stop_all(clients):
    for client in clients:
        client.task.cancel()
    await asyncio.gather(*(client.task for client in clients), return_exceptions=True)


async def settled(cluster, count):
    """Awaits that the nodes hold `count` connections together."""

    def held():
        return sum(open_count or 0 for open_count in cluster.open_counts()) == count

    await asyncio.to_thread(eventually, held, f"{count} connections", 20)


@pytest.fixture
def draining(tmp_path):
    directory = tmp_path / "draining"
    directory.mkdir()
    nodes = Cluster(directory, SETTINGS)
    yield nodes
    nodes.kill()


@both
async def test_clients_of_a_node_that_stops_are_told_and_nobody_is_refused(kind, draining, balance):
    cluster = draining
    balancer = balance(kind, cluster, "room")
    clients = [Client(balancer.url(f"/rooms/stay-{index}")) for index in range(60)]
    await settled(cluster, 60)
    stopping = cluster[0]
    there = int(stopping.open_count())
    assert 0 < there < 60
    stopping.signal(signal.SIGTERM)
    # Newcomers, all the while: each must get in at its first try.
    newcomers = []
    while stopping.process.poll() is None:
        newcomers.append(Client(balancer.url(f"/rooms/new-{len(newcomers)}")))
        await asyncio.sleep(0.1)
    assert stopping.wait() == 0, stopping.log()
    await settled(cluster, 60 + len(newcomers))
    try:
        assert [refusal for client in clients + newcomers for refusal in client.refused] == []
        assert sum(client.untold for client in clients + newcomers) == 0, "closed without a word"
        assert sum(client.told for client in clients) == there
        assert {code for client in clients for code in client.codes} == {1012}
        slowest_s = max(wait_s for client in clients + newcomers for wait_s in client.waits_s)
        # nginx has no checks: whoever comes while the listener closes waits until the kernel has tried again.
        assert slowest_s < (2.5 if kind == "nginx" else 1.5), slowest_s
    finally:
        await stop_all(clients + newcomers)


@both
@pytest.mark.parametrize("back", (False, True), ids=("closed", "come-back"))
def test_the_load_generator_counts_nothing_wrong_when_a_node_stops_behind_a_balancer(kind, back, draining, balance, tmp_path):
    """Three hundred members of sixty rooms with traffic on, and a third of the rooms has to go."""
    generator = Path(binary()).with_name("throng-load")
    if not generator.exists():
        pytest.skip("throng-load is not built: cargo build -p throng-load")
    balancer = balance(kind, draining, "room")
    report = tmp_path / "report.json"
    target = balancer.url("").removesuffix("/")
    command = [generator, "drain", "--target", target, "--stop-pid", str(draining[0].process.pid), "--json", report]
    command += ["--rooms", "60", "--members", "5", "--rate", "5", "--quiet", *(["--come-back"] if back else [])]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=80, check=False)
    assert draining[0].wait() == 0
    figures = json.loads(report.read_text())["figures"]
    assert 0 < figures["closed_by_server"] < 300, figures
    assert figures["closed_with_1012"] == figures["advised_to_reconnect"] == figures["closed_by_server"]
    assert figures["never_closed"] == 300 - figures["closed_by_server"]
    assert figures["connections_failed"] == figures["connections_lost"] == 0
    assert figures["duplicated"] == figures["reordered"] == figures["corrupted"] == figures["misrouted"] == 0
    if back:
        # What is published while a member is on its way is not for it, so a loss is no fault here.
        assert figures["open_at_the_end"] == 300
        assert figures["back_on_target_0"] == figures["closed_by_server"], "everybody is back, at the first try"
        assert figures["back_max_ms"] < 2 * 300 + 1500, "and not later than told, a moment for the handshake aside"
    else:
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        assert figures["lost"] == 0


def test_haproxy_sends_nobody_new_to_a_node_that_says_503(draining, balance):
    cluster = draining
    balancer = balance("haproxy", cluster, "cookie")
    wires = [balancer.join(f"old-{index}") for index in range(9)]
    assert cluster.open_counts() == [3, 3, 3]
    homes = {index: members(cluster[0], f"old-{index}") for index in range(9)}
    old = next(index for index in homes if homes[index])
    cookie = wires[old].cookie
    began = time.monotonic()
    cluster[0].signal(signal.SIGTERM)
    eventually(lambda: balancer.up() == {"node-2", "node-3"}, "the node is out", timeout_s=8)
    assert time.monotonic() - began < 3.8, "out before the node ends its delay"
    assert cluster[0].open_count() == 3, "and its clients are still there"
    with balancer.join("newcomer", headers=[f"Cookie: {cookie}"]) as newcomer:
        assert newcomer.cookie not in (None, cookie)
        assert members(cluster[0], "newcomer") == 0
    for index, wire in enumerate(wires):
        if homes[index]:
            closed = wire.read_close(10)
            assert closed.code == 1012
            assert json.loads(closed.frames[-1].text)["type"] == "reconnect"
        wire.cut()
    assert cluster[0].wait() == 0


def test_nginx_takes_a_node_out_at_a_reload_and_its_clients_stay(cluster, balance):
    balancer = balance("nginx", cluster, "address")
    # Every address in one room of its own, so that each node has some.
    wires = {host: balancer.join(f"old-{host}", source=f"127.0.7.{host}") for host in range(2, 32)}
    before = cluster.open_counts()
    assert all(before)
    address = cluster[0].host_port
    balancer.write(upstream={"server 10.0.0.11:8080 ": "server 10.0.0.11:8080 down "})
    balancer.process.send_signal(signal.SIGHUP)

    def out():
        probes = [balancer.join(f"probe-{host}", source=f"127.0.7.{host}") for host in range(2, 32)]
        here = int(cluster[0].open_count())
        for probe in probes:
            probe.cut()
        return here == before[0]

    eventually(out, f"nobody new comes to {address}")
    for host, wire in wires.items():
        wire.send_text(f"still here {host}")
        assert wire.read_text() == f"still here {host}"
    # Who was on the others is on the others: nobody moved.
    homes = {host: [members(node, f"old-{host}") for node in cluster] for host in wires}
    for host, home in homes.items():
        if not home[0]:
            with balancer.join(f"again-{host}", source=f"127.0.7.{host}"):
                assert [members(node, f"again-{host}") for node in cluster] == home
    cluster[0].signal(signal.SIGTERM)
    for host, wire in wires.items():
        if homes[host][0]:
            assert wire.read_close(10).code == 1012
        wire.cut()
    assert cluster[0].wait() == 0


def test_a_reload_of_haproxy_keeps_every_connection_and_refuses_nobody(cluster, balance):
    balancer = balance("haproxy", cluster, "cookie")
    wires = [balancer.join(f"old-{index}") for index in range(9)]
    before = balancer.ask("show info")

    def reloaded():
        # A busy host's HAProxy has been seen to sleep over the first signal.
        if "Reloading HAProxy" not in balancer.log():
            balancer.process.send_signal(signal.SIGUSR2)
        balancer.join("new").cut()
        try:
            return worker(balancer.ask("show info")) != worker(before)
        except OSError:
            return False

    eventually(reloaded, "another process answers", every_s=0.1)
    for index, wire in enumerate(wires):
        wire.send_text(f"still here {index}")
        assert wire.read_text() == f"still here {index}"
        wire.cut()


def worker(info):
    """The process number in HAProxy's `show info`."""
    return next(line for line in info.splitlines() if line.startswith("Pid:"))


def restart_command(cluster, directory):
    """A command that restarts the node of `$NODE` and returns when the old process has ended: what systemctl does."""
    script = directory / "restart.py"
    table = {
        f"node-{index + 1}": {"pid": node.process.pid, "command": node.command, "log": str(node.log_path)}
        for index, node in enumerate(cluster)
    }
    script.write_text(
        f"""\
import json, os, signal, subprocess, sys, time
node = json.loads({json.dumps(json.dumps(table))})[os.environ["NODE"]]
assert os.environ["HOST"] + ":" + os.environ["PORT"] in node["command"]
os.kill(node["pid"], signal.SIGTERM)
while open(f"/proc/{{node['pid']}}/stat").read().rsplit(")", 1)[1].split()[0] != "Z":
    time.sleep(0.05)
with open(node["log"], "ab") as log:
    again = subprocess.Popen(node["command"], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
with open({str(directory / "pids")!r}, "a") as pids:
    print(again.pid, file=pids)
"""
    )
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}"


def restarted_pids(directory):
    path = directory / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture
def kill_restarted(tmp_path):
    yield
    for pid in restarted_pids(tmp_path):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


async def restart_all(cluster, balancer, directory, clients, newcomer):
    """Runs the script over all nodes while somebody new comes five times a second; nobody may see more than is told."""
    before = [node.process.pid for node in cluster]
    rolling = await asyncio.create_subprocess_exec(
        DEPLOY / "haproxy/rolling-restart.sh",
        "-s",
        str(balancer.stats_path),
        "-t",
        "20",
        restart_command(cluster, directory),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    everybody = list(clients)
    reading = asyncio.create_task(rolling.communicate())
    while not reading.done():
        everybody.append(newcomer(len(everybody)))
        await asyncio.wait([reading], timeout=0.2)
    output = reading.result()[0].decode()
    assert rolling.returncode == 0, output
    assert f"all {len(cluster)} nodes are restarted" in output
    assert balancer.up() == {f"node-{index + 1}" for index in range(len(cluster))}
    restarted = restarted_pids(directory)
    assert len(restarted) == len(cluster) and not set(restarted) & set(before)

    def all_back():
        return sum(int(node.open_count()) for node in cluster) == len(everybody)

    await asyncio.to_thread(eventually, all_back, "everybody is back", 20)
    assert [refusal for client in everybody for refusal in client.refused] == []
    assert sum(client.untold for client in everybody) == 0, "closed without a word"
    assert sum(client.told for client in clients) >= len(clients), "each node's clients were told"
    assert {code for client in everybody for code in client.codes} == {1012}
    assert max(wait_s for client in everybody for wait_s in client.waits_s) < 1.5
    return everybody


@pytest.mark.parametrize("way", ("cookie", "room"))
async def test_a_rolling_restart_refuses_nobody_and_nobody_waits_longer_than_told(way, tmp_path, balance, kill_restarted):
    need("socat")
    directory = tmp_path / "rolling"
    directory.mkdir()
    # The script takes a node out before it stops: no delay is needed.
    cluster = Cluster(directory, SETTINGS.replace("drain_delay_ms = 4000", "drain_delay_ms = 0"))
    try:
        balancer = balance("haproxy", cluster, way)
        clients = [Client(balancer.url(f"/rooms/stay-{index}")) for index in range(60)]
        await settled(cluster, 60)

        def newcomer(index):
            return Client(balancer.url(f"/rooms/new-{index}"))

        await stop_all(await restart_all(cluster, balancer, tmp_path, clients, newcomer))
    finally:
        cluster.kill()


class Browser(Client):
    """A client that keeps the nodes' cookie."""

    def __init__(self, url):
        self.cookie = None
        self.homes = []
        super().__init__(url)

    async def connect(self):
        headers = {"Cookie": self.cookie} if self.cookie else {}
        room = await connect(self.url, compression=None, open_timeout=None, additional_headers=headers)
        node = room.response.headers["X-Throng-Node"]
        fresh = room.response.headers.get("Set-Cookie", "").split(";")[0]
        assert (fresh or self.cookie) == f"throng_node={node}", "the cookie is always that of the node"
        self.cookie = fresh or self.cookie
        self.homes.append(node)
        return room


async def test_a_rolling_restart_of_two_nodes_joined_by_redis_refuses_nobody(tmp_path, balance, kill_restarted):
    need("socat")
    need("redis-server")
    directory = tmp_path / "joined"
    directory.mkdir()
    with Redis(directory) as redis:
        settings = SETTINGS.replace("drain_delay_ms = 4000", "drain_delay_ms = 0")
        settings += f'redis = "redis://127.0.0.1:{redis.port}"\nredis_hold_ms = 200\n'
        settings += 'affinity_cookie = "throng_node"\ntrusted_proxies = ["127.0.0.1"]\nforwarded_for = "on"\n'
        cluster = Cluster(directory, settings, count=2)
        try:
            balancer = balance("haproxy", cluster, "node")
            # Ten rooms of six, each room on both nodes.
            clients = [Browser(balancer.url(f"/rooms/shared-{index % 10}")) for index in range(60)]
            await settled(cluster, 60)
            assert cluster.open_counts() == [30, 30]

            def newcomer(index):
                return Browser(balancer.url(f"/rooms/shared-{index % 10}"))

            everybody = await restart_all(cluster, balancer, tmp_path, clients, newcomer)
            moved = [client for client in clients if client.homes[0] != client.homes[1]]
            assert moved, "who is told while its node is away is taken in by the other"
            # The nodes are one server again: a message on either reaches both.
            heard = [client.heard for client in everybody if client.url.endswith("shared-0")]
            for node in cluster:
                with node.join("shared-0") as wire:
                    wire.send_text(f"from {node.host_port}")
                    await asyncio.to_thread(wire.read_text)

            def all_heard():
                wanted = {f"from {node.host_port}" for node in cluster}
                return all(wanted <= set(messages) for messages in heard)

            await asyncio.to_thread(eventually, all_heard, "members on both nodes hear both", 10)
            await stop_all(everybody)
        finally:
            cluster.kill()


def rolling_restart(balancer, *arguments):
    return subprocess.run(
        [DEPLOY / "haproxy/rolling-restart.sh", "-s", str(balancer.stats_path), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_rolling_restart_does_not_begin_while_a_node_is_down(cluster, balance):
    need("socat")
    balancer = balance("haproxy", cluster, "cookie")
    cluster[2].kill()
    eventually(lambda: balancer.up() == {"node-1", "node-2"}, "the dead node is down", timeout_s=10)
    outcome = rolling_restart(balancer, "echo must not run")
    assert outcome.returncode == 1
    assert "node-3 is DOWN" in outcome.stderr and "must not run" not in outcome.stdout


def test_a_rolling_restart_stops_at_the_first_failure_and_says_what_puts_the_node_back(cluster, balance):
    need("socat")
    balancer = balance("haproxy", cluster, "cookie")
    outcome = rolling_restart(balancer, 'test "$NODE" != node-1')
    assert outcome.returncode == 1
    assert "the command ended with 1 on node-1" in outcome.stderr
    assert balancer.up() == {"node-2", "node-3"}
    assert "set server nodes/node-1 state ready" in outcome.stderr
    balancer.ask("set server nodes/node-1 state ready")
    eventually(lambda: len(balancer.up()) == 3, "the node is back")


def test_the_script_is_without_a_complaint_of_shellcheck():
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed")
    outcome = subprocess.run([shellcheck, DEPLOY / "haproxy/rolling-restart.sh"], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout


def test_a_rolling_restart_used_wrongly_says_how_it_is_used(cluster, balance):
    need("socat")
    balancer = balance("haproxy", cluster, "cookie")
    assert rolling_restart(balancer).returncode == 2
    assert "COMMAND" in rolling_restart(balancer).stderr
    unknown = rolling_restart(balancer, "-b", "no-such", "true")
    assert unknown.returncode == 1 and "no backend no-such" in unknown.stderr
    missing = subprocess.run(
        [DEPLOY / "haproxy/rolling-restart.sh", "-s", "/nonexistent", "true"], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 1 and "/nonexistent is no socket" in missing.stderr
