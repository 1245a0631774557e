"""What scripts/measure-cluster.sh measures: see there, and docs/SPECIFICATION.md for how to read it."""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests/e2e"))

from harness import Redis, Server, eventually  # noqa: E402
from harness.server import clean_environment  # noqa: E402
from page import processors, write_between  # noqa: E402

TOPICS = ("latency", "throughput", "nodes", "rooms")
OUT = Path(os.environ.get("OUT", REPOSITORY / "target/measure-cluster")).resolve()
ROUNDS = int(os.environ.get("ROUNDS", "5"))
DURATION = float(os.environ.get("DURATION", "4"))
PRIORITY = int(os.environ.get("PRIORITY", "0"))
REALTIME = os.environ.get("REALTIME") == "1"
LOAD = os.environ["THRONG_LOAD_BIN"]
QUICK = "drain_window_ms = 200\ndrain_deadline_ms = 3000\nclose_timeout_ms = 300\n"
BYTES = 128
ROOM_COUNT = 50_000
SHARDS_OF_ROOMS = 4  # each has as many descriptors as the open-file limit


def say(line):
    print(line, file=sys.stderr, flush=True)


@contextmanager
def priority(nice):
    """Everything that is started in it runs at this nice value, as a process and, where sessions share, as a session."""
    sessions = Path("/proc/self/autogroup")
    before = re.search(r"nice (-?\d+)", sessions.read_text()) if nice and sessions.exists() else None
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    try:
        if before:
            sessions.write_text(str(nice))
        yield
    finally:
        if before:
            sessions.write_text(before.group(1))


@contextmanager
def alone():
    """With REALTIME=1, what is started in it goes before everything else on the machine (SCHED_RR): to be used for loads that
    leave the processors idle most of the time."""
    if not REALTIME:
        yield
        return
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class Run:
    """Everything that is measured: figures of rounds by name, rows of the table, faults."""

    def __init__(self):
        self.rounds, self.rows, self.faults, self.missed = {}, [], [], 0

    # --- one round ------------------------------------------------------------------------------------------------

    def load(self, name, *arguments):
        """One run of throng-load; its figures are kept under `name`."""
        number = len(self.rounds.setdefault(name, [])) + 1
        path = OUT / f"{name}.{number}.json"
        done = subprocess.run(
            [LOAD, *map(str, arguments), "--json", str(path)],
            capture_output=True,
            text=True,
            env=clean_environment(),
            check=False,
        )
        if done.returncode != 0:
            self.faults.append(f"{name}, round {number}: {(done.stderr.strip() or done.stdout)[-300:]}")
        if path.exists():
            self.rounds[name].append(json.loads(path.read_text())["figures"])

    def floor(self, name, redis, *arguments):
        self.load(name, "floor", "redis", "--redis", redis.url, "--size", BYTES, "--duration", DURATION, *arguments)

    def fan_out(self, name, nodes, *arguments):
        targets = [word for node in nodes for word in ("--target", node.url(""))]
        targets += [word for node in nodes for word in ("--server-pid", node.process.pid)]
        self.load(name, "fanout", "-q", *targets, "--size", BYTES, *arguments)

    # --- figures over rounds --------------------------------------------------------------------------------------

    def values(self, name, figure):
        return [figures[figure] for figures in self.rounds.get(name, []) if figure in figures]

    def median(self, name, figure):
        values = self.values(name, figure)
        return statistics.median(values) if values else float("nan")

    def waited(self, name):
        """For how much of the time others had the processors in which nodes or client could have run: the worst round."""
        figures = ("server_waited_share", "client_waited_share")
        return max((value for figure in figures for value in self.values(name, figure)), default=0.0)

    # --- the table --------------------------------------------------------------------------------------------------

    def promise(self, text, value, operator, bound, detail, places=2):
        kept = {"<=": value <= bound, ">=": value >= bound, "=": value == bound}[operator]
        self.missed += not kept
        self.row(text, f"{operator} {bound}", f"{value:.{places}f}", "kept" if kept else "**missed**", detail)

    def row(self, *cells):
        self.rows.append("| " + " | ".join(cells) + " |")
        print(self.rows[-1], flush=True)


