"""Debian's HAProxy on deploy/haproxy/haproxy.cfg."""

import csv
import socket

from harness import eventually

from .process import Balancer
from .render import DEPLOY, render, tool, without_nodes


class Haproxy(Balancer):
    """HAProxy before `nodes`, on the way that is asked for. `replacements` go into the file before everything else."""

    def __init__(self, directory, nodes, way, replacements=None):
        super().__init__(directory)
        self.nodes = nodes
        self.way = way
        self.backend = f"throng_by_{way}"
        self.stats_path = directory / "haproxy.sock"
        text = render(without_nodes((DEPLOY / "haproxy/haproxy.cfg").read_text(), len(nodes)), replacements or {})
        text = render(
            text,
            {
                "log /dev/log local0": "log stderr local0",
                "    user haproxy\n    group haproxy\n": "",
                "maxconn 200000": "maxconn 4000",
                "/run/haproxy/throng.sock": str(self.stats_path),
                "bind :80 ": "bind {}:{} ".format(*self.address),
            }
            | {f"10.0.0.{11 + index}:8080": node.host_port for index, node in enumerate(self.nodes)},
        )
        text = render(text, {"    default_backend throng_by_room\n": ""})
        text = text.replace(f"    # default_backend {self.backend}\n", "")
        text = render(text, {"# Never used for traffic": f"    default_backend {self.backend}\n\n# Never used for traffic"})
        self.config = directory / "haproxy.cfg"
        self.config.write_text(text)
        self.start([tool("haproxy"), "-W", "-db", "-f", str(self.config)])
        eventually(lambda: len(self.up()) == len(nodes), "every node is up")

    def ask(self, command):
        """What the stats socket answers."""
        with socket.socket(socket.AF_UNIX) as stats:
            stats.settimeout(5)
            stats.connect(str(self.stats_path))
            stats.sendall(command.encode() + b"\n")
            answer = b""
            while piece := stats.recv(1 << 16):
                answer += piece
        return answer.decode()

    def servers(self, backend=None):
        """The rows of `show stat` for the servers of a backend, by name."""
        rows = csv.DictReader(self.ask("show stat").removeprefix("# ").splitlines())
        wanted = backend or self.backend
        return {row["svname"]: row for row in rows if row["pxname"] == wanted and row["svname"].startswith("node-")}

    def up(self):
        """Names of the servers that new clients may come to."""
        return {name for name, row in self.servers().items() if row["status"].startswith(("UP", "no check"))}
