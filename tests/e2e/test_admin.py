"""The admin listener: health, metrics, the API, and who may use it."""

import contextlib
import shutil
import subprocess
from urllib.parse import quote

import pytest
from harness import Metrics, Server, Wire, eventually, free_port, frozen, raw_exchange
from harness.wire import BINARY, TEXT

KEY = "correct-horse-battery-staple"


def test_livez_and_readyz_answer_200(server):
    for path in ("/livez", "/readyz"):
        answer = server.admin(path)
        assert answer.status == 200, answer
    assert server.admin("/livez", method="HEAD").status == 200


def test_readyz_names_a_shard_that_does_not_answer_until_it_does(serve):
    server = serve(shards=3)
    with contextlib.ExitStack() as still:
        try:
            still.enter_context(frozen(server.process.pid, "shard-1-"))
        except PermissionError:
            pytest.skip("this host lets no process trace another (ptrace), even its own child")
        unready = eventually(lambda: (a := server.admin("/readyz")).status == 503 and a, "readyz answers 503")
        reasons = unready.json["reasons"]
        assert [(reason["code"], reason["shards"]) for reason in reasons] == [("shard_stalled", [1])]
        assert server.admin("/livez").status == 200, "the node lives"
        metrics = server.metrics()
        answering = [metrics.sum("throng_shard_answering", shard=str(shard)) for shard in range(3)]
        assert answering == [1, 0, 1]
    eventually(lambda: server.admin("/readyz").status == 200, "readyz answers 200 again")
    assert server.metric("throng_shard_answering") == 3


def test_metrics_are_openmetrics_with_help_and_type_for_each(server):
    answer = server.admin("/metrics", headers=["Accept: application/openmetrics-text; version=1.0.0"])
    assert answer.headers["content-type"].startswith("application/openmetrics-text"), answer.headers
    metrics = Metrics(answer.body.decode())
    families = set(metrics.types)
    assert families == set(metrics.helps)
    assert all(name.startswith(("throng_", "process_")) for name in families), families
    for sample, _ in metrics.samples:
        family = sample
        for suffix in ("_total", "_bucket", "_count", "_sum", "_info", "_created"):
            if family not in families and family.endswith(suffix):
                family = family[: -len(suffix)]
        assert family in families, f"{sample} has no TYPE"


def test_who_does_not_ask_for_openmetrics_gets_the_text_format(server):
    answer = server.admin("/metrics", headers=["Accept: text/plain"])
    assert answer.headers["content-type"].startswith("text/plain"), answer.headers
    assert b"# TYPE throng_connections gauge" in answer.body
    assert b"# EOF" not in answer.body


def test_promtool_finds_nothing_to_say(server):
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    text = server.admin("/metrics").body
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=20, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_happens_is_counted(server):
    def readings():
        metrics = server.metrics()
        return {
            "in": metrics.sum("throng_messages_received_total"),
            "bytes in": metrics.sum("throng_messages_received_bytes_total"),
            "deliveries": metrics.sum("throng_deliveries_total"),
            "upgraded": metrics.sum("throng_handshakes_total", outcome="upgraded"),
            "closed": metrics.sum("throng_connections_closed_total", reason="peer_closed"),
            "latencies": metrics.sum("throng_publish_to_deliver_seconds_count"),
        }

    before = readings()
    members = [server.join("counted") for _ in range(5)]
    for sequence in range(10):
        members[0].send_text(f"message {sequence}")
        for member in members:
            member.read_message()
    for member in members:
        member.send_close(1000)
        member.read_close()

    def difference():
        after = readings()
        seen = {name: after[name] - value for name, value in before.items()}
        wanted = {"in": 10, "bytes in": 90, "deliveries": 50, "upgraded": 5, "closed": 5}
        return all(seen[name] == value for name, value in wanted.items()) and seen["latencies"] > 0 and seen

    eventually(difference, "every count has moved by what was done")
    for member in members:
        member.cut()


def test_stats_show_every_shard(server):
    stats = server.stats()
    assert sorted(shard["shard"] for shard in stats["shards"]) == [0, 1, 2]


def test_a_publish_reaches_the_room_as_text_or_binary(server):
    with server.join("admin-publish") as ada, server.join("admin-publish", "?echo=0") as bob:
        answer = server.admin("/v1/rooms/admin-publish/publish", "POST", body="grüße".encode())
        assert answer.status == 202, answer
        for member in (ada, bob):
            frame = member.read_message()
            assert (frame.opcode, frame.text) == (TEXT, "grüße")
        answer = server.admin("/v1/rooms/admin-publish/publish?kind=binary", "POST", body=b"\x00\xff")
        assert answer.status == 202, answer
        headers = ["Content-Type: application/octet-stream"]
        answer = server.admin("/v1/rooms/admin-publish/publish", "POST", headers=headers, body=b"\xfe")
        assert answer.status == 202, answer
        for member in (ada, bob):
            frames = [member.read_message() for _ in range(2)]
            assert [(frame.opcode, frame.payload) for frame in frames] == [(BINARY, b"\x00\xff"), (BINARY, b"\xfe")]