@contextmanager
def cluster(node_count, shards=1, env=None):
    """A Redis and nodes on it."""
    directory = OUT / f"nodes-{node_count}-{time.monotonic_ns()}"
    directory.mkdir(parents=True)
    with ExitStack() as stack:
        redis = stack.enter_context(Redis(directory))
        nodes = []
        for index in range(node_count):
            flags = ["--redis", redis.url, "--node-id", f"node-{index + 1}"]
            nodes.append(stack.enter_context(Server(directory, QUICK, flags=flags, shards=shards, env=env)))
        yield redis, nodes


# --- latency ------------------------------------------------------------------------------------------------------------


def measure_latency(run):
    """1,000 messages a second in 100 rooms of two, one member on each node; the pair: 100 channels, two subscribers."""
    with alone(), cluster(2) as (redis, nodes):
        traffic = ["--rooms", 100, "--members", 2, "--publishers", 1, "--rate", 10, "--duration", DURATION]
        for _ in range(ROUNDS):
            run.floor("latency-floor", redis, "--channels", 100, "--subscribers", 2, "--rate", 1000)
            run.fan_out("latency", nodes, *traffic)
    waited = max(run.waited("latency"), run.waited("latency-floor"))
    p50, p99 = (run.median("latency", f"latency_{q}_ms") for q in ("p50", "p99"))
    floor_p50, floor_p99 = (run.median("latency-floor", f"latency_{q}_ms") for q in ("p50", "p99"))
    run.promise(
        "latency that two nodes add to Redis' own, p99, ms (1,000 messages/s)",
        p99 - floor_p99,
        "<=",
        1,
        f"{p99:.2f} ms against {floor_p99:.2f} ms of the bare pair; p50 {p50:.2f} ms against {floor_p50:.2f} ms; in a round others had "
        f"the processors for up to {waited:.0%} of the time{' (SCHED_RR)' if REALTIME else ''}",
    )


# --- throughput -------------------------------------------------------------------------------------------------------


def publish_commands(redis):
    found = re.search(r"cmdstat_publish:calls=(\d+)", redis.command("INFO", "commandstats").decode())
    return int(found.group(1)) if found else 0


def backplane_cpu_us(figures, messages_per_s):
    """Processor time of the node's backplane core for a message."""
    share = sum(value for name, value in figures.items() if re.fullmatch(r"server_thread_backplane-\d+_share", name))
    return share / messages_per_s * 1e6


def measure_throughput(run):
    """As fast as it goes: each of 500 members alone in its room, its messages come back to it through Redis."""
    with cluster(1) as (redis, nodes):
        counts = {}
        for _ in range(ROUNDS):
            for depth in (64, 1024):
                run.floor(f"throughput-floor-{depth}", redis, "--channels", 500, "--in-flight", depth)
            for depth in (1, 64):
                before = publish_commands(redis), sum(run.values(f"throughput-{depth}", "published"))
                closed = ["--closed", "--in-flight", depth, "--duration", DURATION]
                run.fan_out(f"throughput-{depth}", nodes, "--rooms", 500, "--members", 1, "--publishers", 1, *closed)
                after = publish_commands(redis), sum(run.values(f"throughput-{depth}", "published"))
                counts.setdefault(depth, []).append((after[1] - before[1]) / max(1, after[0] - before[0]))
    floor = max(run.median(f"throughput-floor-{depth}", "publishes_per_s") for depth in (64, 1024))
    floor_cpu = min(run.median(f"throughput-floor-{depth}", "client_cpu_us_per_message") for depth in (64, 1024))
    for depth, text in (
        (64, "messages a second that a node publishes through Redis, 64 in flight each, against a bare pipelined client's PUBLISH"),
        (1, "the same, 1 in flight each, so that hardly a message shares its PUBLISH"),
    ):
        rate = run.median(f"throughput-{depth}", "deliveries_per_s")
        own = statistics.median(
            backplane_cpu_us(figures, figures["deliveries_per_s"]) for figures in run.rounds[f"throughput-{depth}"]
        )
        batch = statistics.median(counts[depth])
        run.promise(
            text,
            rate / floor,
            ">=",
            0.9,
            f"{rate:,.0f} messages/s ({rate / batch:,.0f} PUBLISH/s, {batch:.1f} messages each) against {floor:,.0f} PUBLISH/s; the "
            f"backplane core's processor time {own:.2f} us a message, the bare client's {floor_cpu:.2f} us; Redis, node, and the "
            f"500 WebSocket clients share {os.cpu_count()} processors",
        )


