"""What scripts/faults.sh does: worlds with traffic, a fault in each, and the table of what came of it."""

import argparse
import asyncio
import json
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
HEAD = (
    "| fault | mode | found after | healed after | lost, of deliveries | missed by who was away | what members were told "
    "| `/readyz` meanwhile | verdict |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def say(line):
    print(line, file=sys.stderr, flush=True)


async def play(scenario, mode, directory):
    """One fault: what was found, and which promises broke."""
    with scenario.world(directory, mode, scenario.node_count) as world:
        world.watch()
        async with Traffic(world.urls()) as traffic:
            await asyncio.sleep(BEFORE_S)
            marks = await scenario.do(world, traffic)
            crossed = await traffic.crosses(marks.repaired, HEAL_WAIT_S)
            ready = await all_ready(world, HEAL_WAIT_S)
            healed = None if crossed is None or ready is None else max(crossed, ready, marks.repaired)
            await asyncio.sleep(AFTER_S)
            await traffic.fall_silent()
            found, told, codes = traffic.verdict()
        first = [at for watch in world.watches if (at := watch.first_not_ready(marks.began)) is not None]
        by_readiness = min(first) - marks.began if first else None
        seen = [seconds for seconds in (by_readiness, world.lost_by_log(marks.wall)) if seconds is not None]
        return {
            "fault": scenario.name,
            "title": scenario.title,
            "mode": mode,
            "found_s": min(seen, default=None),
            "healed_s": None if healed is None else healed - marks.repaired,
            "fault_s": marks.repaired - marks.began,
            **{key: found[key] for key in ("published", "expected", "heard", "lost", "silent", "refused", "away", "twice", "disordered")},
            "told": {words: count for words, count in told.items() if count},
            "closed_with": {str(code): count for code, count in codes.items()},
            "not_ready_s": [{str(status): spent for status, spent in watch.not_ready(marks.began).items()} for watch in world.watches],
            "panics": world.panics(),
        }


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


def readiness(result):
    """`503 on 3 of 3 for 3.1 s`."""
    words = []
    for status, what in (("503", "503"), ("None", "no answer")):
        spent = [node[status] for node in result["not_ready_s"] if status in node]
        if spent:
            words.append(f"{what} on {len(spent)} of {len(result['not_ready_s'])} for {seconds(max(spent))}")
    return "; ".join(words) or "200"


def told(result):
    words = [f"{what}: {count}" for what, count in sorted(result["told"].items())]
    words += [f"closed with {code}: {count}" for code, count in sorted(result["closed_with"].items())]
    return "; ".join(words) or "nothing: nothing was missed"


def row(result, faults):
    expected = result["expected"]
    verdict = "kept" if not faults else "**" + "; ".join(faults) + "**"
    cells = [
        result["title"],
        result["mode"],
        seconds(result["found_s"]),
        seconds(result["healed_s"]),
        f"{result['lost']:,} of {expected:,}",
        f"{result['away']:,}",
        told(result),
        readiness(result),
        verdict,
    ]
    return "| " + " | ".join(cells) + " |"


def in_their_place(rows):
    """These rows and, of what was not done this time, those of the table that there is."""
    place = {(scenario.title, mode): (number, MODES.index(mode)) for number, scenario in enumerate(SCENARIOS) for mode in MODES}
    found = {}
    for line in [*read_between("faults.sh").splitlines(), *rows]:
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and (cells[1], cells[2]) in place:
            found[cells[1], cells[2]] = line
    return [found[key] for key in sorted(found, key=place.get)]


def chosen(text, known, what, parser):
    names = text.split(",") if text else list(known)
    for name in names:
        if name not in known:
            parser.error(f"no such {what}: {name} (there are {', '.join(known)})")
    return names


def main():
    parser = argparse.ArgumentParser(usage="faults.sh [--only NAME,…] [--mode MODE,…] [--write] [--json FILE] [--list]")
    parser.add_argument("--only")
    parser.add_argument("--mode")
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
        f"Run {time.strftime('%F', time.gmtime())}: Linux {os.uname().release}, {processors()}; {members} members in {ROOM_COUNT} rooms "
        f"on three nodes, 240 messages a second.\n"
    )
    print(head + "\n" + HEAD, flush=True)
    rows, results, is_broken = [], [], False
    for name in names:
        scenario = by_name[name]
        for mode in modes:
            if mode not in scenario.world.modes:
                continue
            say(f"{name}, {mode}")
            with tempfile.TemporaryDirectory(prefix="throng-faults-") as directory:
                try:
                    result = asyncio.run(play(scenario, mode, Path(directory)))
                    faults = broken(scenario, result)
                    rows.append(row(result, faults))
                    results.append(result | {"broken": faults})
                except Absent as why:
                    say(f"left out: {why}")
                    continue
                except (AssertionError, OSError, TimeoutError) as error:
                    faults = [str(error).splitlines()[0] if str(error) else repr(error)]
                    rows.append(f"| {scenario.title} | {mode} | – | – | – | – | – | – | **{faults[0][:200]}** |")
                    results.append({"fault": name, "mode": mode, "broken": faults})
                    say(str(error)[:3000])
                if faults:
                    keep_logs(Path(directory), LOGS / f"{name}-{mode}")
            is_broken |= bool(faults)
            print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.write:
        write_between("faults.sh", head + "\n" + HEAD + "\n" + "\n".join(in_their_place(rows)) + "\n")
    return int(is_broken)


if __name__ == "__main__":
    sys.exit(main())
