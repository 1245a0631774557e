"""Who comes back comes to the same node; who cannot comes to another, and both balancers say so in the same way."""

import contextlib
import json
import signal
import time

import pytest
from balancers.cluster import members
from harness import eventually, http_get

KINDS = ("nginx", "haproxy")
both = pytest.mark.parametrize("kind", KINDS)


def node_that_has(cluster, room):
    """Index of the only node on which `room` has members."""
    holders = [index for index, node in enumerate(cluster) if node.process.poll() is None and members(node, room)]
    assert len(holders) == 1, f"{room} has members on nodes {holders}"
    return holders[0]


def lands(cluster, balancer, room, **how):
    """Joins, and tells on which node: `(wire, index)`."""
    wire = balancer.join(room, **how)
    return wire, node_that_has(cluster, room)


def upgrade_request(path):
    """A request for an upgrade that may be refused."""
    lines = (
        f"GET {path} HTTP/1.1",
        "Host: x",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@both
def test_an_address_comes_back_to_its_node_and_many_addresses_to_all(kind, cluster, balance):
    balancer = balance(kind, cluster, "address")
    homes = {}
    for host in range(2, 42):
        source = f"127.0.7.{host}"
        wire, homes[source] = lands(cluster, balancer, f"from-{host}", source=source)
        wire.cut()
    assert set(homes.values()) == {0, 1, 2}, "forty addresses use all nodes"
    for host in range(2, 22):
        source = f"127.0.7.{host}"
        wire, again = lands(cluster, balancer, f"again-{host}", source=source)
        wire.cut()
        assert again == homes[source], source


@both
def test_a_cookie_comes_back_to_its_node_whatever_the_address(kind, cluster, balance):
    balancer = balance(kind, cluster, "cookie")
    homes = {}
    for client in range(30):
        wire, node = lands(cluster, balancer, f"client-{client}")
        assert wire.cookie, f"the 101 hands out no cookie: {wire.answer.headers}"
        attributes = wire.answer.headers["set-cookie"].lower()
        assert "httponly" in attributes and "samesite=lax" in attributes and "path=/" in attributes
        homes[wire.cookie] = node
        wire.cut()
    assert set(homes.values()) == {0, 1, 2}
    for client, (cookie, node) in enumerate(homes.items()):
        for turn in range(2):
            wire, again = lands(
                cluster,
                balancer,
                f"again-{client}-{turn}",
                headers=[f"Cookie: theme=dark; {cookie}"],
                source=f"127.0.8.{2 + client + 100 * turn}",
            )
            assert again == node
            assert wire.cookie is None, "who has its cookie gets no other"
            wire.cut()


@both
def test_a_cookie_that_is_no_good_is_replaced(kind, cluster, balance):
    balancer = balance(kind, cluster, "cookie")
    for cookie in ("throng=", "throng=n9", "throng=../../etc/passwd", f"throng={'F' * 4000}"):
        with balancer.join("forged", headers=[f"Cookie: {cookie}"]) as wire:
            assert wire.cookie and wire.cookie != cookie


@both
def test_a_refusal_hands_out_no_cookie(kind, cluster, balance):
    balancer = balance(kind, cluster, "cookie")
    answer = balancer.get("/rooms/lobby")
    assert answer.status == 426
    assert kind == "haproxy" or "set-cookie" not in answer.headers


@both
def test_a_room_lives_on_one_node_however_its_name_is_written(kind, cluster, balance):
    balancer = balance(kind, cluster, "room")
    used = set()
    for room in range(20):
        wires = [
            balancer.join(f"chat:{room}", source="127.0.9.2"),
            balancer.join(f"chat%3A{room}", source="127.0.9.3"),
            balancer.join(f"%63hat%3a{room}?echo=0", source="127.0.9.4"),
        ]
        node = node_that_has(cluster, f"chat%3A{room}")
        assert members(cluster[node], f"chat%3A{room}") == 3
        used.add(node)
        wires[0].send_text(f"to room {room}")
        assert [wire.read_text() for wire in wires] == [f"to room {room}"] * 3
        for wire in wires:
            wire.cut()
    assert used == {0, 1, 2}, "twenty rooms use all nodes"


@both
@pytest.mark.parametrize("way", ("address", "cookie", "room"))
def test_when_a_node_dies_its_clients_come_to_others_and_back_when_it_is_there_again(kind, way, cluster, balance):
    balancer = balance(kind, cluster, way)
    wire, home = lands(cluster, balancer, "kept")
    cookie = [f"Cookie: {wire.cookie}"] if wire.cookie else []
    cluster[home].process.send_signal(signal.SIGKILL)
    cluster[home].wait()
    assert wire.read_close(5).code is None, "a node that is killed says nothing, and the balancer passes its end on"
    # At once, and not only after a check has failed: every join asks the next node.
    for _ in range(6):
        with balancer.join("kept", headers=cookie) as again:
            other = node_that_has(cluster, "kept")
            assert other != home
            again.send_text("here")
            assert again.read_text() == "here"
            moved = again.cookie
    if kind == "haproxy" and way == "cookie":
        assert moved, "a cookie whose node is away is replaced"
        return
    cluster[home].again()


    def back():
        with balancer.join("kept", headers=cookie):
            return members(cluster[home], "kept")

    eventually(back, "its clients come back", timeout_s=20, every_s=0.2)


@both
def test_where_no_node_is_left_the_answer_is_a_503(kind, cluster, balance):
    balancer = balance(kind, cluster, "cookie")
    cluster.kill()

    def refused():
        with balancer.wire() as wire:
            wire.send(upgrade_request("/rooms/lobby"))
            return wire.read_response()

    for _ in range(4):
        answer = refused()
        assert answer.status == 503, answer
        assert answer.headers.get("retry-after") == "2", answer.headers
    # Nodes that are back are found without help.
    for node in cluster:
        node.again()
    eventually(lambda: refused_or_101(balancer) == 101, "clients are let in again", timeout_s=20, every_s=0.2)


def refused_or_101(balancer):
    """Status of an upgrade."""
    try:
        balancer.join("back").cut()
    except AssertionError:
        return None
    return 101


@both
def test_a_node_that_is_full_sends_its_clients_to_the_next(kind, cluster_of_four_places, balance):
    cluster = cluster_of_four_places
    balancer = balance(kind, cluster, "address")
    # HAProxy asks two nodes and nginx all three, so the third node's share is nginx' alone.
    wires = [balancer.join("crowd") for _ in range(12 if kind == "nginx" else 8)]
    assert sorted(cluster.open_counts()) == ([4, 4, 4] if kind == "nginx" else [0, 4, 4])
    for wire in wires:
        wire.cut()


@both
def test_a_verdict_about_the_client_passes_through(kind, cluster, balance):
    balancer = balance(kind, cluster, "cookie")
    assert balancer.get("/nothing").status == 404
    assert balancer.get("/metrics").status == 404, "what operators ask is not for clients"
    assert balancer.get("/v1/stats").status == 404
    assert balancer.get("/rooms/lobby").status == 426
    assert http_get(balancer.address, "/rooms/lobby", "POST").status == 405


@both
def test_frames_of_every_size_pass_as_they_are(kind, cluster, balance):
    balancer = balance(kind, cluster, "cookie")
    with balancer.join("sizes") as wire:
        for size in (0, 1, 125, 126, 4096, 65535, 65536):
            text = "x" * size
            wire.send_text(text)
            assert wire.read_text() == text
        wire.send_close(1000, "done")
        assert wire.read_close().code == 1000


@both
def test_health_through_the_balancer_is_a_nodes(kind, cluster, balance):
    balancer = balance(kind, cluster, "cookie")
    answer = balancer.get("/health")
    assert (answer.status, json.loads(answer.body)) == (200, {"status": "ok"})


@contextlib.contextmanager
def stopped(process):
    """Holds a process still as a whole: its kernel side goes on taking connections."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_haproxy_finds_a_node_that_is_frozen_and_who_asked_it_meanwhile_is_told_when_to_come_again(cluster, balance):
    balancer = balance("haproxy", cluster, "room", replacements={"timeout server 15s": "timeout server 1s"})
    wire, home = lands(cluster, balancer, "frozen")
    wire.cut()
    cluster[home].await_open(0)
    with stopped(cluster[home].process):
        with balancer.wire() as wire:
            wire.send(upgrade_request("/rooms/frozen"))
            answer = wire.read_response()
            assert (answer.status, answer.headers.get("retry-after")) == (504, "2"), answer
        others = {f"node-{index + 1}" for index in range(3) if index != home}
        eventually(lambda: balancer.up() == others, "the checks have found it", timeout_s=8)
        began = time.monotonic()
        with balancer.join("frozen"):
            assert time.monotonic() - began < 0.9, "and nobody asks it any more"
    eventually(lambda: len(balancer.up()) == 3, "it is back", timeout_s=8)


def test_haproxy_asks_every_node_for_its_health_once_an_interval(cluster, balance):
    balancer = balance("haproxy", cluster, "cookie", replacements={"inter 2s": "inter 200ms"})
    for node in cluster:
        before = node.metric("throng_handshakes_total", outcome="health")
        node.await_metric("throng_handshakes_total", before + 5, outcome="health")
    servers = balancer.servers("nodes")
    # A star stands before the last verdict while the next check is on its way.
    assert {row["check_status"].removeprefix("* ") for row in servers.values()} == {"L7OK"}
    assert {row["check_code"] for row in servers.values()} == {"200"}


# --- rooms, where no backplane joins the nodes --------------------------------------------------------------------------


@both
def test_a_room_whose_node_was_away_is_in_two_parts_until_who_moved_leaves(kind, cluster, balance):
    """What docs/DEPLOYING.md warns of, so that the warning goes when it is no longer true."""
    balancer = balance(kind, cluster, "room")
    first = balancer.join("kept")
    home = node_that_has(cluster, "kept")
    cluster[home].process.kill()
    cluster[home].wait()
    assert first.read_close(5).code is None
    moved = balancer.join("kept")
    away = node_that_has(cluster, "kept")
    cluster[home].again()

    def back():
        with balancer.join("kept"):
            return members(cluster[home], "kept")

    eventually(back, "new members come home", timeout_s=20, every_s=0.2)
    with balancer.join("kept") as new:
        assert members(cluster[home], "kept") == 1 and members(cluster[away], "kept") == 1
        moved.send_text("who hears me?")
        assert moved.read_text() == "who hears me?"
        assert new.silent(0.5)
    moved.cut()


def test_nginx_keeps_a_room_in_one_piece_where_it_may_be_away_meanwhile(cluster, balance):
    """The other choice in docs/DEPLOYING.md: nobody is sent to another node, so nobody is parted."""
    balancer = balance(
        "nginx",
        cluster,
        "room",
        server={
            "proxy_next_upstream error timeout http_503;\n        proxy_next_upstream_tries 3;\n        proxy_next_upstream_timeout 6s;": "proxy_next_upstream off;"
        },
        upstream={"max_fails=2 fail_timeout=5s": "max_fails=0"},
    )
    with balancer.join("kept"):
        home = node_that_has(cluster, "kept")
    cluster[home].process.kill()
    cluster[home].wait()
    for _ in range(3):
        with balancer.wire() as wire:
            wire.send(upgrade_request("/rooms/kept"))
            answer = wire.read_response()
            assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    cluster[home].again()
    with balancer.join("kept"):
        assert node_that_has(cluster, "kept") == home