def test_publishes_and_messages_share_one_order(server):
    members = [server.join("shared-order") for _ in range(9)]
    for sequence in range(40):
        if sequence % 2:
            members[sequence % 9].send_text(f"m{sequence}")
        else:
            server.admin("/v1/rooms/shared-order/publish", "POST", body=f"p{sequence}".encode())
    heard = [[member.read_text() for _ in range(40)] for member in members]
    for member in members:
        member.cut()
    assert all(one == heard[0] for one in heard)
    published = [text for text in heard[0] if text.startswith("p")]
    assert published == [f"p{sequence}" for sequence in range(0, 40, 2)]


def test_a_publish_into_an_empty_room_is_accepted(server):
    assert server.admin("/v1/rooms/nobody-there/publish", "POST", body=b"hello?").status == 202


def test_bad_publishes_are_refused_with_a_reason(server):
    for path, body, status in [
        ("/v1/rooms/x/publish", b"\xff", 400),
        ("/v1/rooms/x/publish", b"x" * 65_537, 413),
        ("/v1/rooms/%00/publish", b"x", 400),
        ("/v1/rooms/" + "r" * 256 + "/publish", b"x", 400),
        ("/v1/rooms/%ff/publish", b"x", 400),
    ]:
        answer = server.admin(path, "POST", body=body)
        assert answer.status == status, (path[:30], answer)
        assert answer.json["error"]["code"] and answer.json["error"]["message"]


def test_rooms_are_listed_over_all_shards(server):
    members = [server.join(quote("list:é")) for _ in range(7)] + [server.join("list:b"), server.join("other")]
    try:

        def listed():
            rooms = server.admin("/v1/rooms?prefix=list:").json["rooms"]
            return {room["room"]: room["members"] for room in rooms} == {"list:é": 7, "list:b": 1}

        eventually(listed, "both rooms are listed with their members")
        assert len(server.admin("/v1/rooms?prefix=list:&limit=1").json["rooms"]) == 1
        one = server.admin("/v1/rooms/" + quote("list:é")).json
        assert one["members"] == 7
        assert len(one["connections"]) == 7
    finally:
        for member in members:
            member.cut()


def test_a_room_that_is_not_there_is_404(server):
    answer = server.admin("/v1/rooms/never-was")
    assert answer.status == 404
    assert answer.json["error"]["message"]


def test_a_connection_can_be_looked_at_and_disconnected(server):
    with server.join("looked-at") as ada, server.join("looked-at") as bob:
        connections = eventually(
            lambda: (c := server.admin("/v1/rooms/looked-at").json.get("connections", [])) and len(c) == 2 and c,
            "both are listed",
        )
        by_port = {}
        for connection in connections:
            about = server.admin(f"/v1/connections/{connection}").json
            assert (about["id"], about["node"]) == (connection, server.stats()["node"])
            assert about["room"] == "looked-at"
            assert about["state"] == "open"
            by_port[int(about["peer"].rsplit(":", 1)[1])] = connection
        victim = by_port[ada.source_port]
        assert server.admin(f"/v1/connections/{victim}", "DELETE").status in (200, 202, 204)
        assert ada.read_close().code == 4001
        ada.cut()
        eventually(lambda: server.admin(f"/v1/connections/{victim}").status == 404, "it is gone")
        assert server.admin(f"/v1/connections/{victim}", "DELETE").status == 404
        bob.send_text("unhurt")
        assert bob.read_text() == "unhurt"


def test_an_id_of_another_node_closes_nobody_here(serve):
    """Both nodes give their first connection the same id: it counts on its own node only."""
    one, other = (serve(flags=["--node-id", name], shards=1) for name in ("one", "other"))
    with one.join("r") as ada, other.join("r") as bob:
        of_one, of_other = (node.admin("/v1/rooms/r").json for node in (one, other))
        assert (of_one["node"], of_other["node"]) == ("one", "other")
        assert of_one["connections"] == of_other["connections"]
        path = f"/v1/connections/{of_other['connections'][0]}?node=other"
        for method in ("GET", "DELETE"):
            answer = one.admin(path, method)
            assert (answer.status, answer.json["error"]["code"]) == (409, "other_node")
        assert other.admin(path, "DELETE").status == 200
        assert bob.read_close().code == 4001
        ada.send_text("unhurt")
        assert ada.read_text() == "unhurt"
        bob.cut()
        with other.join("r") as eve:
            assert eventually(lambda: other.admin(path).status == 404, "the id is not used again")
            eve.send_text("unhurt")
            assert eve.read_text() == "unhurt"