# --- one server of many nodes ---------------------------------------------------------------------------------------------


def measure_nodes(run):
    """10,000 connections in 1,000 rooms of ten, spread over all nodes; five of each room publish."""
    for count in (2, 5):
        with cluster(count) as (_, nodes):
            traffic = ["--rooms", 1000, "--members", 10, "--publishers", 5, "--rate", 0.4]
            name = f"nodes-{count}"
            run.fan_out(name, nodes, *traffic, "--duration", DURATION * 2)
            gaps = sum(node.metric("throng_redis_gaps_total") for node in nodes)
        figure = {key: run.median(name, key) for key in ("delivered", "published", "lost", "duplicated", "order_members_apart")}
        compared = run.median(name, "order_rooms_compared")
        wrong = figure["lost"] + figure["duplicated"] + figure["order_members_apart"] + gaps
        missing = 10 * figure["published"] - figure["delivered"]
        run.promise(
            f"{count} nodes, 10,000 connections, 1,000 rooms: deliveries that were lost, came twice, or in another order than elsewhere",
            wrong + missing + (1000 - compared),
            "=",
            0,
            f"{figure['delivered']:,.0f} deliveries of {figure['published']:,.0f} messages; the members of "
            f"{compared:,.0f} rooms saw one order each; p99 {run.median(name, 'latency_p99_ms'):.1f} ms",
            0,
        )


# --- 50,000 rooms ------------------------------------------------------------------------------------------------------------


def memory_of_redis(redis):
    text = redis.command("INFO", "memory").decode()
    return int(re.search(r"used_memory:(\d+)", text).group(1))


def calls(redis, command):
    found = re.search(rf"cmdstat_{command}:calls=(\d+)", redis.command("INFO", "commandstats").decode())
    return int(found.group(1)) if found else 0


def subscriptions(redis):
    """Rooms that anybody follows, the most and the fewest followers of one, and patterns."""
    rooms = redis.command("PUBSUB", "CHANNELS", "throng:room:idle-*")
    counts = []
    for begin in range(0, len(rooms), 5_000):
        counts += redis.command("PUBSUB", "NUMSUB", *rooms[begin : begin + 5_000])[1::2]
    return len(rooms), max(counts, default=0), min(counts, default=0), redis.command("PUBSUB", "NUMPAT")


def open_all(run, name, nodes, rooms, check=None):
    """One member of each room on each node; `check` looks at it meanwhile. Returns the seconds until all were in."""
    targets = [word for node in nodes for word in ("--target", node.url(""))]
    path = OUT / f"{name}.json"
    command = [LOAD, "idle", "-q", *targets, "--rooms", rooms, "--connections", rooms * len(nodes), "--connecting", 1024]
    command += ["--hold", 3600, "--settle", 0, "--time-limit", 3600, "--json", path]
    began = time.monotonic()
    words = [str(word) for word in command]
    loading = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_environment())
    try:
        wanted = [rooms] * len(nodes)
        eventually(lambda: [node.open_count() for node in nodes] == wanted, "everybody is in", 120, 0.05)
        seconds = time.monotonic() - began
        if check:
            check()
    finally:
        loading.send_signal(2)
        loading.wait(60)
    return seconds


