"""What the balancers tell the nodes of a client, and the nodes' own cookie: the files of deploy/ with what they say to uncomment."""

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from balancers import Cluster
from balancers.cluster import SETTINGS, members
from balancers.process import Keeping
from harness import Wire, eventually

both = pytest.mark.parametrize("kind", ("nginx", "haproxy"))

TRUSTED = 'trusted_proxies = ["127.0.0.1"]\n'
FORWARDED = TRUSTED + 'forwarded_for = "on"\n'
REQUIRED = TRUSTED + 'proxy_protocol = "require"\n'
BY_HEADER = TRUSTED + 'auth = "header"\n'
COOKIE = 'affinity_cookie = "throng_node"\n'


@pytest.fixture
def nodes_with(tmp_path):
    """Starts three nodes with settings beyond those of a cluster, and a key for the API."""
    started = []

    def start(settings, count=3):
        directory = tmp_path / f"nodes-{len(started)}"
        directory.mkdir()
        started.append(Cluster(directory, SETTINGS + settings, count=count))
        return started[-1]

    yield start
    for cluster in started:
        cluster.kill()
        for node in cluster:
            assert "panicked" not in node.log(), node.log()


def status(balancer, path="/rooms/lobby", headers=(), source=None):
    """Status of an upgrade, which is given up at once."""
    with Keeping(balancer.address, source=source) as wire:
        try:
            wire.upgrade(path, headers)
        except AssertionError:
            pass
        return wire.answer.status


def connections(cluster, room):
    """A room's members on all nodes, as the API has them."""
    for node in cluster:
        answer = node.admin(f"/v1/rooms/{room}")
        for member in answer.json["connections"] if answer.status == 200 else []:
            yield node.admin(f"/v1/connections/{member}").json


def peers(cluster, room):
    """Addresses of a room's members, without ports."""
    return sorted(one["peer"].rpartition(":")[0] for one in connections(cluster, room))


def user(cluster, balancer, headers):
    """The user that a client with these headers is."""
    with balancer.join("alone", headers=headers):
        (one,) = connections(cluster, "alone")
        return one["user"]


# --- the client's address -------------------------------------------------------------------------------------------------

TELLS = {
    "nginx": ("nginx", FORWARDED, {}),
    "haproxy": ("haproxy", FORWARDED, {}),
    "haproxy-proxy-v2": (
        "haproxy",
        REQUIRED,
        {
            "    # default-server send-proxy-v2\n": "    default-server send-proxy-v2\n",
            "    # default-server check-send-proxy send-proxy-v2\n": "    default-server check-send-proxy send-proxy-v2\n",
        },
    ),
    "haproxy-proxy-v1": (
        "haproxy",
        REQUIRED,
        {
            "    # default-server send-proxy-v2\n": "    default-server send-proxy\n",
            "    # default-server check-send-proxy send-proxy-v2\n": "    default-server check-send-proxy send-proxy\n",
        },
    ),
}


@pytest.mark.parametrize("variant", TELLS)
def test_nodes_count_clients_behind_a_balancer_by_their_own_addresses(variant, nodes_with, balance):
    kind, settings, replacements = TELLS[variant]
    # By room, so that all of them are on one node.
    cluster = nodes_with(settings + "address_connection_count_max = 2\n")
    balancer = balance(kind, cluster, "room", **({"replacements": replacements} if replacements else {}))
    forged = ["X-Forwarded-For: 198.51.100.7"]
    wires = [balancer.join("limited", source=source, headers=forged) for source in ("127.0.7.2", "127.0.7.2", "127.0.7.3")]
    assert peers(cluster, "limited") == ["127.0.7.2", "127.0.7.2", "127.0.7.3"]
    assert status(balancer, "/rooms/limited", forged, "127.0.7.2") == 429
    assert status(balancer, "/rooms/limited", forged, "127.0.7.4") == 101
    wires[0].cut()
    eventually(lambda: status(balancer, "/rooms/limited", source="127.0.7.2") == 101, "its place is free")
    assert balancer.get("/health").status == 200
    wires[1].send_text("hello")
    assert [wire.read_text() for wire in wires[1:]] == ["hello"] * 2
    for wire in wires[1:]:
        wire.cut()


