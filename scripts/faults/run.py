"""What scripts/faults.sh does: worlds with traffic, a fault in each, and the table of what came of it."""

import argparse
import asyncio
import fcntl
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests/e2e"), str(REPOSITORY / "scripts/cluster")]

from page import processors, read_between, write_between  # noqa: E402
from scenarios import SCENARIOS, Absent  # noqa: E402
from traffic import MEMBERS_PER_NODE, ROOM_COUNT, Traffic  # noqa: E402

MODES = ("pubsub", "sharded", "streams")
BEFORE_S, AFTER_S = 2.0, 2.0
HEAL_WAIT_S = 40
LOGS = REPOSITORY / "target/faults"
LOCK = Path(tempfile.gettempdir()) / f"throng-faults-{os.getuid()}.lock"
HEAD = (
    "| fault | mode | runs | found after | healed after | lost, of deliveries | missed by who was away | what members were told "
    "| `/readyz` meanwhile | verdict |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def say(line):
    print(line, file=sys.stderr, flush=True)


async def play(scenario, mode, directory):
    """One fault: what was found, and which promises broke."""
    with scenario.world(directory, mode, scenario.node_count) as world:
        world.watch()
        async with Traffic(world.urls()) as traffic:
            assert await traffic.crosses(time.monotonic(), HEAL_WAIT_S), "before the fault not everybody hears everybody in every room"
            await asyncio.sleep(BEFORE_S)
            untouched = await asyncio.to_thread(world.untouched)
            marks = await scenario.do(world, traffic)
            crossed = await traffic.crosses(marks.repaired, HEAL_WAIT_S)
            ready = await all_ready(world, HEAL_WAIT_S)
            healed = None if crossed is None or ready is None else max(crossed, ready, marks.repaired)
            await asyncio.sleep(AFTER_S)
            await traffic.fall_silent()
            found, told, codes, rooms = traffic.verdict(marks.began, math.inf if healed is None else healed)
        return {
            "fault": scenario.name,
            "title": scenario.title,
            "mode": mode,
            "found_s": scenario.found_from and found_after(world, marks, getattr(marks, scenario.found_from)),
            "healed_s": None if healed is None else healed - marks.repaired,
            "fault_s": marks.repaired - marks.began,
            **{key: found[key] for key in ("published", "expected", "heard", "lost", "silent", "refused", "away", "twice", "disordered")},
            "lost_elsewhere": sum(rooms[room] for room in untouched),
            "told": {words: count for words, count in told.items() if count},
            "closed_with": {str(code): count for code, count in codes.items()},
            "not_ready_s": [{str(status): spent for status, spent in watch.not_ready(marks.began).items()} for watch in world.watches],
            "panics": world.panics(),
        }


def found_after(world, marks, since):
    """Seconds from then until a node said so, by its `/readyz` or in its log."""
    seen = [at - since for watch in world.watches if (at := watch.first_not_ready(since)) is not None]
    by_log = world.lost_by_log(marks.wall_of(since))
    return min(seen + [by_log] * (by_log is not None), default=None)


async def all_ready(world, timeout_s):
    """Awaits that every node that lives is ready; returns since when."""
    deadline = time.monotonic() + timeout_s
    while not all(watch.status == 200 for watch in world.living()):
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(0.02)
    return max(watch.last_ready() for watch in world.living())


def broken(scenario, result):
    """The promises that did not hold, in words."""
    faults = []
    if result["silent"]:
        faults.append(f"{result['silent']} lost in silence")
    if result["twice"]:
        faults.append(f"{result['twice']} came twice")
    if result["disordered"]:
        faults.append(f"{result['disordered']} members heard a publisher out of order")
    if result["mode"] == "streams" and result["lost"]:
        faults.append(f"{result['lost']} lost in mode streams")
    if result["lost_elsewhere"]:
        faults.append(f"{result['lost_elsewhere']} lost in rooms of a Redis that nothing happened to")
    if result["healed_s"] is None or result["healed_s"] > scenario.heal_s:
        faults.append(f"not healed within {scenario.heal_s:g} s")
    if scenario.finds_links and (result["found_s"] is None or result["found_s"] > scenario.detect_s):
        faults.append(f"not found within {scenario.detect_s:g} s")
    if result["panics"]:
        faults.append("panics in " + ", ".join(result["panics"]))
    return faults


def keep_logs(directory, kept):
    """What nodes and Redis said in a world in which a promise broke."""
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for path in directory.glob("*.log"):
        shutil.copy(path, kept)
    say(f"logs: {kept}")


def seconds(value):
    return "–" if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def spread(values, show):
    """The least and the most of several runs, or what all of them have."""
    least, most = min(values), max(values)
    return show(most) if show(least) == show(most) else f"{show(least)} – {show(most)}"


def spread_seconds(values):
    known = [value for value in values if value is not None]
    return "–" if not known else spread(known, seconds) + f" (in {len(known)} of {len(values)})" * (len(known) < len(values))


def readiness(runs):
    """`503 on 3 of 3 for 3.1 s`: of the run in which it was longest."""
    words = []
    for status, what in (("503", "503"), ("None", "no answer")):
        spent = [[node[status] for node in result["not_ready_s"] if status in node] for result in runs]
        if any(spent):
            worst = max(spent, key=lambda nodes: max(nodes, default=0))
            words.append(f"{what} on {len(worst)} of {len(runs[0]['not_ready_s'])} for {seconds(max(worst))}")
    return "; ".join(words) or "200"


def told(runs):
    """What members were told, and how many of them: the least and the most."""
    words = []
    for key, before in (("told", ""), ("closed_with", "closed with ")):
        for what in sorted({what for result in runs for what in result[key]}):
            words.append(f"{before}{what}: {spread([result[key].get(what, 0) for result in runs], '{:,}'.format)}")
    return "; ".join(words) or "nothing: nothing was missed"


def found(scenario, runs):
    time_found = spread_seconds([result["found_s"] for result in runs])
    if scenario.found_from is None or time_found == "–":
        return scenario.found_words if scenario.found_from is None else "–"
    return f"{time_found} {scenario.found_words}".strip()


def row(scenario, runs):
    """A line of the table: of several runs what is best and worst in each, and every promise that any of them broke."""
    faults = [words for result in runs for words in result["broken"]]
    whole = [result for result in runs if "heard" in result]
    verdict = "kept" if not faults else "**" + "; ".join(dict.fromkeys(faults)) + "**"
    if not whole:
        return f"| {scenario.title} | {runs[0]['mode']} | {len(runs)} | – | – | – | – | – | – | {verdict} |"
    expected = max(whole, key=lambda result: result["lost"])["expected"]
    cells = [
        scenario.title,
        whole[0]["mode"],
        str(len(runs)),
        found(scenario, whole),
        spread_seconds([result["healed_s"] for result in whole]),
        f"{spread([result['lost'] for result in whole], '{:,}'.format)} of {expected:,}",
        spread([result["away"] for result in whole], "{:,}".format),
        told(whole),
        readiness(whole),
        verdict,
    ]
    return "| " + " | ".join(cells) + " |"


def in_their_place(rows):
    """These rows and, of what was not done this time, those of the table that there is."""
    place = {(scenario.title, mode): (number, MODES.index(mode)) for number, scenario in enumerate(SCENARIOS) for mode in MODES}
    found = {}
    for line in [*read_between("faults.sh").splitlines(), *rows]:
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == HEAD.split("\n", 1)[0].count("|") + 1 and (cells[1], cells[2]) in place:
            found[cells[1], cells[2]] = line
    return [found[key] for key in sorted(found, key=place.get)]


def chosen(text, known, what, parser):
    names = text.split(",") if text else list(known)
    for name in names:
        if name not in known:
            parser.error(f"no such {what}: {name} (there are {', '.join(known)})")
    return names


def one_run(scenario, mode):
    """What came of a fault, `broken` among it; `None`: there was nothing to do it to."""
    with tempfile.TemporaryDirectory(prefix="throng-faults-") as directory:
        try:
            result = asyncio.run(play(scenario, mode, Path(directory)))
            result["broken"] = broken(scenario, result)
        except Absent as why:
            say(f"left out: {why}")
            return None
        except (AssertionError, OSError, TimeoutError) as error:
            words = str(error).splitlines()[0] if str(error) else repr(error)
            result = {"fault": scenario.name, "mode": mode, "broken": [words[:200]]}
            say(str(error)[:3000])
        if result["broken"]:
            keep_logs(Path(directory), LOGS / f"{scenario.name}-{mode}")
        return result


def count(text):
    """`--runs`: how often each fault is done."""
    number = int(text)
    if not 1 <= number <= 100:
        raise argparse.ArgumentTypeError("1 to 100")
    return number


def main():
    usage = "faults.sh [--only NAME,…] [--mode MODE,…] [--runs N] [--write] [--json FILE] [--list]"
    parser = argparse.ArgumentParser(usage=usage)
    parser.add_argument("--only")
    parser.add_argument("--mode")
    parser.add_argument("--runs", type=count, default=1)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    if options.list:
        print("\n".join(f"{scenario.name:<20} {scenario.title}" for scenario in SCENARIOS))
        return 0
    names = chosen(options.only, by_name, "fault", parser)
    modes = chosen(options.mode, MODES, "mode", parser)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    members = ROOM_COUNT * 3 * MEMBERS_PER_NODE
    head = (
        f"Run {time.strftime('%F', time.gmtime())}: Linux {os.uname().release}, {processors()}, load {os.getloadavg()[0]:.1f} at the start; "
        f"{members} members in {ROOM_COUNT} rooms on three nodes, 240 messages a second.\n"
    )
    print(head + "\n" + HEAD, flush=True)
    results, is_broken = [], False
    for name in names:
        scenario = by_name[name]
        for mode in modes:
            if mode not in scenario.world.modes:
                continue
            say(f"{name}, {mode}")
            runs = [result for _ in range(options.runs) if (result := one_run(scenario, mode))]
            if not runs:
                continue
            results += runs
            is_broken |= any(result["broken"] for result in runs)
            line = row(scenario, runs)
            print(line, flush=True)
            if options.write:
                with open(LOCK, "w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    write_between("faults.sh", head + "\n" + HEAD + "\n" + "\n".join(in_their_place([line])) + "\n")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return int(is_broken)


if __name__ == "__main__":
    sys.exit(main())
