"""throng-load in a stranger's hands: what cannot be is said before the run, with what mends it, and exit codes are kept.

0: all is well. 1: something was lost, broke, or fell short. 2: the command cannot be carried out. 130: interrupted.
"""

import base64
import functools
import hashlib
import os
import pty
import resource
import signal
import subprocess
import termios
import threading
import time

import pytest
from harness import Load, Scripted, Server, eventually, load
from harness.load import load_binary
from harness.peer import pipe_end, read_request, refuse

SHORT = ["--members", 5, "--warm-up", "0.1", "--duration", "0.2"]


@pytest.fixture
def run(tmp_path):
    return functools.partial(load, tmp_path)


def upgrade(one):
    """Answers an upgrade as a WebSocket server does."""
    head = read_request(one).decode()
    key = next(line.split(":")[1].strip() for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    one.sendall("\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept}", "", ""]).encode())


def limited(what, count):
    return lambda: resource.setrlimit(what, (count, count))


# --- before the run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate", 0], ["--rate", "0.001 to 1000000"]),
        (["--rate", "nan"], ["--rate"]),
        (["--rate", "1000000", "--publishers", 5, "--rooms", 3], ["15000000 messages a second", "at most"]),
        (["--duration", "nan"], ["--duration", "seconds are expected"]),
        (["--duration", 0], ["--duration", "0.01"]),
        (["--members", 0], ["members"]),
        (["--publishers", 6], ["--publishers 6", "5 members"]),
        (["--size", 3], ["--size", "20 to 1048576"]),
        (["--size", "many"], ["--size", "128, 64-4096"]),
        (["--threads", 0], ["--threads", "at least 1"]),
        (["--threads", 9], ["9 threads for 5 connections", "--threads"]),
        (["--core", 900], ["processor 900", "nproc"]),
        (["--time-limit", 0], ["--time-limit", "at least 1"]),
        (["--header", "no colon"], ["--header", "Name: value"]),
        (["--path", "rooms"], ["--path rooms", "begin with /"]),
        (["--rooms", 2, "--path", "/all"], ["{room}", "--path"]),
        (["--source", "127.0.0.9-127.0.0.1"], ["--source", "not a range"]),
        (["--source", "192.0.2.7"], ["192.0.2.7 is no address of this machine"]),
        (["--expect", "lost"], ["--expect lost", "NAME<VALUE"]),
        (["--expect", "latency_p99_ms<5KiB"], ["--expect", "milliseconds"]),
        (["--json", "/nowhere/report.json"], ["--json /nowhere/report.json", "No such file"]),
        (["--html", "/nowhere/report.html"], ["--html /nowhere/report.html", "No such file"]),
        (["--hdr", "/proc"], ["--hdr /proc", "Is a directory"]),
        (["--server-pid", 4194304], ["--server-pid 4194304", "no such process"]),
        (["--server-pid", 2], ["--server-pid 2"]),
        (["--metrics", "http://127.0.0.1:1/metrics"], ["--metrics http://127.0.0.1:1/metrics", "nobody listens"]),
        (["--target", "ws://192.0.2.1:80"], ["not on this machine", "--allow-remote"]),
        (["--target", "wss://127.0.0.1:1"], ["TLS", "ws://HOST:PORT"]),
        (["--target", "http://127.0.0.1:1"], ["not a WebSocket URL", "ws://HOST:PORT"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value[0], str) and value[0].startswith("--") else "",
)
def test_what_cannot_be_is_said_before_the_run(server, run, arguments, words):
    began = time.monotonic()
    targets = [] if "--target" in arguments else ["--target", server.url("")]
    short = ["--members", 5] if "--members" not in arguments else []
    result = run("fanout", *targets, *short, *arguments, report=False)
    result.assert_code(2).assert_says(*words)
    assert result.out == "", "there is nothing to report"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["idle", "--connections", 0], ["--connections", "at least 1"]),
        (["idle", "--steps", "20,10"], ["--steps", "rise"]),
        (["idle", "--hold", "nan"], ["--hold"]),
        (["idle", "--connections", 60_000, "--source", "127.0.0.1"], ["ip_local_port_range", "--source", "60000"]),
        (["echo", "--in-flight", 0], ["--in-flight"]),
        (["churn", "--connections", 0], ["--connections", "at least 1"]),
        (["churn", "--concurrency", 0], ["--concurrency", "at least 1"]),
        (["storm", "--jitter", 2], ["--jitter", "0 to 1"]),
        (["slow", "--stalled", 0], ["--stalled", "--crawling"]),
        (["drain", "--stop-pid", 4194304], ["--stop-pid 4194304", "no such process"]),
        (["drain", "--stop-pid", 0], ["--stop-pid 0"]),
        (["storms"], ["storm"]),
        (["fanout", "--connections", 5], ["--connections"]),
        ([], ["Usage"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_each_scenario_refuses_what_it_cannot_do(server, run, arguments, words):
    target = ["--target", server.url("")] if arguments else []
    run(*arguments, *target, report=False).assert_code(2).assert_says(*words)
    assert server.open_count() == 0


def test_an_unreachable_target_is_named(run):
    run("fanout", "--target", "ws://127.0.0.1:1", report=False).assert_code(2).assert_says(
        "127.0.0.1:1", "Connection refused", "is the server running"
    )


@pytest.mark.parametrize(
    "status", ["403 Forbidden", "404 Not Found", "426 Upgrade Required", "503 Service Unavailable", "200 OK"]
)
def test_a_refused_upgrade_is_shown_with_status_and_body(run, status):
    with Scripted(refuse(status, f"{status} means\r\n  no \x1b[31mentry")) as server:
        result = run("fanout", "--target", server.url, *SHORT, report=False).assert_code(2)
        result.assert_says(f"HTTP {status[:3]}", f"{status} means no", "/rooms/probe")
        assert "\x1b" not in result.err and result.err.count("\n") == 1, "a body is no terminal's business"


def test_a_body_that_comes_behind_its_head_is_shown(run):
    def answer(one, _index):
        read_request(one)
        one.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 10\r\n\r\n")
        time.sleep(0.1)  # the case itself: two packets
        one.sendall(b"node full\n")

    with Scripted(answer) as server:
        run("echo", "--target", server.url, report=False).assert_code(2).assert_says("HTTP 503: node full")


def test_servers_that_are_none_are_told_apart(run):
    def greet(one, _index):
        one.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    def leave(one, _index):
        read_request(one)
        one.close()

    with Scripted(greet) as server:
        run("echo", "--target", server.url, report=False).assert_code(2).assert_says("the answer is not HTTP")
    with Scripted(leave) as server:
        run("echo", "--target", server.url, report=False).assert_code(2).assert_says("ended the stream after 0 bytes")
    with Scripted(lambda _one, _index: None) as server:
        run("echo", "--target", server.url, "--patience", "0.3", report=False).assert_code(2).assert_says(
            "no answer", "within 0.3 s", "--patience"
        )


@pytest.mark.parametrize("count", [12, 40])
def test_too_few_files_are_said_with_the_remedy(server, run, count):
    result = run(
        *("idle", "--target", server.url(""), "--connections", 200, "--hold", 0, "--settle", 0),
        limits=limited(resource.RLIMIT_NOFILE, count),
        report=False,
    )
    result.assert_code(2).assert_says("open file", "ulimit -n")


def test_few_files_hold_many_connections_with_direct_descriptors(server, run):
    result = run(
        *("idle", "--target", server.url(""), "--connections", 300, "--hold", 0, "--settle", 0),
        limits=limited(resource.RLIMIT_NOFILE, 256),
    ).assert_code(0)
    assert result["held"] == 300


def test_files_that_are_there_stay_until_the_report_takes_their_place(server, run, tmp_path):
    kept = tmp_path / "old.json"
    kept.write_text("old")
    arguments = ["fanout", "--target", server.url(""), *SHORT, "--json", kept]
    run(*arguments, "--server-pid", 4194304, report=False).assert_code(2)
    assert kept.read_text() == "old"
    new = tmp_path / "new.json"
    run(*arguments[:-1], new, "--server-pid", 4194304, report=False).assert_code(2)
    assert not new.exists(), "a check leaves nothing behind"


# --- within the run ---------------------------------------------------------------------------------------------


def test_connections_refused_later_are_counted_by_status_and_words(run):
    def answer(one, index):
        if index <= 3:  # the first is the look before the run
            upgrade(one)
        else:
            refuse("503 Service Unavailable", "full: come back later")(one, index)

    with Scripted(answer) as server:
        result = run("idle", "--target", server.url, "--connections", 10, "--hold", 0, "--settle", 0).assert_code(1)
        assert result["upgraded"] == 3 and result["refused_with_503"] == result["connections_failed"] == 7
        result.assert_says("7 upgrades were refused", "HTTP 503: full: come back later")


def test_a_server_that_says_nothing_more_is_given_up(run):
    def answer(one, index):
        if index == 0:
            upgrade(one)

    with Scripted(answer) as server:
        result = run("idle", "--target", server.url, "--connections", 5, "--patience", "0.5", "--hold", 0, "--settle", 0)
        result.assert_code(1).assert_says("only 0 of 5 connections were answered")
        result = run("idle", "--target", server.url, "--connections", 5, "--patience", "0.3")
        result.assert_code(2)


def test_a_server_that_delivers_nothing_has_lost_everything(run):
    with Scripted(lambda one, _index: upgrade(one)) as server:
        result = run("fanout", "--target", server.url, *SHORT, "--rate", 50).assert_code(1)
        assert result["delivered"] == 0 and result["lost"] == result["published"] * 5 > 0
        assert "latency_p99_ms" not in result.figures, "of nothing there is no percentile"
        result.assert_says("deliveries were lost", "nothing was delivered within the window")


def test_a_server_that_closes_everybody_is_reported_by_code(run):
    def answer(one, _index):
        upgrade(one)
        one.sendall(b"\x88\x02\x03\xe9")  # 1001
        one.close()

    with Scripted(answer) as server:
        result = run("fanout", "--target", server.url, *SHORT).assert_code(1)
        assert result["closed_by_server_1001"] == result["connections_lost"] == 5
        result.assert_says("5 connections were closed by the server", "1001")


def test_frames_that_are_none_are_reported(run):
    def answer(one, _index):
        upgrade(one)
        one.sendall(b"\xff\xff\xff")

    with Scripted(answer) as server:
        result = run("fanout", "--target", server.url, *SHORT).assert_code(1)
        assert result["connections_lost"] == 5
        result.assert_says("5 streams broke the protocol")


def test_a_server_killed_in_the_middle_is_lost_connections_and_no_hang(serve, tmp_path):
    server = serve(shards=1)
    arguments = ["fanout", "--target", server.url(""), "--members", 20, "--rate", 50, "--duration", 600, "--warm-up", "0.1"]
    with Load(tmp_path, *arguments, "--server-pid", server.process.pid) as running:
        server.await_metric("throng_deliveries_total", 200)
        server.kill()
        result = running.finish(20).assert_code(1)
    assert result["connections_lost"] == result["closed_by_server_1006"] == 20, result
    assert result["delivered"] >= 200
    assert result.faults[0] == "the run was cut short: nobody was connected any more"
    assert any("ended during the run" in fault for fault in result.faults), result


def test_the_time_limit_ends_a_run_and_says_so(server, run):
    result = run(
        *("fanout", "--target", server.url(""), "--members", 5, "--rate", 50, "--warm-up", "0.1"),
        *("--duration", 60, "--time-limit", 1),
    ).assert_code(1)
    assert "--time-limit (1 s)" in result.faults[0]
    assert result["lost"] == 0 and result["delivered"] == result["published"] * 5 > 0
    assert 0.3 <= result["deliveries_per_s"] / (50 * 5) <= 2, "over the seconds that were measured, not the 60"


# --- interrupted ------------------------------------------------------------------------------------------------

LONG = ["--warm-up", 0, "--duration", 600, "--time-limit", 900]
INTERRUPTED = {
    "connect": (["idle", "--connections", 50_000, "--connect-rate", 500], "upgraded"),
    "warm-up": (["fanout", "--members", 5, "--warm-up", 600], "upgraded"),
    "measure": (["fanout", "--members", 5, "--rate", 100, *LONG], "delivered"),
    "closed loop": (["fanout", "--members", 5, "--closed", *LONG], "delivered"),
    "echo": (["echo", "--connections", 5, *LONG], "delivered"),
    "churn": (["churn", "--connections", 10_000_000, "--warm-up", 1], "upgraded"),
    "hold": (["storm", "--connections", 20, "--hold", 600], "upgraded"),
    "storm": (["storm", "--connections", 20, "--hold", 0, "--backoff", 60000, "--backoff-max", 60000], "upgraded"),
    "slow": (["slow", "--readers", 5, "--stalled", 2, "--rate", 100, *LONG], "delivered"),
    "drain": (["drain", "--members", 5, "--rate", 100, *LONG], "delivered"),
    "broadcast": (["idle", "--connections", 20, "--settle", 0, "--hold", 0, "--messages", 1_000_000], "delivered"),
    "wait": (["idle", "--connections", 20, "--settle", 0, "--hold", 0, "--until-closed", 600], "upgraded"),
}


@pytest.fixture(scope="module")
def calm_server(tmp_path_factory):
    """A server for runs that end in the middle."""
    with Server(tmp_path_factory.mktemp("interrupted")) as running:
        yield running


@pytest.mark.parametrize(
    ("phase", "number"),
    [*((phase, signal.SIGINT) for phase in INTERRUPTED), ("measure", signal.SIGTERM)],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_interrupted_run_reports_what_it_found(calm_server, tmp_path, phase, number):
    server = calm_server
    arguments, figure = INTERRUPTED[phase]
    before = server.metric("throng_handshakes_total", outcome="upgraded")
    delivered_before = server.metric("throng_deliveries_total")
    with Load(tmp_path, *arguments, "--target", server.url("")) as running:
        server.await_metric("throng_handshakes_total", before + 6, outcome="upgraded")
        if figure == "delivered":
            server.await_metric("throng_deliveries_total", delivered_before + 100)
        running.process.send_signal(number)
        result = running.finish(20)
    result.assert_code(130).assert_says("interrupted: the figures are of the run so far")
    assert result.faults[0].startswith("interrupted")
    assert result[figure] > 0
    assert result.get("lost", 0) == 0, "what was on its way came"
    if "published" in result.figures and phase != "warm-up":
        assert result["delivered"] == result["published"] * 5
        assert result["deliveries_per_s"] > 0


def test_a_second_interrupt_ends_it_at_once(tmp_path):
    """A server that took a message and delivers nothing: there is something to wait for, and nobody waits."""
    with Scripted(lambda one, _index: upgrade(one)) as server:
        with Load(tmp_path, "fanout", "--target", server.url, "--members", 3, "--rate", 50, "--duration", 60) as running:
            eventually(lambda: len(server.kept) == 4 and threads(running) > 2, "all are connected")
            running.interrupt()
            eventually(lambda: signals_caught(running), "it has heard")
            running.interrupt()
            assert running.finish(5).code == 130


def threads(running):
    return len(os.listdir(f"/proc/{running.process.pid}/task"))


def signals_caught(running):
    """No signal waits for the process any more."""
    status = open(f"/proc/{running.process.pid}/status").read()
    return "ShdPnd:\t0000000000000000" in status


# --- where it writes --------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_error(server, tmp_path):
    writing = pipe_end()
    with Load(tmp_path, "fanout", "--target", server.url(""), *SHORT, stdout=writing) as running:
        os.close(writing)
        _, err = running.process.communicate(timeout=20)
    assert (running.process.returncode, err) == (0, "")
    assert running.json.exists(), "the file is written all the same"


def test_output_that_cannot_be_written_is_said(server, tmp_path):
    with open("/dev/full", "w") as full:
        with Load(tmp_path, "fanout", "--target", server.url(""), *SHORT, stdout=full) as running:
            _, err = running.process.communicate(timeout=20)
    assert running.process.returncode == 2 and "standard output" in err and "panicked" not in err
    assert running.json.exists(), "one place that is full does not cost the other"


def drawn_on_a_terminal(*arguments):
    """What a run draws on a terminal of 100 columns, and its standard output."""
    primary, secondary = pty.openpty()
    termios.tcsetwinsize(secondary, (25, 100))
    drawn = []

    def read():
        while True:
            try:
                drawn.append(os.read(primary, 1 << 16))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=read)
    process = subprocess.Popen([load_binary(), *map(str, arguments)], stdout=subprocess.PIPE, stderr=secondary)
    os.close(secondary)
    reader.start()
    out, _ = process.communicate(timeout=20)
    reader.join(20)
    os.close(primary)
    assert process.returncode == 0
    return b"".join(drawn).decode(), out.decode()


def test_progress_is_drawn_on_terminals_only(server):
    arguments = ["fanout", "--target", server.url(""), "--members", 5, "--duration", "2.3", "--warm-up", "0.1"]
    drawn, out = drawn_on_a_terminal(*arguments)
    for word in ("measure", "open 5", "/s in ", "p99"):
        assert word in drawn, (word, drawn)
    assert "1 k/s" not in drawn, "the rate at which time passes"
    assert "latency_p99_ms" in out and "\x1b" not in out
    short = ["fanout", "--target", server.url(""), *SHORT]
    drawn, out = drawn_on_a_terminal(*short, "--quiet")
    assert drawn == "" and "latency_p99_ms" in out


def test_help_is_enough_to_begin_with(run):
    general = run("--help", report=False).assert_code(0).out
    for word in ("idle", "echo", "fanout", "churn", "storm", "slow", "drain", "Exit codes", "130", "Examples"):
        assert word in general, word
    for scenario in ("idle", "echo", "fanout", "churn", "storm", "slow", "drain"):
        text = run(scenario, "--help", report=False).assert_code(0).out
        for flag in ("--target", "--server-pid", "--expect", "--json", "--source", "--time-limit"):
            assert flag in text, (scenario, flag)