@pytest.mark.parametrize("variant", ("haproxy-proxy-v2", "haproxy-proxy-v1"))
def test_haproxys_checks_go_through_where_a_proxy_header_is_required(variant, nodes_with, balance):
    kind, settings, replacements = TELLS[variant]
    cluster = nodes_with(settings)
    balancer = balance(kind, cluster, "address", replacements=replacements)

    def checked():
        return {row["check_status"] for row in balancer.servers("nodes").values()} == {"L7OK"}

    eventually(checked, "every node is found well")
    for node in cluster:
        # In version 1 HAProxy names itself as the client of its checks.
        how = "proxy_own" if variant.endswith("v2") else "proxy_header"
        node.await_metric("throng_client_addresses_total", 1, how=how)
        with Wire(node.address, source="127.0.7.9") as wire:
            assert wire.at_end(5), "nobody comes but through the balancer"


# --- the user -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def users(answers):
    """A service that knows users by their `session` cookie: `answers` has the header that it gives; others get 401."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            user = answers.get(self.headers.get("Cookie"))
            self.send_response(204 if user else 401)
            if user:
                self.send_header("X-User-Id", user)
            self.end_headers()

        def log_message(self, *_):
            pass

    service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=service.serve_forever, daemon=True)
    thread.start()
    try:
        yield "{}:{}".format(*service.server_address)
    finally:
        service.shutdown()
        service.server_close()
        thread.join(5)


# An id that no node takes: whether it arrives is seen by the 400.
LONG = "x" * 129


@both
def test_what_a_client_says_of_its_user_never_passes(kind, nodes_with, balance):
    cluster = nodes_with(BY_HEADER)
    balancer = balance(kind, cluster, "address")
    assert status(balancer, headers=[f"X-User-Id: {LONG}"]) == 101
    assert status(balancer, headers=[f"x-user-ID: {LONG}", f"X-User-Id: {LONG}"]) == 101
    assert user(cluster, balancer, ["X-User-Id: anna"]) is None
    assert status(balancer, "/rooms/lobby?user=anna") == 403
    with Keeping(cluster[0].address, source="127.0.7.9") as wire:
        with pytest.raises(AssertionError, match="403"):
            wire.upgrade("/rooms/lobby", ["X-User-Id: anna"])


def test_nginx_has_a_service_say_who_the_user_is(nodes_with, balance):
    cluster = nodes_with(BY_HEADER)
    with users({"session=anna": "anna", "session=long": LONG}) as address:
        server = {
            '        proxy_set_header X-User-Id "";\n': "",
            "        # auth_request /_throng_user;": "        auth_request /_throng_user;",
            "        # auth_request_set": "        auth_request_set",
            "        # proxy_set_header X-User-Id $throng_user;": "        proxy_set_header X-User-Id $throng_user;",
            "    # location = /_throng_user {\n": "    location = /_throng_user {\n",
            "    #     internal;\n    #     proxy_pass http://10.0.0.21:9000;\n": f"    internal;\n    proxy_pass http://{address};\n",
            "    #     proxy_pass_request_body off;\n": "    proxy_pass_request_body off;\n",
            '    #     proxy_set_header Content-Length "";\n': '    proxy_set_header Content-Length "";\n',
            "    #     proxy_set_header X-Original-URI $request_uri;\n    # }\n": "    }\n",
        }
        balancer = balance("nginx", cluster, "address", server=server)
        assert user(cluster, balancer, ["Cookie: session=anna"]) == "anna"
        assert user(cluster, balancer, ["Cookie: session=anna", "X-User-Id: mallory"]) == "anna"
        assert status(balancer, headers=["Cookie: session=long"]) == 400, "an id that is too long"
        assert status(balancer) == 401


def token(secret, subject):
    """A JSON Web Token, signed with HS256."""

    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    front = part(b'{"alg":"HS256"}') + b"." + part(json.dumps({"sub": subject}).encode())
    return (front + b"." + part(hmac.new(secret.encode(), front, hashlib.sha256).digest())).decode()


def test_haproxy_takes_the_user_from_a_signed_token(nodes_with, balance):
    cluster = nodes_with(BY_HEADER)
    replacements = {
        "    # http-request set-var(txn.token)": "    http-request set-var(txn.token)",
        "    # http-request deny deny_status 401": "    http-request deny deny_status 401",
        "    # http-request set-header X-User-Id": "    http-request set-header X-User-Id",
        '"RS256","/etc/haproxy/users.pem"': '"HS256","the-secret"',
        # The balancer's own question is without a token.
        "unless { var(txn.token),": "unless !{ path_beg /rooms/ } or { var(txn.token),",
    }
    balancer = balance("haproxy", cluster, "address", replacements=replacements)

    def with_token(secret, subject):
        return [f"Cookie: session={token(secret, subject)}"]

    assert user(cluster, balancer, with_token("the-secret", "anna")) == "anna"
    assert user(cluster, balancer, [*with_token("the-secret", "anna"), "X-User-Id: mallory"]) == "anna"
    assert status(balancer, headers=with_token("the-secret", LONG)) == 400, "an id that is too long"
    assert status(balancer, headers=with_token("another", "anna")) == 401
    assert status(balancer) == 401


# --- the nodes' own cookie ------------------------------------------------------------------------------------------------


def home_of(cluster, room):
    holders = [index for index, node in enumerate(cluster) if node.process.poll() is None and members(node, room)]
    assert len(holders) == 1, f"{room} has members on nodes {holders}"
    return holders[0]


@both
def test_the_nodes_cookie_brings_a_client_back_through_either_balancer(kind, nodes_with, balance):
    cluster = nodes_with(COOKIE)
    balancers = [balance(kind, cluster, "node"), balance("haproxy" if kind == "nginx" else "nginx", cluster, "node")]
    homes = {}
    wires = []
    for client in range(6):
        wire = balancers[0].join(f"client-{client}")
        home = home_of(cluster, f"client-{client}")
        assert wire.cookie == f"throng_node=node-{home + 1}"
        assert wire.answer.headers["x-throng-node"] == f"node-{home + 1}"
        homes[wire.cookie] = home
        wires.append(wire)
    assert cluster.open_counts() == [2, 2, 2], "who has none comes to the node with the fewest"
    for balancer in balancers:
        for turn, (cookie, home) in enumerate(homes.items()):
            room = f"again-{balancer.address[1]}-{turn}"
            with balancer.join(room, headers=[f"Cookie: theme=dark; {cookie}"], source=f"127.0.8.{2 + turn}") as wire:
                assert home_of(cluster, room) == home
                assert wire.cookie is None, "who has its cookie gets no other"
    for cookie in ("throng_node=", "throng_node=node-9", "throng_node=../../etc/passwd", f"throng_node={'F' * 4000}"):
        with balancers[0].join("forged", headers=[f"Cookie: {cookie}"]) as wire:
            assert wire.cookie and wire.cookie != cookie
    for wire in wires:
        wire.cut()


@both
def test_where_a_cookies_node_is_away_another_one_takes_over(kind, nodes_with, balance):
    cluster = nodes_with(COOKIE)
    balancer = balance(kind, cluster, "node")
    with balancer.join("kept") as wire:
        home, cookie = home_of(cluster, "kept"), wire.cookie
        cluster[home].process.kill()
        cluster[home].wait()
    for _ in range(4):
        with balancer.join("kept", headers=[f"Cookie: {cookie}"]) as wire:
            other = home_of(cluster, "kept")
            assert other != home and wire.cookie == f"throng_node=node-{other + 1}"
        cluster[other].await_open(0)
    cluster[home].again()
    moved = wire.cookie
    with balancer.join("kept", headers=[f"Cookie: {moved}"]):
        assert home_of(cluster, "kept") == other, "who has moved stays"

    def back():
        with balancer.join("home", headers=[f"Cookie: {cookie}"]):
            return members(cluster[home], "home")

    eventually(back, "who kept its cookie comes home", timeout_s=20, every_s=0.2)


@both
def test_the_npm_client_comes_through_with_everything_on(kind, nodes_with, balance):
    clients = Path(__file__).resolve().parents[1] / "e2e/clients"
    if shutil.which("node") is None or not (clients / "node_modules/ws").exists():
        pytest.skip("node or the npm package ws is not installed")
    cluster = nodes_with(FORWARDED + COOKIE)
    balancer = balance(kind, cluster, "node")
    orders = "".join(json.dumps(order) + "\n" for order in ({"say": "hello"},))
    with subprocess.Popen(
        ["node", "talk.mjs", balancer.url("/rooms/npm")], cwd=clients, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert json.loads(client.stdout.readline())["event"] == "open"
        client.stdin.write(orders)
        client.stdin.flush()
        assert json.loads(client.stdout.readline()) == {"event": "text", "data": "hello"}
        client.stdin.write(json.dumps({"close": 1000}) + "\n")
        client.stdin.close()
        assert json.loads(client.stdout.readline())["code"] == 1000
