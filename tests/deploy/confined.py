"""A server under a seccomp profile, and what every profile must let it do."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from harness import Server

CONFINE = [sys.executable, str(Path(__file__).parent / "confine.py")]


class ConfinedServer(Server):
    """`throng serve` as nobody under a profile. It keeps its process number through both changes."""

    def __init__(self, directory, profile, **how):
        super().__init__(directory, **how)
        path = Path(directory) / "profile.json"
        path.write_text(json.dumps(profile))
        self.command = [*CONFINE, str(path), *self.command]


def run_confined(directory, profile, *command):
    path = Path(directory) / "profile.json"
    path.write_text(json.dumps(profile))
    return subprocess.run([*CONFINE, str(path), *command], capture_output=True, text=True, timeout=30, check=False)


def use_everything(server):
    """Connections, messages, the API, metrics, a drain: all that a node does in its life."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Seccomp"].strip() == "2", "a filter is in force"
    assert int(fields["CapEff"], 16) == 0 and int(fields["CapBnd"], 16) == 0
    assert fields["Uid"].split()[0] != "0"
    assert fields["NoNewPrivs"].strip() == "1"
    wires = [server.join(f"room-{index % 7}") for index in range(40)]
    for index, wire in enumerate(wires):
        wire.send_text("x" * (index * 100))
    assert server.get("/health").status == 200
    assert server.stats() and server.open_count() == 40
    answer = server.admin("/v1/rooms/room-0/publish", "POST", body=b"from the API")
    assert answer.status == 202
    assert server.metric("process_open_fds") > 0
    server.signal(signal.SIGTERM)
    for wire in wires:
        assert wire.read_close().code == 1012
        wire.cut()
    assert server.wait() == 0, server.log()
