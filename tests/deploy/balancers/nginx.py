"""Debian's nginx on the files of deploy/nginx."""

from .process import Balancer
from .render import DEPLOY, render, tool, without_nodes

WAYS = ("room", "address", "cookie", "node")


class Nginx(Balancer):
    """nginx before `nodes`, on the way that is asked for. `server` are replacements in throng-server.conf."""

    def __init__(self, directory, nodes, way, server=None, upstream=None):
        super().__init__(directory)
        self.nodes = nodes
        self.way = way
        self.write(server, upstream)
        self.start([tool("nginx"), *self._files()])

    def write(self, server=None, upstream=None):
        """Writes all files: those of deploy/, with ports and paths of the test's own."""
        logs = str(self.directory)
        main = (DEPLOY / "nginx/nginx.conf").read_text()
        main = render(
            main,
            {
                "user www-data;": "daemon off;",
                "worker_rlimit_nofile 262144;": "",
                "worker_processes auto;": "worker_processes 2;",
                "worker_connections 65536;": "worker_connections 4096;",
                "/run/nginx.pid": f"{logs}/nginx.pid",
                "/var/log/nginx": logs,
                "http {": "http {\n"
                + "".join(
                    f"    {kind}_temp_path {logs}/{kind};\n"
                    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
                ),
            },
        )
        for way in WAYS:
            main = main.replace(f"# include throng-by-{way}.conf;", f"include throng-by-{way}.conf;")
            if way != self.way:
                main = main.replace(f"include throng-by-{way}.conf;", "")
        listen = {
            "listen 80 ": "listen {}:{} ".format(*self.address),
            "    listen [::]:80 backlog=4096 so_keepalive=30s:10s:3;\n": "",
        }
        nodes = {f"10.0.0.{11 + index}:8080": node.host_port for index, node in enumerate(self.nodes)}
        self._put("nginx.conf", main)
        self._put("throng-server.conf", render(self._text("throng-server.conf"), listen | (server or {})))
        way = without_nodes(self._text(f"throng-by-{self.way}.conf"), len(self.nodes))
        self._put(f"throng-by-{self.way}.conf", render(way, (upstream or {}) | nodes))

    def _files(self):
        return ["-p", f"{self.directory}/", "-c", str(self.directory / "nginx.conf")]

    def _text(self, name):
        return (DEPLOY / "nginx" / name).read_text()

    def _put(self, name, text):
        (self.directory / name).write_text(text)

    def log(self):
        path = self.directory / "throng-error.log"
        return super().log() + (path.read_text(errors="replace") if path.exists() else "")
