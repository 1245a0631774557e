"""The command line: what starts, what does not, and what is said about it."""

import json
import os
import re
import signal
import socket
import tomllib

import pytest
from harness import Server, free_port, run

MISTAKEN = 2


def serve_that_fails(*flags, env=None, stdin=None):
    """`throng serve` on free ports that must not start: what it says, and how it ends."""
    done = run(
        "serve",
        "--listen",
        f"127.0.0.1:{free_port()}",
        "--admin",
        f"127.0.0.1:{free_port()}",
        *flags,
        env=env,
        stdin=stdin,
    )
    assert done.returncode not in (0, None), done
    return done


def test_version_and_help():
    assert re.fullmatch(r"throng \d+\.\d+\.\d+.*\n", run("--version").stdout)
    for arguments in (["--help"], ["serve", "--help"], ["check", "--help"], ["config", "--help"], ["top", "--help"]):
        done = run(*arguments)
        assert done.returncode == 0 and "throng" in done.stdout, done
    assert "--listen" in run("serve", "--help").stdout


def test_an_unknown_verb_or_flag_is_a_mistake():
    assert run("sreve").returncode == MISTAKEN
    done = run("serve", "--lisen", "127.0.0.1:1")
    assert done.returncode == MISTAKEN and "--listen" in done.stderr, done


def test_all_mistakes_are_told_at_once_and_nothing_starts(tmp_path):
    config = tmp_path / "wrong.toml"
    config.write_text(
        'shrads = 3\nping_interval_ms = "soon"\nmessage_bytes_max = 0\nheartbeat = "sometimes"\n'
        '\n[[rooms]]\nmatch = "a*b"\nslow = "never"\n'
    )
    done = serve_that_fails(
        "--config", config, "--pong-timeout-ms", "forever", "--shards", "0", env={"THRONG_IDLE_TIMEOUT": "1"}
    )
    assert done.returncode == MISTAKEN, done
    said = done.stderr
    for needle in (
        "shrads",
        "shards",
        "ping_interval_ms",
        "message_bytes_max",
        "heartbeat",
        "a*b",
        "never",
        "--pong-timeout-ms",
        "--shards",
        "THRONG_IDLE_TIMEOUT",
        "THRONG_IDLE_TIMEOUT_MS",
    ):
        assert needle in said, f"{needle} is not told:\n{said}"
    for line in (1, 2, 3, 4):
        assert f"wrong.toml:{line}" in said, f"line {line} is not named:\n{said}"


def test_contradictions_are_told_together():
    done = serve_that_fails(
        "--message-bytes-max", "128KiB", "--connection-queue-bytes-max", "64KiB",
        "--ping-interval-ms", "5s", "--pong-timeout-ms", "5s",
        "--drain-window-ms", "60s", "--drain-deadline-ms", "30s",
    )  # fmt: skip
    assert done.returncode == MISTAKEN
    for needle in ("connection_queue_bytes_max", "pong_timeout_ms", "drain_deadline_ms"):
        assert needle in done.stderr, done.stderr


def test_an_admin_address_for_others_needs_a_key():
    done = run("serve", "--listen", f"127.0.0.1:{free_port()}", "--admin", f"0.0.0.0:{free_port()}")
    assert done.returncode == MISTAKEN, done
    assert "key" in done.stderr


def test_a_config_file_that_is_missing_or_is_no_toml_is_a_mistake(tmp_path):
    done = serve_that_fails("--config", tmp_path / "nowhere.toml")
    assert done.returncode == MISTAKEN and "nowhere.toml" in done.stderr
    broken = tmp_path / "broken.toml"
    broken.write_text("shards = [1\n")
    done = serve_that_fails("--config", broken)
    assert done.returncode == MISTAKEN and "broken.toml" in done.stderr


