"""throng-load's longer questions: how much a server holds, whether it drifts, and scenarios that are written down."""

import functools
from pathlib import Path

import pytest
from harness import Load, eventually, load
from test_load import TRUTHS

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "loadtest/examples").glob("*.toml"))


@pytest.fixture
def run(tmp_path):
    return functools.partial(load, tmp_path)


# --- capacity ---------------------------------------------------------------------------------------------------


def test_capacity_finds_the_limit_that_was_set(serve, run):
    server = serve("connection_count_max = 50\n", shards=1)
    result = run(
        *("capacity", "--target", server.url(""), "--raise", "connections", "--from", 10, "--to", 200),
        *("--precision", "0.04", "--tries", 1, "--rest", "0.1", "--hold", 0),
    ).assert_code(0)
    assert 47.5 <= result["capacity"] <= 50 < result["capacity_broke_at"] <= 53, result
    assert result["trials"] >= 4 and result["held" if "held" in result.figures else "upgraded"] == result["capacity"]
    assert any("limiting resource" in note and "503" in note for note in result.notes), result


def test_capacity_says_when_nothing_broke(server, run):
    result = run(
        *("capacity", "--target", server.url(""), "--raise", "members", "--from", 5, "--to", 10, "--rest", 0),
        *("--objective", "p99<5s,loss=0", "--duration", "0.3", "--warm-up", "0.1"),
    ).assert_code(0)
    assert result["capacity"] == 10 and "capacity_broke_at" not in result.figures
    assert any("nothing broke up to --to" in note for note in result.notes), result


def test_an_interrupted_search_answers_with_what_held(serve, tmp_path):
    server = serve(shards=1)
    arguments = ["capacity", "--raise", "members", "--from", 5, "--to", 5000, "--rest", 0, "--duration", 1]
    with Load(tmp_path, *arguments, "--target", server.url(""), "--warm-up", 0) as running:
        # Two looks, the first trial's members and one of the second's: the first has held.
        server.await_metric("throng_handshakes_total", 8, outcome="upgraded")
        running.interrupt()
        result = running.finish(20).assert_code(130)
    assert result.faults[0] == "interrupted: the search was not at its end"
    assert result["capacity"] == 5 and result["trials"] == 1, result


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--raise", "members", "--from", 10, "--to", 5], ["--from", "--to"]),
        (["--raise", "members", "--from", 5, "--to", 10, "--objective", "cpu<90%"], ["cpu<90%", "--server-pid"]),
        (["--raise", "members", "--from", 5, "--to", 10, "--objective", "p98<1"], ["p98"]),
        (["--raise", "rate", "--from", 1, "--to", 1e8], ["--rate", "at 100000000"]),
        (["--raise", "tables", "--from", 1, "--to", 2], ["tables", "connections"]),
        (["--from", 1, "--to", 2], ["--raise"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_searches_that_cannot_be_are_refused(server, run, arguments, words):
    # A figure that no run has is seen when the first trial has ended.
    quick = ["--duration", "0.1", "--warm-up", 0]
    run("capacity", "--target", server.url(""), *arguments, *quick, report=False).assert_code(2).assert_says(*words)


# --- soak -------------------------------------------------------------------------------------------------------


def soak(server, *more):
    return [
        *("soak", "--target", server.url(""), "--members", 10, "--window", 1, "--settle", 1, "--warm-up", "0.2"),
        *("--server-pid", server.process.pid, *more),
    ]


def test_a_soak_without_drift_holds(serve, run):
    server = serve(shards=1)
    # Where the processors are shared, others make a p99 of ten members drift by more than is allowed by default.
    result = run(*soak(server, "--duration", 3, "--latency-slack", "250ms")).assert_code(0)
    assert [result[name] for name in TRUTHS] == [0] * len(TRUTHS), result
    assert result["published"] > 0 and result["upgraded"] >= 10


def test_a_soak_ends_when_its_server_does(serve, tmp_path):
    server = serve(shards=1)
    with Load(tmp_path, *soak(server, "--duration", 3600, "--time-limit", 4000)) as running:
        eventually(lambda: server.metric("throng_deliveries_total") > 100, "it is under way")
        server.kill()
        result = running.finish(20).assert_code(1)
    assert result["connections_lost"] >= 10, result


def test_an_interrupted_soak_has_lost_nothing(serve, tmp_path):
    server = serve(shards=1)
    with Load(tmp_path, *soak(server, "--duration", 3600, "--time-limit", 4000)) as running:
        eventually(lambda: server.metric("throng_deliveries_total") > 300, "it is under way")
        running.interrupt()
        result = running.finish(20).assert_code(130)
    assert result.faults[0].startswith("interrupted") and result["lost"] == 0


# --- files ------------------------------------------------------------------------------------------------------


def test_a_file_is_a_scenario_and_flags_take_the_place_of_its_keys(server, run, tmp_path):
    file = tmp_path / "load.toml"
    file.write_text(
        f'scenario = "fanout"\ntarget = "{server.url("")}"\nmembers = 4\nrooms = 2\nwarm-up = 0.1\nduration = 0.2\n'
        'expect = ["lost=0"]\n'
    )
    assert run("run", file).assert_code(0)["upgraded"] == 8
    assert run("run", file, "--members", 6).assert_code(0)["upgraded"] == 12
    run("run", file, "--expect", "lost=1").assert_code(1).assert_says("expected lost=1, found 0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('scenario = "fanout"\ntarget = "ws://127.0.0.1:1"\nmember = 5\n', ["load.toml:3", "member"]),
        ('scenario = "fanouts"\n', ["load.toml", "fanouts"]),
        ("members = 5\n", ["load.toml", "scenario"]),
        ("scenario = \n", ["load.toml"]),
    ],
    ids=["unknown key", "unknown scenario", "no scenario", "no TOML"],
)
def test_files_that_are_wrong_say_where(run, tmp_path, text, words):
    file = tmp_path / "load.toml"
    file.write_text(text)
    run("run", file, report=False).assert_code(2).assert_says(*words)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_each_example_is_understood(server, run, file):
    """With nobody at its target, the target is all that there is to complain about."""
    run("run", file, "--target", "ws://127.0.0.1:1", "--server-pid", server.process.pid, report=False).assert_code(
        2
    ).assert_says("127.0.0.1:1", "is the server running")
