"""scripts/cluster.sh: what it shows comes true, and whatever ends it leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from balancers.render import tool
from harness import eventually
from harness.server import REPOSITORY, binary, clean_environment

SCRIPT = str(REPOSITORY / "scripts/cluster.sh")
TIME_MAX_S = 60


@pytest.fixture
def environment(tmp_path):
    """Its temporary files are the test's."""
    for name in ("redis-server", "haproxy"):
        if tool(name) is None:
            pytest.skip(f"{name} is not installed")
    # Short: the sockets of Redis and HAProxy are below it.
    directory = tempfile.mkdtemp(prefix="cs-", dir="/tmp")
    yield clean_environment() | {"THRONG_BIN": binary(), "TMPDIR": directory}
    shutil.rmtree(directory, ignore_errors=True)


def left_behind(directory):
    """Processes that were told of a file below `directory`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if directory in words:
            found.append(words)
    return found


def test_the_demonstration_comes_true_in_a_minute(environment):
    done = subprocess.run([SCRIPT], capture_output=True, text=True, timeout=TIME_MAX_S, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All of it came true" in done.stdout
    assert done.stdout.count("\n== ") == 8, "each step but the build"
    assert not left_behind(environment["TMPDIR"]) and not os.listdir(environment["TMPDIR"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stays_until_it_is_told_to_end_and_leaves_nothing_behind(environment, tmp_path, number):
    path = tmp_path / "out"
    with open(path, "wb") as out:
        running = subprocess.Popen([SCRIPT, "--stay"], stdout=out, stderr=out, env=environment, start_new_session=True)
        try:
            eventually(lambda: b"Ctrl-C ends all of it" in path.read_bytes(), "it says how to end it", 30)
            assert len(left_behind(environment["TMPDIR"])) >= 3, "Redis, nodes, balancer"
            if number == signal.SIGINT:
                os.killpg(running.pid, number)  # as a terminal does
            else:
                running.send_signal(number)
            assert running.wait(20) == 128 + number, path.read_text()
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait(10)
    eventually(lambda: not left_behind(environment["TMPDIR"]), "nothing runs any more")
    assert not os.listdir(environment["TMPDIR"])


def test_an_argument_that_it_does_not_know_is_said(environment):
    done = subprocess.run([SCRIPT, "--nodes"], capture_output=True, text=True, timeout=20, env=environment, check=False)
    assert done.returncode == 1 and "unknown argument --nodes" in done.stderr
