"""scripts/faults.sh: it runs, it can tell a kept promise from a broken one, and it says what it does not know."""

import json
import subprocess
import sys

import pytest
from balancers.render import tool
from harness.server import REPOSITORY, binary, clean_environment

sys.path.insert(0, str(REPOSITORY / "scripts/faults"))
from traffic import EDGE_S, Member, Traffic  # noqa: E402

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


def notice(member, text):
    member._hear(text, 200.0)


def test_what_is_missing_and_not_told_is_silent(room):
    traffic, _, reader = room
    hear(reader, *range(8))
    assert traffic.verdict()[0]["silent"] == 2
    notice(reader, '{"type":"gap","missed":1}')
    assert traffic.verdict()[0]["silent"] == 2, "that was not all of it"
    notice(reader, '{"type":"gap","missed":1}')
    found, told, _ = traffic.verdict()
    assert (found["silent"], found["lost"], told["a gap with its size"]) == (0, 2, 2)


def test_a_gap_of_unknown_size_covers_what_is_missing(room):
    traffic, _, reader = room
    hear(reader, 0, 9)
    notice(reader, '{"type":"gap","missed":null}')
    found, _, _ = traffic.verdict()
    assert (found["silent"], found["lost"], found["heard"], found["expected"]) == (0, 8, 12, 20)


def test_what_was_refused_to_its_publisher_is_not_lost_and_no_more_than_that(room):
    traffic, publisher, reader = room
    hear(reader, *range(7))
    notice(publisher, '{"type":"backplane","refused":2,"local":true}')
    found, _, _ = traffic.verdict()
    assert (found["refused"], found["lost"], found["silent"]) == (2, 1, 1)


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
    found, _, _ = traffic.verdict()
    assert EDGE_S < 1 and (found["away"], found["lost"]) == (3, 1), "3, 4, 5; 6 was sent when it was back"