def measure_rooms(run):
    """Two nodes, a member of each room on both."""
    count = ROOM_COUNT
    # Transparent huge pages make resident memory rise 2 MiB at a time: the allocator does without them here.
    small = {"MIMALLOC_ALLOW_THP": "0"}
    how = {"shards": SHARDS_OF_ROOMS, "env": small}
    with Server(OUT, QUICK, **how) as one, Server(OUT, QUICK, **how) as other:
        seen = {}
        without_s = open_all(run, "rooms-without", [one, other], count, lambda: seen.update(node_bytes=one.memory_bytes()))
        without_bytes = seen["node_bytes"]
    with cluster(2, SHARDS_OF_ROOMS, small) as (redis, nodes):
        redis_before = memory_of_redis(redis)
        seen = {}

        def check():
            seen["cold"] = subscriptions(redis)
            seen["commands"] = calls(redis, "subscribe")
            seen["node_bytes"] = nodes[0].memory_bytes()
            seen["redis_bytes"] = memory_of_redis(redis) - redis_before
            redis.kill()
            eventually(lambda: not any(is_ready(node) for node in nodes), "no node is ready", 10)
            redis.start()
            began = time.monotonic()
            up = {}
            while len(up) < len(nodes):
                for node in nodes:
                    if node not in up and is_ready(node):
                        up[node] = time.monotonic() - began
                assert time.monotonic() - began < 60, "they are not ready a minute after Redis is"
                time.sleep(0.01)
            seen["again_s"] = max(up.values())
            seen["storm_ms"] = [resubscribed_ms(node) for node in nodes]
            seen["again"] = subscriptions(redis)
            seen["again_commands"] = calls(redis, "subscribe")
            assert all(node.open_count() == count for node in nodes), "nobody was disconnected"

        cold_s = open_all(run, "rooms", nodes, count, check)
    rooms, most, fewest, patterns = seen["cold"]
    run.promise(
        f"{count:,} rooms on each of two nodes from cold: seconds that Redis adds to {2 * count:,} joins",
        cold_s - without_s,
        "<=",
        5,
        f"{cold_s:.1f} s against {without_s:.1f} s without Redis; {seen['commands']:,} SUBSCRIBE commands; of a node's memory "
        f"{seen['node_bytes'] / count:.0f} bytes a room, {without_bytes / count:.0f} without Redis, of Redis' "
        f"{seen['redis_bytes'] / count / 2:.0f} bytes a subscription",
    )
    run.promise(
        "the same, Redis killed and started again: seconds until both nodes follow all rooms",
        seen["again_s"],
        "<=",
        8,
        f"up to 5 s of it the wait before the next attempt; subscribing itself took {' and '.join(map(str, seen['storm_ms']))} ms; "
        f"{seen['again_commands']:,} SUBSCRIBE commands; nobody was disconnected",
    )
    rooms_again, most_again, fewest_again, _ = seen["again"]
    run.promise(
        "subscriptions of a room at Redis: the most and the fewest, then and after the restart",
        float(max(most, most_again) + min(fewest, fewest_again)) / 2,
        "=",
        2,
        f"PUBSUB NUMSUB of {rooms:,} and {rooms_again:,} rooms: one for each of the two nodes; PUBSUB NUMPAT: {patterns}",
        0,
    )
    if (rooms, rooms_again, patterns) != (count, count, 0):
        run.faults.append(f"{rooms} and {rooms_again} rooms are followed, with {patterns} patterns")


def is_ready(node):
    return node.admin("/readyz").status == 200


def resubscribed_ms(node):
    """What the node's log says of its last return to Redis."""
    found = [json.loads(line) for line in node.log().splitlines() if "Redis carries messages" in line]
    return found[-1]["ms"]


# --- the run ----------------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(usage="measure-cluster.sh [latency|throughput|nodes|rooms]... [--write]")
    parser.add_argument("topics", nargs="*", choices=[*TOPICS, []])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write and options.topics:
        parser.error("--write needs all measurements")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    run = Run()
    version = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    head = (
        f"Measured {time.strftime('%F', time.gmtime())}: Linux {os.uname().release}, {processors()}, Redis {version[2:]}, "
        f"{ROUNDS} rounds of {DURATION:g} s a side, load {os.getloadavg()[0]:.1f} at the start"
        f"{f', at nice {PRIORITY}' if PRIORITY else ''}.\n"
    )
    run.rows += ["| promise | bound | measured | verdict | detail |", "|---|---|---|---|---|"]
    print(head + "\n" + "\n".join(run.rows), flush=True)
    with priority(PRIORITY):
        for topic in options.topics or TOPICS:
            say(f"measuring {topic}")
            globals()[f"measure_{topic}"](run)
    waited = max((run.waited(name) for name in run.rounds), default=0)
    tail = f"\nOthers had the processors for at most {waited:.0%} of the time in which nodes or clients could have run (the worst round).\n"
    print(tail)
    (OUT / "rounds.json").write_text(json.dumps(run.rounds, indent=1))
    if options.write:
        write_between("measure-cluster.sh", head + "\n" + "\n".join(run.rows) + "\n" + tail)
    for fault in run.faults:
        say(f"FAULT: {fault}")
    return int(bool(run.faults or run.missed))


if __name__ == "__main__":
    sys.exit(main())
