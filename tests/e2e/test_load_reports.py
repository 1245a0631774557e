"""What throng-load leaves behind: pages, logs, comparisons; the bare loops to compare with; and other users."""

import functools
import os
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from harness import eventually, free_port, load
from harness.load import load_binary
from test_load import assert_true

SHORT = ["--members", 10, "--rate", 50, "--warm-up", "0.1", "--duration", "1.2"]


@pytest.fixture
def run(tmp_path):
    return functools.partial(load, tmp_path)


def test_the_page_stands_alone_and_the_log_has_a_line_a_second(server, run, tmp_path):
    page, log = tmp_path / "report.html", tmp_path / "report.hlog"
    result = run("fanout", "--target", server.url(""), *SHORT, "--html", page, "--hdr", log)
    assert_true(result)
    html = page.read_text()
    assert html.startswith("<!DOCTYPE html>") and html.rstrip().endswith("</html>")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", html), "it fetches nothing"
    for name in ("latency_p99_ms", "deliveries_per_s"):
        assert name in html
    spans = [
        tuple(map(float, line.split(",")[:2])) for line in log.read_text().splitlines() if not line.startswith(("#", '"'))
    ]
    points = [point for point in result.document["timeline"]["points"] if point["delivered"]]
    assert len(spans) == 2 >= len(points) >= 1, "of the first second, and of the rest"
    assert spans[0][0] < 0.1 and abs(spans[0][0] + spans[0][1] - spans[1][0]) < 0.02


def test_two_runs_are_compared_and_a_third_is_no_report(server, run, tmp_path):
    files = []
    for size in (64, 128):
        result = run("fanout", "--target", server.url(""), *SHORT, "--size", size).assert_code(0)
        files.append(next(Path(tmp_path).glob("report-*.json")).rename(tmp_path / f"{size}.json"))
        assert result["delivered"] > 0
    compared = run("compare", *files, report=False).assert_code(0)
    assert "latency_p99_ms" in compared.out and "B/A" in compared.out
    run("compare", *files, "--expect", "published<=110%", report=False).assert_code(0)
    run("compare", *files, "--expect", "published<0.1", report=False).assert_code(1)
    other = tmp_path / "other.json"
    other.write_text('{"figures": {}}')
    run("compare", files[0], other, report=False).assert_code(2).assert_says("not a report of throng-load")
    run("compare", files[0], tmp_path / "nowhere.json", report=False).assert_code(2).assert_says("nowhere.json")


def test_a_bare_loop_is_loaded_like_a_server(run):
    port = free_port()
    with subprocess.Popen(
        [load_binary(), "floor", "epoll-echo", "--listen", f"127.0.0.1:{port}"], stdout=subprocess.DEVNULL
    ) as floor:
        try:
            eventually(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "the loop listens")
            result = run(
                *("echo", "--target", f"ws://127.0.0.1:{port}", "--connections", 4, "--in-flight", 2),
                *("--warm-up", "0.1", "--duration", "0.3", "--server-pid", floor.pid),
            )
            taken = run("floor", "epoll-echo", "--listen", f"127.0.0.1:{port}", report=False)
        finally:
            floor.kill()
    assert_true(result)
    assert 0 < result["server_cpu_us_per_message"] < 1000
    taken.assert_code(2).assert_says(str(port), "in use")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be somebody else")
def test_a_server_of_another_user_is_not_looked_at_nor_stopped(server, run):
    def become_nobody():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    place = Path(tempfile.mkdtemp(prefix="throng-load-"))
    try:
        place.chmod(0o755)
        program = shutil.copy(load_binary(), place)
        as_nobody = {"report": False, "limits": become_nobody, "program": program}
        target = ["--target", server.url("")]
        run("fanout", *target, "--server-pid", server.process.pid, **as_nobody).assert_code(2).assert_says(
            f"--server-pid {server.process.pid}", "run as its user"
        )
        run("drain", *target, "--stop-pid", server.process.pid, **as_nobody).assert_code(2).assert_says(
            f"--stop-pid {server.process.pid}", "run as its user"
        )
        run("echo", *target, "--json", "/root/report.json", **as_nobody).assert_code(2).assert_says(
            "--json /root/report.json", "Permission denied"
        )
    finally:
        shutil.rmtree(place)
    assert server.process.poll() is None
