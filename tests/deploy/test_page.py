"""docs/DEPLOYING.md: names what is there, and promises nothing that the server does not have."""

import re

from balancers.process import Keeping
from balancers.render import DEPLOY, REPOSITORY
from harness import Server
from settings import keys

PAGE = (REPOSITORY / "docs/DEPLOYING.md").read_text()


def test_every_file_that_the_page_names_exists():
    for name in set(re.findall(r"\bdeploy/[\w./-]*\w", PAGE)):
        assert (REPOSITORY / name).exists(), name


def test_every_file_is_on_the_page():
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            directory = path.parent.relative_to(REPOSITORY)
            assert path.name in PAGE or f"`{directory}/`" in PAGE or f"`{path.parent.name}/`" in PAGE, path


def test_every_setting_that_the_page_names_exists():
    for name in set(re.findall(r"`([a-z]+_[a-z_]+_(?:ms|max|s|bytes))\b", PAGE)):
        assert name in keys(), name


def test_nothing_in_deploy_is_left_for_later():
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text()), path


def test_unless_it_is_told_to_the_server_believes_nobody(tmp_path):
    """What the page says of a node without settings; test_edge.py has what it does with them."""
    with Server(tmp_path, "address_connection_count_max = 2\n", admin_key="a-key-of-the-test") as server:
        forwarded = [
            server.join("lobby", headers=[f"X-Forwarded-For: 192.0.2.{host}", f"Forwarded: for=192.0.2.{host}"]) for host in (1, 2)
        ]
        with server.wire() as third:
            third.send(b"GET /rooms/lobby HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.3\r\n\r\n")
            assert third.read_response().status == 429, "all of them count for one address"
        for wire in forwarded:
            wire.cut()
        server.await_open(0)
        with server.wire() as wire:
            wire.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 8080\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert wire.read_response().status == 400
        with Keeping(server.address) as wire:
            assert wire.upgrade("/rooms/lobby").cookie is None