def test_without_a_key_a_page_in_a_browser_on_this_host_is_refused(server):
    port = server.admin_address[1]
    with server.join("everybody") as ada:
        for headers in (["Origin: https://evil.example"], ["Origin: null"]):
            answer = server.admin("/v1/broadcast", "POST", headers, b"forged")
            assert (answer.status, answer.json["error"]["code"]) == (403, "browser_refused")
        for host in (f"evil.example:{port}", "localhost.evil.example"):
            head = f"POST /v1/broadcast HTTP/1.1\r\nHost: {host}\r\nContent-Length: 6\r\nConnection: close\r\n\r\n"
            assert raw_exchange(server.admin_address, head.encode() + b"forged").startswith(b"HTTP/1.1 403 ")
        for host in (f"localhost:{port}", f"[::1]:{port}"):
            head = f"POST /v1/broadcast HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
            assert raw_exchange(server.admin_address, head.encode() + b"real").startswith(b"HTTP/1.1 202 ")
            assert ada.read_text() == "real"
        assert server.admin("/readyz", headers=["Origin: https://evil.example"]).status == 200


def test_with_a_key_it_is_the_key_that_counts(serve):
    server = serve(shards=1, admin_key=KEY)
    assert server.admin("/v1/broadcast", "POST", ["Origin: https://ops.example"], b"x").status == 202
    assert anonymous(server, "/v1/broadcast", "POST").status == 401


@pytest.mark.parametrize("identity", ["zz", "0", "ffffffffffffffff", "0" * 16, "-1", "%00"])
def test_a_connection_id_that_means_nobody_is_400_or_404(server, identity):
    assert server.admin(f"/v1/connections/{identity}").status in (400, 404)


@pytest.mark.parametrize(
    "path,method,status",
    [
        ("/", "GET", 404),
        ("/v1", "GET", 404),
        ("/v1/nothing", "GET", 404),
        ("/metrics", "POST", 405),
        ("/v1/stats", "DELETE", 405),
        ("/v1/rooms/x/publish", "GET", 405),
        ("/v1/connections/0000000000000000", "PUT", 405),
    ],
)
def test_unknown_paths_and_methods_are_told_as_json(server, path, method, status):
    answer = server.admin(path, method)
    assert answer.status == status, answer
    assert answer.json["error"]["code"]
    if status == 405:
        assert answer.headers["allow"]


def test_a_key_guards_v1_and_leaves_health_and_metrics_open(serve):
    server = serve(shards=1, admin_key=KEY)
    for key in ("", "wrong", KEY + "x", KEY[:-1]):
        answer = server.admin("/v1/stats", key=key) if key else anonymous(server, "/v1/stats")
        assert answer.status == 401, (key, answer)
        assert "bearer" in answer.headers["www-authenticate"].lower()
    assert server.admin("/v1/stats").status == 200
    assert anonymous(server, "/v1/rooms/x/publish", "POST").status == 401
    for path in ("/livez", "/readyz", "/metrics"):
        assert anonymous(server, path).status == 200
    assert KEY not in server.log()


def anonymous(server, path, method="GET"):
    """Asks without any key."""
    key, server.admin_key = server.admin_key, None
    try:
        return server.admin(path, method)
    finally:
        server.admin_key = key


def test_an_admin_address_for_others_works_with_a_key(tmp_path):
    server = Server(tmp_path, shards=1, admin_key=KEY)
    port = free_port()
    server.command[server.command.index("--admin") + 1] = f"0.0.0.0:{port}"
    server.admin_address = ("127.0.0.1", port)
    with server:
        assert server.admin("/v1/stats").status == 200


def test_a_slow_admin_client_does_not_stop_the_others(server):
    slow = [Wire(server.admin_address) for _ in range(40)]
    for wire in slow:
        wire.send(b"GET /metrics HTTP/1.1\r\nHo")
    try:
        assert server.admin("/livez").status == 200
        with server.join("beside") as ada:
            ada.send_text("beside")
            assert ada.read_text() == "beside"
    finally:
        for wire in slow:
            wire.cut()


def test_more_admin_clients_than_it_takes_do_not_hurt_the_members(server):
    many = [Wire(server.admin_address) for _ in range(150)]
    try:
        with server.join("unhurt") as ada:
            ada.send_text("unhurt")
            assert ada.read_text() == "unhurt"
    finally:
        for wire in many:
            wire.cut()
    eventually(lambda: reachable(server), "the admin listener answers again")


def reachable(server):
    try:
        return server.admin("/livez").status == 200
    except (OSError, EOFError):
        return False


def test_requests_may_follow_each_other_on_one_connection(server):
    with Wire(server.admin_address) as wire:
        for _ in range(5):
            wire.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert wire.read_response().status == 200


def test_garbage_on_the_admin_port_is_survived(server):
    for garbage in (b"\x16\x03\x01\x02\x00", b"\x00" * 3000, b"GET /" + b"a" * 200_000):
        with Wire(server.admin_address) as wire:
            try:
                wire.send(garbage + b"\r\n\r\n")
            except ConnectionError:
                pass
            wire.at_end(8)
    assert server.admin("/livez").status == 200
