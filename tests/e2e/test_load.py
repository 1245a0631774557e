"""throng-load against the real server: what it reports is what happened, by the server's own books, too."""

import functools

import pytest
from harness import Load, Server, eventually, load

TRUTHS = ("lost", "duplicated", "reordered", "corrupted", "misrouted", "lost_as_told")


@pytest.fixture
def run(tmp_path):
    return functools.partial(load, tmp_path)


def assert_true(result):
    """Nothing was lost or broke, it says so in its exit code, and its parts agree."""
    result.assert_code(0)
    assert result.faults == [] and result.err == "", result
    assert [result[name] for name in TRUTHS] == [0] * len(TRUTHS), result
    assert result["connections_failed"] == result["connections_lost"] == 0, result
    assert_consistent(result)


def assert_consistent(result):
    """The file's parts agree with each other."""
    document = result.document
    assert document["schema"] == "throng-load/1" and document["command"].endswith(result.arguments[-1])
    for name, histogram in document["histograms"].items():
        percentiles = dict(map(tuple, histogram["percentiles"]))
        if f"{name}_p99_ms" in document["figures"]:
            assert percentiles[0.99] / 1e6 == result[f"{name}_p99_ms"], name
            assert percentiles[1.0] / 1e6 == result[f"{name}_max_ms"], name
        values = [value for _, value in sorted(percentiles.items())]
        assert values == sorted(values) and histogram["count"] > 0, name
    points = document["timeline"]["points"]
    for name in ("upgraded", "delivered"):
        if name in document["figures"]:
            in_points = sum(point[name] for point in points)
            # What comes within the rest of the last second has no point: then somebody was still connected at the last.
            whole = points[-1]["open"] == 0
            assert in_points == result[name] if whole else in_points <= result[name], (name, in_points, result)


def books(server):
    """What the server counts."""
    metrics = server.metrics()
    return {
        "upgraded": metrics.sum("throng_handshakes_total", outcome="upgraded"),
        "received": metrics.sum("throng_messages_received_total"),
        "deliveries": metrics.sum("throng_deliveries_total"),
    }


def booked(server, before):
    return {name: value - before[name] for name, value in books(server).items()}


# --- fanout -----------------------------------------------------------------------------------------------------


def test_fanout_reports_each_delivery_that_the_server_made(server, run):
    before = books(server)
    rooms, members, publishers, rate, duration = 4, 15, 2, 40, 1.0
    result = run(
        *("fanout", "--target", server.url(""), "--rooms", rooms, "--members", members, "--publishers", publishers),
        *("--rate", rate, "--size", "64-512", "--warm-up", "0.3", "--duration", duration),
        *("--server-pid", server.process.pid, "--metrics", "http://{}:{}/metrics".format(*server.admin_address)),
    )
    assert_true(result)
    assert result["upgraded"] == rooms * members
    assert result["delivered"] == result["published"] * members
    # One connection is the look at the target before the run.
    assert booked(server, before) == {
        "upgraded": rooms * members + 1,
        "received": result["published"],
        "deliveries": result["delivered"],
    }
    # Each publisher is due `rate` times in each second of warm-up and window, wherever its first message falls.
    due = rooms * publishers * rate
    assert abs(result["published"] - due * (0.3 + duration)) <= rooms * publishers
    in_window = result.document["histograms"]["latency"]["count"]
    assert in_window % members == 0 and abs(in_window / members - due * duration) <= rooms * publishers
    # What a busy machine delays beyond the warm-up falls into the window, for the tool and for the server's own figures,
    # which are read a moment after its ends.
    for in_window in (result["deliveries_per_s"] * duration, result["metrics_throng_deliveries"]):
        assert 0.5 * due * members <= in_window <= result["delivered"], result
    assert result["metrics_throng_connections"] == rooms * members
    assert 0 < result["server_cpu_us_per_delivery"] < 10_000
    assert result["server_rss_after_bytes"] > 1 << 20
    assert result["latency_p50_ms"] <= result["latency_p99_ms"] <= result["latency_max_ms"]
    phases = [phase["name"] for phase in result.document["timeline"]["phases"]]
    assert phases == ["connect", "warm-up", "measure", "settle", "finish"]


