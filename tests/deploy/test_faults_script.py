"""scripts/faults.sh: it runs, it can tell a kept promise from a broken one, and it says what it does not know."""

import asyncio
import json
import subprocess
import sys

import pytest
from balancers.render import tool
from harness.server import REPOSITORY, binary, clean_environment

sys.path.insert(0, str(REPOSITORY / "scripts/faults"))
from run import row  # noqa: E402
from scenarios import SCENARIOS  # noqa: E402
from traffic import AFTER_HEALED_S, EDGE_S, Member, Traffic  # noqa: E402

SCRIPT = str(REPOSITORY / "scripts/faults.sh")


def faults(*words, timeout_s=80):
    environment = clean_environment() | {"THRONG_BIN": binary()}
    return subprocess.run([SCRIPT, *words], capture_output=True, text=True, timeout=timeout_s, env=environment, check=False)


def test_a_lost_link_and_a_lost_node_keep_all_promises(tmp_path):
    for name in ("redis-server", "redis-cli"):
        if tool(name) is None:
            pytest.skip(f"{name} is not installed")
    path = tmp_path / "found.json"
    done = faults("--only", "link-subscription,node-killed", "--mode", "pubsub", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| kept |") == 2, done.stdout
    link, node = json.loads(path.read_text())
    assert link["heard"] + link["lost"] == link["expected"] > 1_000, link
    assert link["told"]["a gap of unknown size"] == 16, "the members of the node that lost its link"
    assert node["closed_with"] == {"1006": 16} and node["lost"] == 0, node
    assert node["found_s"] is None and "| by no node: its clients are cut off |" in done.stdout, "that it does not answer is no node's finding"


@pytest.mark.parametrize("words", [("--only", "redis-kiled"), ("--mode", "pubsup")])
def test_what_it_does_not_know_is_said(words):
    done = faults(*words, timeout_s=30)
    assert done.returncode == 2 and f"{words[1]} (there are" in done.stderr, done.stderr


# --- the verdict ------------------------------------------------------------------------------------------------


@pytest.fixture
def room():
    """A publisher on the first node that sent ten messages, and a member on the second that heard nothing yet."""
    traffic = Traffic([])
    publisher, reader = Member(traffic, "r", 0, 7), Member(traffic, "r", 1, None)
    publisher.sent = {number: 100.0 + number for number in range(10)}
    publisher.heard = {(7, number): 100.0 for number in range(10)}
    traffic.members = [publisher, reader]
    return traffic, publisher, reader


def hear(member, *numbers):
    for number in numbers:
        member._hear(f"7:{number}:", 200.0)


def notice(member, text, at=200.0):
    member._hear(text, at)


def test_what_is_missing_and_not_told_is_silent(room):
    traffic, _, reader = room
    hear(reader, *range(8))
    assert traffic.verdict()[0]["silent"] == 2
    notice(reader, '{"type":"gap","missed":1}')
    assert traffic.verdict()[0]["silent"] == 1, "that was not all of it"
    notice(reader, '{"type":"gap","missed":1}')
    found, told, _, _ = traffic.verdict()
    assert (found["silent"], found["lost"], told["a gap with its size"]) == (0, 2, 2)


def test_a_gap_of_unknown_size_covers_what_is_missing(room):
    traffic, _, reader = room
    hear(reader, 0, 9)
    notice(reader, '{"type":"gap","missed":null}')
    found, _, _, rooms = traffic.verdict()
    assert (found["silent"], found["lost"], found["heard"], found["expected"], rooms) == (0, 8, 12, 20, {"r": 8})


def test_a_room_that_stays_broken_after_its_gap_of_unknown_size_is_found(room):
    """The gap was told, and then the room was lost for good: what was sent after the gap, and after the healing, nobody was told of."""
    traffic, publisher, reader = room
    hear(reader, 0, 1, 2)
    notice(reader, '{"type":"gap","missed":null}', at=104.5)
    found, *_ = traffic.verdict(began=103.0, healed=106.0)
    assert (found["lost"], found["silent"]) == (7, 5), "3 and 4 were sent before the gap was told, 5 to 9 after it"
    reader.heard |= {(7, 0): 100.1}
    assert asyncio.run(traffic.crosses(106.0, 0)) is None, "nothing from after the repair has come: that is not healed"
    publisher.heard[7, 8], reader.heard[7, 8] = 108.1, 108.5
    publisher.heard[7, 6] = 106.2
    assert asyncio.run(traffic.crosses(106.0, 0)) == 108.5, "it is healed when the last member hears it"


def test_one_broken_room_among_others_is_not_healed(room):
    traffic, _, reader = room
    hear(reader, *range(10))
    publisher, deaf = Member(traffic, "s", 0, 8), Member(traffic, "s", 1, None)
    publisher.sent = {0: 109.0}
    publisher.heard = {(8, 0): 109.0}
    assert asyncio.run(traffic.crosses(109.0, 0)) == 200.0
    traffic.members += [publisher, deaf]
    assert asyncio.run(traffic.crosses(109.0, 0)) is None


@pytest.mark.parametrize(
    ("number", "is_silent"),
    [(1, True), (3, False), (6, False), (8, True)],
    ids=["before the fault", "in the fault", "just after it was healed", "long after it was healed"],
)
def test_a_gap_of_unknown_size_speaks_of_the_time_of_the_fault_alone(room, number, is_silent):
    traffic, _, reader = room
    hear(reader, *(set(range(10)) - {number}))
    notice(reader, '{"type":"gap","missed":null}')
    healed = 106.5 - AFTER_HEALED_S
    found, *_ = traffic.verdict(began=102.0, healed=healed)
    assert (found["lost"], found["silent"]) == (1, is_silent)


def test_a_gap_with_its_size_covers_nothing_that_was_sent_after_it(room):
    traffic, _, reader = room
    hear(reader, *range(8))
    notice(reader, '{"type":"gap","missed":2}', at=108.5)
    assert traffic.verdict()[0]["silent"] == 1, "9 was sent after that"
    notice(reader, '{"type":"gap","missed":1}', at=109.5)
    assert traffic.verdict()[0]["silent"] == 0


def test_what_was_refused_to_its_publisher_is_not_lost_and_no_more_than_that(room):
    traffic, publisher, reader = room
    hear(reader, *range(7))
    notice(publisher, '{"type":"backplane","refused":2,"local":true}')
    found, *_ = traffic.verdict()
    assert (found["refused"], found["lost"], found["silent"]) == (2, 1, 1)


def test_a_refusal_speaks_of_what_was_sent_before_it(room):
    traffic, publisher, reader = room
    hear(reader, *range(7))
    notice(publisher, '{"type":"backplane","refused":3,"local":true}', at=108.5)
    found, *_ = traffic.verdict()
    assert (found["refused"], found["lost"]) == (2, 1), "9 was sent after that"


def test_what_came_twice_or_late_is_counted(room):
    traffic, _, reader = room
    hear(reader, *range(10), 3)
    assert traffic.verdict()[0]["twice"] == 1 and traffic.verdict()[0]["disordered"] == 0
    reader.heard.clear()
    hear(reader, 0, 2, 1, *range(3, 10))
    assert traffic.verdict()[0]["disordered"] == 1 and traffic.verdict()[0]["lost"] == 0


def test_who_was_away_has_missed_what_was_sent_meanwhile_and_nothing_else(room):
    traffic, _, reader = room
    reader.away = [[103.0, 105.0]]
    hear(reader, 0, 1, 2, *range(7, 10))
    found, *_ = traffic.verdict()
    assert EDGE_S < 1 and (found["away"], found["lost"]) == (3, 1), "3, 4, 5; 6 was sent when it was back"


# --- the table --------------------------------------------------------------------------------------------------


def test_a_row_of_several_runs_has_the_worst_of_them():
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "redis-killed")
    calm = {
        "mode": "pubsub",
        "found_s": 0.001,
        "healed_s": 1.0,
        "expected": 1000,
        "heard": 1000,
        "lost": 0,
        "away": 0,
        "told": {},
        "closed_with": {},
        "not_ready_s": [{}, {}],
        "broken": [],
    }
    bad = calm | {
        "found_s": None,
        "healed_s": 4.0,
        "heard": 988,
        "lost": 12,
        "told": {"a gap with its size": 3},
        "not_ready_s": [{}, {"503": 2.0}],
        "broken": ["not found within 1 s"],
    }
    cells = [cell.strip() for cell in row(scenario, [calm, bad, calm]).split("|")[2:-1]]
    assert cells == [
        "pubsub",
        "3",
        "1 ms (in 2 of 3)",
        "1.0 s – 4.0 s",
        "0 – 12 of 1,000",
        "0",
        "a gap with its size: 0 – 3",
        "503 on 1 of 2 for 2.0 s",
        "**not found within 1 s**",
    ]
    died = {"mode": "pubsub", "broken": ["no replica is promoted"]}
    assert "**no replica is promoted**" in row(scenario, [died]) and "**no replica is promoted**" in row(scenario, [calm, died])