def test_a_port_that_somebody_else_has_is_told(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{free_port()}")
        assert done.returncode == 1, done
        assert str(port) in done.stderr + done.stdout
        done = run("serve", "--listen", f"127.0.0.1:{free_port()}", "--admin", f"127.0.0.1:{port}")
        assert done.returncode == 1, done
        assert str(port) in done.stderr + done.stdout


def test_a_second_server_does_not_steal_a_running_ones_port(serve, tmp_path):
    """SO_REUSEPORT would let it; half of all clients would then meet strangers."""
    first = serve(shards=2)
    done = run("serve", "--listen", first.host_port, "--admin", f"127.0.0.1:{free_port()}")
    assert done.returncode == 1, done
    assert str(first.address[1]) in done.stderr + done.stdout
    with first.join("mine") as ada:
        ada.send_text("mine")
        assert ada.read_text() == "mine"


def test_flags_count_over_the_environment_and_it_over_the_file(tmp_path):
    config = tmp_path / "throng.toml"
    config.write_text("message_bytes_max = 1000\nping_interval_ms = 11000\nretry_after_s = 3\n")
    done = run(
        "config", "--config", config, "--message-bytes-max", "3000",
        env={"THRONG_MESSAGE_BYTES_MAX": "2000", "THRONG_PING_INTERVAL_MS": "12s"},
    )  # fmt: skip
    assert done.returncode == 0, done
    effective = tomllib.loads(done.stdout)
    assert effective["message_bytes_max"] == 3000
    assert effective["ping_interval_ms"] == 12_000
    assert effective["retry_after_s"] == 3


def test_the_effective_settings_can_be_fed_back():
    first = run("config", "--message-bytes-max", "3000", "--listen", "127.0.0.1:9123", "--heartbeat", "tcp")
    assert first.returncode == 0, first
    again = run("config", "--config", "-", stdin=first.stdout)
    assert again.returncode == 0, again
    left, right = tomllib.loads(first.stdout), tomllib.loads(again.stdout)
    assert left == right
    assert left["message_bytes_max"] == 3000 and left["heartbeat"] == "tcp"


def test_a_server_runs_on_its_own_printed_settings(tmp_path):
    first = run("config", "--message-bytes-max", "777")
    assert first.returncode == 0, first
    settings = first.stdout
    with Server(tmp_path, settings) as server, server.join("fed-back") as ada:
        ada.send_binary(b"x" * 778)
        assert ada.read_close().code == 1009


def test_every_setting_is_printed_with_what_it_is_and_where_it_came_from():
    printed = run("config", "--retry-after-s", "7").stdout
    for key in ("listen", "admin", "shards", "message_bytes_max", "drain_window_ms", "log_level"):
        assert re.search(rf"^{key} = ", printed, re.MULTILINE), f"{key} is not printed"
    line = printed.splitlines().index(next(line for line in printed.splitlines() if line.startswith("retry_after_s")))
    comment = "\n".join(printed.splitlines()[line - 3 : line])
    assert "--retry-after-s" in comment, comment


def test_the_admin_key_is_never_printed():
    done = run("config", env={"THRONG_ADMIN_KEY": "correct-horse-battery"})
    assert done.returncode == 0
    assert "correct-horse-battery" not in done.stdout + done.stderr


def test_check_says_what_is_fine_and_how_many_connections_fit():
    done = run("check", "--listen", f"127.0.0.1:{free_port()}", "--admin", f"127.0.0.1:{free_port()}")
    assert done.returncode == 0, done.stdout + done.stderr
    for needle in ("kernel", "io_uring", "connections"):
        assert needle in done.stdout, done.stdout


def test_check_fails_where_serve_would():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("check", "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{free_port()}")
        assert done.returncode == 1, done.stdout
        assert str(port) in done.stdout


def test_logs_are_json_where_no_terminal_is_and_end_with_the_stop(serve):
    server = serve(shards=1)
    with server.join("log") as ada:
        ada.send_text("nothing of this is logged")
        ada.read_text()
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert lines, "nothing was logged"
    assert all("level" in line for line in lines), lines[0]
    assert "nothing of this" not in server.log()
    assert not any("ada" in json.dumps(line) for line in lines)


def test_human_logs_can_be_asked_for(serve):
    server = serve(shards=1, flags=["--log-format", "human"])
    assert server.stop() == 0
    with pytest.raises(json.JSONDecodeError):
        json.loads(server.log().splitlines()[0])


def test_no_connection_is_logged_above_debug(serve):
    server = serve(shards=1)
    before = len(server.log().splitlines())
    for _ in range(50):
        with server.join("log") as ada:
            ada.send_text("naked", masked=False)
            ada.read_close()
    assert len(server.log().splitlines()) - before < 5, server.log()


def test_it_listens_on_several_addresses(serve):
    second = free_port()
    server = serve(shards=2, flags=["--listen", f"127.0.0.1:{second}"])
    with server.join("both") as one:
        server.address = ("127.0.0.1", second)
        with server.join("both") as other:
            one.send_text("across")
            assert other.read_text() == "across"


def test_ipv6_is_served(serve):
    port = free_port()
    try:
        socket.create_server(("::1", port), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    server = serve(shards=1, flags=["--listen", f"[::1]:{port}"])
    server.address = ("::1", port)
    with server.join("six") as ada:
        ada.send_text("six")
        assert ada.read_text() == "six"


def test_more_shards_than_processors_work(serve):
    server = serve(shards=9)
    members = [server.join("crowded") for _ in range(40)]
    members[0].send_text("to all shards")
    assert [member.read_text() for member in members] == ["to all shards"] * 40
    shards = {labels["shard"] for labels, value in server.metrics().matching("throng_connections") if value}
    assert len(shards) >= 5, shards
    for member in members:
        member.cut()


def test_plain_descriptors_work_like_direct_ones(serve):
    server = serve('descriptors = "plain"\n', shards=2)
    with server.join("plain") as ada, server.join("plain") as bob:
        ada.send_text("plain")
        assert bob.read_text() == ada.read_text() == "plain"
    server.await_open(0)


def test_without_an_admin_listener_it_serves_all_the_same(serve, tmp_path):
    server = Server(tmp_path, shards=1)
    server.command[server.command.index("--admin") + 1] = "off"
    server._ready = lambda: server.process.poll() is None and reachable(server)
    with server:
        with server.join("alone") as ada:
            ada.send_text("alone")
            assert ada.read_text() == "alone"
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def reachable(server):
    try:
        return server.get("/health").status == 200
    except OSError:
        return False


def test_a_killed_server_can_be_started_again_at_once(tmp_path):
    """Nothing of the dead one (ports, sockets in TIME_WAIT) is in the way."""
    with Server(tmp_path, shards=2) as first:
        wires = [first.join("crash") for _ in range(10)]
        first.process.kill()
        first.wait()
        for wire in wires:
            assert wire.at_end(5)
            wire.cut()
        second = Server(tmp_path, shards=2)
        second.command = first.command
        second.address, second.admin_address = first.address, first.admin_address
        with second, second.join("crash") as ada:
            ada.send_text("back")
            assert ada.read_text() == "back"


def test_it_needs_no_home_and_no_writable_directory(tmp_path):
    with Server(tmp_path, shards=1) as server:
        server.await_open(0)
        opened = set(open_regular_files(server.process.pid))
    assert opened <= {str(server.log_path)}, opened


def open_regular_files(pid):
    """Paths of the files that a process has open."""
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            path = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            continue
        if path.startswith("/") and not path.startswith(("/dev/", "/proc/", "/sys/")):
            yield path