def test_a_closed_loop_has_no_more_on_its_way_than_it_was_told(server, run):
    result = run(
        *("fanout", "--target", server.url(""), "--rooms", 3, "--members", 4, "--closed", "--in-flight", 2),
        *("--warm-up", "0.2", "--duration", "0.5"),
    )
    assert_true(result)
    assert result["delivered"] == result["published"] * 4 > 0


def test_several_threads_count_as_one(server, run):
    before = books(server)
    result = run(
        *("fanout", "--target", server.url(""), "--rooms", 5, "--members", 7, "--publishers", 3, "--rate", 50),
        *("--threads", 3, "--warm-up", "0.2", "--duration", "0.5", "--source", "127.0.0.20-127.0.0.29"),
    )
    assert_true(result)
    assert result["delivered"] == result["published"] * 7 == booked(server, before)["deliveries"]


def test_members_of_a_room_are_spread_over_two_targets(tmp_path, run):
    """Two servers that know nothing of each other: a room on both is two rooms, and the tool sees what does not come."""
    with Server(tmp_path) as here, Server(tmp_path) as there:
        arguments = ["--members", 10, "--rate", 50, "--publish-on", "first", "--warm-up", "0.2", "--duration", "0.5"]
        both = ["--target", here.url(""), "--target", there.url("")]
        result = run("fanout", *both, *arguments).assert_code(1)
        assert result["upgraded"] == 10
        assert result["delivered"] == result["published"] * 5
        assert books(here)["deliveries"] == result["delivered"] and books(there)["deliveries"] == 0
        assert any("delivered" in fault or "lost" in fault for fault in result.faults), result
        assert_consistent(result)
        # One server by two of its names is one server.
        _, port = here.address
        twice = ["--target", here.url(""), "--target", f"ws://localhost:{port}"]
        result = run("fanout", *twice, *arguments)
        assert_true(result)
        assert result["delivered"] == result["published"] * 10


# --- the others -------------------------------------------------------------------------------------------------


def test_idle_holds_everybody_and_reaches_them_all(server, run):
    before = books(server)
    result = run(
        *("idle", "--target", server.url(""), "--steps", "100,300", "--rooms", 3, "--messages", 3),
        *("--hold", "0.2", "--settle", "0.2", "--server-pid", server.process.pid),
    )
    assert_true(result)
    assert result["upgraded"] == result["held"] == 300
    assert result["delivered"] == 3 * 300
    assert booked(server, before) == {"upgraded": 301, "received": 3 * 3, "deliveries": 3 * 300}
    assert result["server_rss_at_300_bytes"] > 0 and "server_rss_bytes_per_connection" in result.figures


def test_echo_has_each_message_back_once(server, run):
    before = books(server)
    result = run(
        *("echo", "--target", server.url(""), "--connections", 8, "--in-flight", 4),
        *("--warm-up", "0.1", "--duration", "0.4"),
    )
    assert_true(result)
    assert result["delivered"] > 0
    assert booked(server, before) == {
        "upgraded": 9,
        "received": result["delivered"],
        "deliveries": result["delivered"],
    }


@pytest.mark.parametrize("end", ["stream", "close-frame"])
def test_churn_ends_as_many_as_it_began(server, run, end):
    before = books(server)
    result = run(
        *("churn", "--target", server.url(""), "--connections", 300, "--warm-up", 50, "--concurrency", 16),
        *("--end", end, "--server-pid", server.process.pid),
    ).assert_code(0)
    assert result["handshakes"] == 300 and result["upgraded"] == 350
    assert result["connections_failed"] == result["connections_lost"] == 0
    assert booked(server, before)["upgraded"] == 351
    assert result["server_descriptor_growth"] < 16
    server.await_open(0)


def test_a_storm_comes_back_though_the_server_limits_handshakes(serve, run):
    # One second's worth is a burst: all connect at once, and find the limit when they come back.
    server = serve("handshakes_per_s_max = 100\n", shards=1)
    result = run(
        *("storm", "--target", server.url(""), "--connections", 90, "--hold", "0.1"),
        *("--backoff", 100, "--backoff-max", 1000, "--within", 20),
    )
    assert_true(result)
    assert result["dropped"] == 90 and result["upgraded"] == 180 and result["delivered"] == 90
    refused = server.metric("throng_handshakes_total", outcome="handshake_rate")
    assert result["retried_after_503"] == result["attempts_made_again"] == refused > 0, result
    assert any("503" in note and f"{refused:.0f} refused" in note for note in result.notes), result
    assert result["seconds_until_all_back"] > 0.5
    assert result["seconds_until_all_back"] * 1e3 >= result["back_max_ms"] * 0.99


