"""Several generators as one: a coordinator and those that join it, and what happens when one of them goes."""

import functools

import pytest
from harness import Load, Server, eventually, free_port, load
from test_load import TRUTHS


@pytest.fixture
def run(tmp_path):
    return functools.partial(load, tmp_path)


def joiner(tmp_path, address, *more):
    return Load(tmp_path, "--join", address, "--once", "--wait", 20, *more, report=False)


def leader(tmp_path, server, address, *scenario):
    return Load(tmp_path, *scenario, "--target", server.url(""), "--coordinator", address, "--generators", 1)


def test_two_generators_report_as_one(server, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    before = server.metric("throng_deliveries_total")
    scenario = ["fanout", "--rooms", 3, "--members", 10, "--publishers", 2, "--rate", 40]
    with joiner(tmp_path, address, "--name", "second") as second:
        with leader(tmp_path, server, address, *scenario, "--warm-up", "0.3", "--duration", 1) as first:
            result = first.finish().assert_code(0)
        assert second.finish().assert_code(0).err.startswith("joined")
    assert [result[name] for name in TRUTHS] == [0] * len(TRUTHS), result
    assert result["upgraded"] == 30
    assert result["delivered"] == result["published"] * 10
    assert server.metric("throng_deliveries_total") - before == result["delivered"]
    assert 0.5 * 3 * 2 * 40 * 10 <= result["deliveries_per_s"] <= result["delivered"]
    assert any("second" in name for name in result.figures) or any("second" in note for note in result.notes), result


def test_an_interrupted_coordinator_has_the_report_of_all(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    scenario = ["fanout", "--members", 10, "--rate", 50, "--warm-up", 0, "--duration", 600, "--time-limit", 900]
    with Server(tmp_path) as server:
        with joiner(tmp_path, address) as second, leader(tmp_path, server, address, *scenario) as first:
            server.await_metric("throng_deliveries_total", 300)
            first.interrupt()
            result = first.finish(20).assert_code(130)
            assert second.finish(20).code == 0
        assert result.faults[0].startswith("interrupted")
        assert result["lost"] == 0 and result["delivered"] == result["published"] * 10 > 0
        assert result["upgraded"] == 10


def test_a_generator_that_goes_ends_the_run(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    scenario = ["fanout", "--members", 10, "--rate", 50, "--warm-up", 0, "--duration", 600, "--time-limit", 900]
    with Server(tmp_path) as server:
        with joiner(tmp_path, address, "--name", "second") as second:
            with leader(tmp_path, server, address, *scenario) as first:
                server.await_metric("throng_deliveries_total", 300)
                second.process.kill()
                result = first.finish(30).assert_code(1)
        result.assert_says("second", "left")
        eventually(lambda: server.open_count() == 0, "the others have left, too")


def test_who_waits_for_nobody_says_so(server, run):
    address = f"127.0.0.1:{free_port()}"
    run("--join", address, "--once", "--wait", "0.3", report=False).assert_code(2).assert_says(
        f"--join {address}", "no coordinator within 0.3 s"
    )
    target = ["--target", server.url("")]
    run("echo", *target, "--coordinator", address, "--generators-wait", "0.3", report=False).assert_code(2).assert_says(
        "0 of 1 generators joined", "--generators-wait"
    )
    run("echo", *target, "--coordinator", "0.0.0.0:1", report=False).assert_code(2).assert_says("--coordinator")
