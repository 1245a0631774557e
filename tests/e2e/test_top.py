"""`throng top`: what a person sees in a terminal of a node that answers, one that does not, and one that lies."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from harness import Scripted, eventually, free_port, run
from harness.server import binary, clean_environment

KEY = "correct-horse-battery"
ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"


def a_node(name, **figures):
    return {
        "id": name,
        "incarnation": "6f0a1b2c3d4e5f60",
        "age_ms": 310,
        "state": "ready",
        "reasons": [],
        "version": "0.1.0",
        "uptime_s": 3600,
        "connections": 1200,
        "connections_max": 100000,
        "users": 1000,
        "rooms": 80,
        "messages_in_per_s": 250.5,
        "messages_out_per_s": 9800.0,
        "buffered_bytes": 0,
        "memory_bytes": 73400320,
        "memory_bytes_max": 1073741824,
        "lag_us": {"p50": 256, "p99": 1024},
        "cpu_percent": 12.5,
        "mode": "pubsub",
    } | figures


def a_cluster(*nodes, **more):
    live = [node for node in nodes if node["state"] != "silent"]
    sums = ("connections", "connections_max", "users", "messages_in_per_s", "messages_out_per_s", "buffered_bytes")
    totals = {name: sum(node[name] for node in live) for name in sums}
    totals |= {"nodes": len(live), "ready": sum(node["state"] == "ready" for node in live)}
    return {"node": nodes[0]["id"], "redis": True, "nodes": list(nodes), "totals": totals} | more


class Admin:
    """An admin listener of which a test says what it answers."""

    def __init__(self, cluster, status=200, key=None, port=0):
        self.cluster, self.status, self.key, self.port = cluster, status, key, port
        self.asked = 0

    def __enter__(self):
        admin = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                admin.asked += 1
                status, value = admin.status, admin.cluster
                if admin.key and self.headers["Authorization"] != f"Bearer {admin.key}":
                    status, value = 401, {"error": {"code": "unauthorized", "message": "give the key"}}
                elif self.path != "/v1/cluster":
                    status, value = 404, {"error": {"code": "no_such_path", "message": "there is no such path"}}
                body = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Screen:
    """`throng top` on a terminal of its own: what was sent to it, and what of that is to be seen."""

    def __init__(self, *arguments, size=(80, 24), env=None):
        self.size, self.sent = size, ""
        self.terminal, inner = pty.openpty()
        self.resize(size)
        self.before = termios.tcgetattr(inner)
        self.process = subprocess.Popen(
            [binary(), "top", "--interval", "200ms", *map(str, arguments)],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=clean_environment() | {"TERM": "xterm", "LANG": "C.UTF-8", "LC_ALL": ""} | (env or {}),
            start_new_session=True,
        )
        # Kept open, so that the terminal's modes can be asked for when the program is gone.
        self.inner = inner

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        os.close(self.inner)
        os.close(self.terminal)

    def resize(self, size):
        self.size = size
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))

    def type(self, keys):
        os.write(self.terminal, keys.encode())

    def read(self):
        """Takes what was sent meanwhile."""
        while select.select([self.terminal], [], [], 0)[0]:
            self.sent += os.read(self.terminal, 65536).decode(errors="replace")
        return self.sent

    def lines(self):
        """The last whole screen."""
        frames = re.findall(r"\x1b\[\?2026h(.*?)\x1b\[\?2026l", self.read(), re.S)
        if not frames:
            return []
        shown = {}
        for row, line in re.findall(r"\x1b\[(\d+);1H\x1b\[2K((?:[^\x1b]|\x1b\[\d*m)*)", frames[-1]):
            shown[int(row)] = re.sub(r"\x1b\[\d*m", "", line).rstrip()
        assert sorted(shown) == list(range(1, len(shown) + 1)), frames[-1]
        return [shown[row] for row in sorted(shown)]

    def shows(self, *wanted):
        """Awaits a screen that has all of these."""

        def seen():
            assert self.process.poll() is None, f"it has ended: {self.read()}"
            text = "\n".join(self.lines())
            return text if all(part in text for part in wanted) else None

        try:
            return eventually(seen, f"a screen with {wanted}")
        except AssertionError as error:
            raise AssertionError("{}\n{}".format(error, "\n".join(self.lines()))) from None

    def rows(self):
        """The names in the order of their rows."""
        lines = self.lines()
        first = next((index for index, line in enumerate(lines) if line.startswith("NODE ")), len(lines))
        return [line.split()[0] for line in lines[first + 1 : -1] if line and ":" not in line.split()[0]]

    def ends(self):
        """Awaits the end, gives back the exit code, and sees to it that the terminal is as it was."""
        code = eventually(lambda: self.read() is not None and self.process.poll() is not None, "it has ended")
        assert code
        text = self.read()
        assert text.count(ENTERED) == text.count(LEFT) > 0, repr(text[-400:])
        assert text.rfind(LEFT) > text.rfind("\x1b[?2026l"), "nothing is drawn after it"
        assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor is back"
        assert termios.tcgetattr(self.inner) == self.before, "the modes are back"
        return self.process.returncode


def top(*arguments, **how):
    return run("top", *arguments, **how)


def test_a_live_screen_follows_the_cluster_and_quits():
    with Admin(a_cluster(a_node("a"), a_node("b"))) as admin, Screen("--admin", admin.url) as screen:
        screen.shows("2 nodes, 2 ready", "2,400 of 200,000 connections", f"from a (127.0.0.1:{admin.port})")
        assert screen.rows() == ["a", "b"]
        admin.cluster = a_cluster(
            a_node("a", connections=99_000),
            a_node("b", state="not_ready", reasons=["redis_link"]),
            {"id": "c", "age_ms": 9000, "state": "silent", "reasons": [], "connections": None},
        )
        text = screen.shows("3 nodes, 1 ready", "99,000", "not ready", "silent", "b: redis_link")
        assert len(text.splitlines()) == 24
        assert "\x1b[31mnot ready" in screen.read(), "with its colour"
        screen.type("q")
        assert screen.ends() == 0


@pytest.mark.parametrize("keys", ["q", "\x1b", "\x03"], ids=["q", "Esc", "Ctrl-C"])
def test_each_key_that_quits_gives_the_terminal_back(keys):
    with Admin(a_cluster(a_node("a"))) as admin, Screen("--admin", admin.url) as screen:
        screen.shows("1 ready")
        screen.type(keys)
        assert screen.ends() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_as_it_says_and_gives_the_terminal_back(number):
    with Admin(a_cluster(a_node("a"))) as admin, Screen("--admin", admin.url) as screen:
        screen.shows("1 ready")
        screen.process.send_signal(number)
        assert screen.ends() == -number


@pytest.mark.parametrize("how", ["key", "SIGTSTP", "SIGSTOP"])
def test_it_goes_to_the_background_and_comes_back(how):
    with Admin(a_cluster(a_node("a"))) as admin, Screen("--admin", admin.url) as screen:
        screen.shows("1 ready")
        if how == "key":
            screen.type("\x1a")
        else:
            screen.process.send_signal(getattr(signal, how))
        eventually(lambda: state_of(screen.process.pid) == "T", "it is stopped")
        if how != "SIGSTOP":
            assert screen.read().endswith(LEFT), screen.read()[-200:]
            assert termios.tcgetattr(screen.inner) == screen.before
        screen.sent = ""
        admin.cluster = a_cluster(a_node("a"), a_node("b"))
        screen.process.send_signal(signal.SIGCONT)
        screen.shows("2 ready")
        assert ENTERED in screen.read()
        screen.sent = ENTERED
        screen.type("q")
        assert screen.ends() == 0


def state_of(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0]


def test_a_resized_terminal_gets_what_it_has_room_for():
    with Admin(a_cluster(a_node("a"))) as admin, Screen("--admin", admin.url, size=(80, 24)) as screen:
        narrow = screen.shows("NODE", "LAG P99")
        assert "VERSION" not in narrow and max(map(len, narrow.splitlines())) <= 80
        screen.resize((200, 40))
        wide = screen.shows("NODE", "VERSION", "AGE", "OF MAX")
        eventually(lambda: len(screen.lines()) == 40, "40 lines are used")
        assert max(map(len, wide.splitlines())) <= 200
        screen.resize((30, 5))
        eventually(lambda: len(screen.lines()) == 5, "5 lines are used")
        assert max(map(len, screen.lines())) <= 30
        screen.type("q")
        assert screen.ends() == 0


def test_more_nodes_than_lines_are_sorted_and_scrolled():
    nodes = [a_node(f"n{index}", connections=index, memory_bytes=1000 - index) for index in range(10, 60)]
    with Admin(a_cluster(*nodes)) as admin, Screen("--admin", admin.url) as screen:
        screen.shows("1-17 of 50")
        assert screen.rows()[0] == "n10"
        for keys, first in [
            ("\x1b[F", "n43"),
            ("\x1b[A", "n42"),
            ("\x1b[H", "n10"),
            ("\x1b[6~", "n27"),
            ("c", "n59"),
            ("c", "n10"),
            ("\x1b[B", "n11"),
            ("m", "n10"),
            ("m", "n59"),
            ("n", "n10"),
        ]:
            screen.type(keys)
            eventually(lambda: screen.rows()[:1] == [first], f"{first} is first after {keys!r}")  # noqa: B023
        screen.type("q")
        assert screen.ends() == 0


def test_a_pause_keeps_what_is_seen():
    with Admin(a_cluster(a_node("a"))) as admin, Screen("--admin", admin.url) as screen:
        screen.shows("1,200 of")
        screen.type("p")
        screen.shows("paused")
        admin.cluster = a_cluster(a_node("a", connections=77))
        asked = admin.asked
        eventually(lambda: admin.asked >= asked + 3, "it goes on asking")
        # Ages go on: what is drawn after those answers still has the old figure.
        screen.sent = ENTERED
        assert "1,200 of" in screen.shows("paused")
        screen.type("p")
        screen.shows("77 of")
        screen.type("q")
        assert screen.ends() == 0


def test_a_node_that_falls_silent_is_told_and_another_one_is_asked():
    port = free_port()
    with Admin(a_cluster(a_node("b"))) as second:
        with Admin(a_cluster(a_node("a")), port=port) as first:
            screen = Screen("--admin", first.url, "--admin", second.url)
            screen.shows("from a")
        with screen:
            screen.shows("from b")
            second.cluster, second.status = {"error": {"code": "x", "message": "not \x1b[2Jnow"}}, 504
            screen.shows(
                "no answer for",
                f"127.0.0.1:{port}: connection refused",
                rf"127.0.0.1:{second.port}: 504: not \u{{1b}}[2Jnow",
                "from b",
            )
            with Admin(a_cluster(a_node("a"), a_node("c")), port=port):
                screen.shows("from a", "2 ready")
                assert "no answer" not in "\n".join(screen.lines())
            screen.type("q")
            assert screen.ends() == 0


def test_what_a_node_says_cannot_touch_the_terminal():
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\n"
    cluster = a_cluster(a_node(evil, version=evil, mode=evil, state=evil, reasons=[evil, {"x": evil}]))
    with Admin(cluster) as admin:
        with Screen("--admin", admin.url, size=(200, 40)) as screen:
            text = screen.shows(r"\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}\r\n")
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
            screen.type("q")
            assert screen.ends() == 0
            assert "]0;owned\x07" not in screen.read() and "\x9b" not in screen.read()
        for flag in ("--once", "--json"):
            done = top("--admin", admin.url, flag, env={"LC_ALL": "C"})
            assert done.returncode == 0
            assert all(" " <= sign <= "~" or sign == "\n" for sign in done.stdout), done.stdout
            assert "owned" in done.stdout
        assert json.loads(done.stdout) == cluster


def test_colours_and_signs_are_those_that_are_wanted():
    with Admin(a_cluster(a_node("a"), a_node("b", state="not_ready"))) as admin:
        plain = {"NO_COLOR": "1", "LANG": "C"}
        with Screen("--admin", admin.url, size=(200, 24), env=plain) as screen:
            text = screen.shows("not ready")
            assert text.isascii(), text
            assert not re.search(r"\x1b\[3\d", screen.read())
            screen.type("q")
            assert screen.ends() == 0
        done = top("--admin", admin.url, env={"LANG": "C.UTF-8"})
        assert done.returncode == 0 and "\x1b" not in done.stdout and "█" in done.stdout, done.stdout


def test_where_there_is_no_terminal_it_prints_one_table():
    nodes = [a_node(f"n{index}") for index in range(100)]
    with Admin(a_cluster(*nodes)) as admin:
        done = top("--admin", admin.url)
        assert done.returncode == 0 and done.stderr == "", done
        assert sum(line.startswith("n") for line in done.stdout.splitlines()) == 100
        for word in ("100 nodes, 100 ready", "AGE", "1.0 ms", "12.5 %"):
            assert word in done.stdout, done.stdout
        assert admin.asked == 1


def test_a_node_without_redis_or_that_lost_it_still_shows_itself():
    alone = a_cluster(a_node("a"), redis=False)
    lost = a_cluster(a_node("b"), error={"code": "backplane_lost", "message": "Redis is away"})
    with Admin(alone) as one, Admin(lost, status=503) as other:
        assert "a has no Redis: there are no other nodes" in top("--admin", one.url).stdout
        assert "b knows of itself alone: Redis is away" in top("--admin", other.url).stdout
        # One that knows of all is better than one that does not.
        assert "has no Redis" in top("--admin", other.url, "--admin", one.url).stdout


def test_who_does_not_answer_is_told_with_the_reason(tmp_path):
    def fails(*needles, env=None, flags=()):
        done = top("--once", *flags, env=env)
        assert done.returncode == 1 and done.stdout == "", done
        for needle in (*needles, "no node answers"):
            assert needle in done.stderr, done.stderr
        assert KEY not in done.stderr and "wrong-key" not in done.stderr

    port = free_port()
    fails(f"127.0.0.1:{port}", "connection refused", flags=["--admin", f"127.0.0.1:{port}"])
    fails(f"127.0.0.1:{port}", env={"THRONG_ADMIN": f"127.0.0.1:{port}"})
    with Admin(a_cluster(a_node("a")), key=KEY) as admin:
        url = ["--admin", admin.url]
        fails("wants the admin key", "THRONG_ADMIN_KEY", "--key-file", flags=url)
        fails("the key from THRONG_ADMIN_KEY is not", flags=url, env={"THRONG_ADMIN_KEY": "wrong-key-1"})
        held = tmp_path / "key"
        held.write_text("wrong-key-2\n")
        fails("the key from --key-file is not", flags=[*url, "--key-file", held])
        held.write_text(f"{KEY}\n")
        assert top("--once", *url, "--key-file", held).returncode == 0
        assert top("--once", *url, env={"THRONG_ADMIN_KEY": KEY}).returncode == 0
        config = tmp_path / "throng.toml"
        config.write_text(f'admin = "127.0.0.1:{admin.port}"\nadmin_key_file = "{held}"\n')
        assert top("--once", "--config", config).returncode == 0
        admin.key, admin.cluster = None, b"<html>It works!</html>"
        fails("200, but not as the admin listener", flags=url)
    with Scripted(lambda peer, _: peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")) as ssh:
        fails("not HTTP", flags=["--admin", f"127.0.0.1:{ssh.port}"])
    with Scripted(lambda peer, _: None) as mute:
        began = time.monotonic()
        fails("no answer within 3 s", flags=["--admin", f"127.0.0.1:{mute.port}"])
        assert time.monotonic() - began < 6


def test_mistakes_are_told_together():
    done = top("--admin", "https://a:1", "--interval", "2", "--onec")
    assert done.returncode == 2, done
    for needle in ("--onec", "write --once", "without TLS", "--interval", "3 mistakes"):
        assert needle in done.stderr, done.stderr
    done = top(env={"THRONG_ADMIN": "off"})
    assert done.returncode == 2 and "--admin" in done.stderr, done
    done = top("--help")
    assert done.returncode == 0 and all(word in done.stdout for word in ("--key-file", "NO_COLOR", "Ctrl-C"))


def test_a_terminal_that_goes_away_takes_it_along():
    with Admin(a_cluster(a_node("a"))) as admin:
        screen = Screen("--admin", admin.url)
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: screen.process.poll() is None and screen.process.kill())
            screen.shows("1 ready")
            os.close(screen.inner)
            os.close(screen.terminal)
            assert screen.process.wait(10) != 0


def test_it_shows_real_nodes_from_any_of_them(serve, redis):
    joined = f'redis = "{redis.url}"\ncluster_interval_ms = 200\nnode_id = '
    a, b = serve(f'{joined}"a"\n', shards=1), serve(f'{joined}"b"\n', shards=1)
    with a.join("lobby"), b.join("lobby"), b.join("lobby"):
        for asked in (a, b):
            url = "http://{}:{}".format(*asked.admin_address)
            with Screen("--admin", url, size=(160, 24)) as screen:
                screen.shows("2 nodes, 2 ready", "3 of ", "pubsub")
                assert screen.rows() == ["a", "b"]
                screen.type("c")
                eventually(lambda: screen.rows() == ["b", "a"], "the one with more connections is first")  # noqa: B023
                screen.type("q")
                assert screen.ends() == 0
    with Screen("--admin", "http://{}:{}".format(*a.admin_address)) as screen:
        screen.shows("2 nodes, 2 ready")
        b.process.kill()
        b.wait()
        screen.shows("1 ready", "silent")
        screen.type("q")
        assert screen.ends() == 0


def test_it_shows_a_node_that_is_alone(server):
    done = top("--once", "--admin", "{}:{}".format(*server.admin_address))
    assert done.returncode == 0, done
    assert "1 node, 1 ready" in done.stdout and "there are no other nodes" in done.stdout, done.stdout