def test_slow_members_are_cut_and_readers_lose_nothing(serve, run):
    server = serve("connection_queue_bytes_max = 65536\nsocket_send_buffer_bytes = 16384\n")
    result = run(
        *("slow", "--target", server.url(""), "--readers", 10, "--stalled", 5, "--size", 4096, "--rate", 150),
        *("--warm-up", "0.2", "--duration", 1),
    )
    assert_true(result)
    assert result["slow_closed_by_server"] == 5 and result["slow_still_open"] == 0, result
    assert server.metric("throng_connections_closed_total", reason="slow_consumer") == 5
    # Two windows and two warm-ups, and all readers had all of it.
    assert abs(result["delivered"] - 2 * 1.2 * 150 * 10) <= 2 * 10, result
    assert result["alone_delivered"] > 0 and result["beside_slow_delivered"] > 0


def test_a_drain_closes_with_1012_and_everybody_comes_back_elsewhere(tmp_path, run):
    with Server(tmp_path, "drain_window_ms = 1000\nreconnect_after_ms = 100\n") as leaving, Server(tmp_path) as staying:
        result = run(
            *("drain", "--target", leaving.url(""), "--target", staying.url(""), "--members", 40, "--come-back"),
            *("--stop-pid", leaving.process.pid, "--warm-up", "0.3", "--duration", 2, "--backoff", 100),
        )
        assert leaving.wait() == 0
        assert result["closed_by_server"] == result["closed_with_1012"] == 20, result
        assert result["never_closed"] == 20 and result["advised_to_reconnect"] == 20
        assert result["open_at_the_end"] == 40
        assert result["back_on_target_0"] == 0 and result["back_on_target_1"] == 20
        assert 0.3 <= result["close_spread_seconds"] <= 2.5
        assert result.document["histograms"]["back"]["count"] == 20


def test_a_drain_without_return_ends_when_all_are_closed(tmp_path, run):
    with Server(tmp_path, "drain_window_ms = 500\n") as server:
        result = run(
            *("drain", "--target", server.url(""), "--members", 20, "--stop-pid", server.process.pid),
            *("--warm-up", "0.2", "--duration", "1.5"),
        )
        assert server.wait() == 0
        result.assert_code(0)
        assert result["closed_by_server"] == result["closed_with_1012"] == 20 and result["never_closed"] == 0


def test_idle_waits_for_a_server_that_somebody_else_stops(tmp_path):
    with Server(tmp_path, "drain_delay_ms = 500\ndrain_window_ms = 300\n") as server:
        waits = ["--hold", 0, "--settle", 0, "--messages", 1, "--until-closed", 20]
        with Load(tmp_path, "idle", "--target", server.url(""), "--connections", 30, *waits) as running:
            server.await_metric("throng_deliveries_total", 30)
            assert server.stop() == 0
            result = running.finish().assert_code(0)
        assert result["closed_by_server"] == result["closed_with_1012"] == 30 and result["never_closed"] == 0, result


# --- expectations -----------------------------------------------------------------------------------------------


def test_expectations_decide_the_exit_code(server, run):
    arguments = ["fanout", "--target", server.url(""), "--members", 5, "--warm-up", "0.1", "--duration", "0.3"]
    run(*arguments, "--expect", "lost=0", "--expect", "latency_p99_ms<10s").assert_code(0)
    result = run(*arguments, "--expect", "lost=0", "--expect", "upgraded>5").assert_code(1)
    assert result.faults == ["expected upgraded>5, found 5"]
    result.assert_says("expected upgraded>5, found 5")
    assert "FAULT: expected upgraded>5" in result.out


def test_a_name_that_no_figure_has_is_said_with_those_there_are(server, run):
    result = run(
        *("fanout", "--target", server.url(""), "--members", 5, "--warm-up", "0.1", "--duration", "0.2"),
        *("--expect", "latncy_p99_ms<5"),
    ).assert_code(2)
    result.assert_says("latncy_p99_ms", "latency_p99_ms")
    assert result["delivered"] > 0, "the run is not thrown away for it"


def test_nobody_is_left_behind(server):
    eventually(lambda: server.open_count() == 0, "all connections of the runs are gone")
