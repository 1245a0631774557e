"""Several Redis servers by themselves: rooms are spread over them, and one that is lost takes only its own rooms along."""

import pytest
from harness import Redis, eventually, run


@pytest.fixture
def two(tmp_path):
    with Redis(tmp_path) as one, Redis(tmp_path) as other:
        yield [one, other]


@pytest.fixture
def node(serve, two):
    """A node on both servers, named in any order."""

    def start(name, servers=None, settings="", **how):
        flags = ["--node-id", name, "--drain-window-ms", "200", "--close-timeout-ms", "300"]
        for one in servers or two:
            flags += ["--redis", one.url]
        return serve(settings, flags=flags, **how)

    return start


def home(two, room):
    """The server that a room's subscribers are at, and the other one."""
    counts = [one.subscribers(room) for one in two]
    assert sorted(counts)[0] == 0 and max(counts) > 0, f"{room}: {counts}"
    return two if counts[0] else two[::-1]


def rooms_of_each(two, node, pairs=16):
    """A room at each server, its members on both nodes: `{server: (room, members)}`."""
    a, b = node
    found = {}
    for index in range(pairs):
        room = f"room-{index}"
        members = [a.join(room), b.join(room)]
        found.setdefault(home(two, room)[0], (room, members))
    assert set(found) == set(two), "rooms are spread over both"
    return found


def test_rooms_are_spread_over_the_servers_and_all_nodes_agree(node, two):
    a = node("a")
    b = node("b", servers=two[::-1])
    for index in range(20):
        room = f"room-{index}"
        one, other = a.join(room), b.join(room)
        server, _ = home(two, room)
        assert server.subscribers(room) == 2, "both at the same one"
        one.send_text(f"{index} from a")
        other.send_text(f"{index} from b")
        heard = [[member.read_text() for _ in range(2)] for member in (one, other)]
        assert heard[0] == heard[1] and len(set(heard[0])) == 2
    by_server = a.stats()["backplane"]["redis"]["servers"]
    assert len(by_server) == 2 and all(one["ready"] for one in by_server)
    assert sum(one["subscriptions"] for one in by_server) == 21, "twenty rooms and everybody"
    assert all(one["subscriptions"] > 2 for one in by_server), by_server
    assert {a.metric("throng_redis_server_ready", server=one["server"]) for one in by_server} == {1}


def test_a_lost_server_takes_only_its_own_rooms_along(node, two):
    a, b = node("a"), node("b")
    found = rooms_of_each(two, (a, b))
    lost, kept = two
    lost.kill()
    eventually(lambda: a.admin("/readyz").status == 503, "it is told")
    reasons = a.admin("/readyz").json["reasons"]
    assert {reason["server"] for reason in reasons} == {f"127.0.0.1:{lost.port}"}, reasons
    room, (one, other) = found[kept]
    for number in range(50):
        one.send_text(str(number))
    # What everybody gets may be at the lost one: members are told of it, wherever their room is.
    heard = []
    while len(heard) < 50:
        text = other.read_text()
        heard += [] if '"gap"' in text else [text]
    assert heard == [str(number) for number in range(50)]
    room, (one, other) = found[lost]
    one.send_text("meanwhile")
    eventually(lambda: one.read_text() == "meanwhile", "members of one node hear each other")
    lost.start()
    for each in (a, b):
        eventually(lambda each=each: each.admin("/readyz").status == 200, "it is back", timeout_s=15)
    one.send_text("afterwards")
    heard = []
    while "afterwards" not in heard:
        heard.append(other.read_text())
    assert any('"gap"' in text for text in heard), "what it may have missed is told"


def test_a_node_that_starts_without_everybodys_server_takes_joins_and_tells_them_when_it_is_back(node, two):
    a = node("a")

    def subscribers(server, channel):
        return server.command("PUBSUB", "NUMSUB", f"throng:{channel}")[1]

    eventually(lambda: sum(subscribers(one, "all") for one in two) == 1, "a follows everybody's channel")
    lost, kept = two if subscribers(two[0], "all") else two[::-1]

    def at(server, kind):
        """A room or a user at the server, and a member on node a."""
        for index in range(64):
            name = f"{kind}-{index}"
            wire = a.join(name) if kind == "room" else a.join("lobby", f"?user={name}")
            if subscribers(server, f"{kind}:{name}"):
                return name, wire
            wire.cut()
        raise AssertionError("nothing is at the server")

    (room, other), (near, _), (far, _) = at(kept, "room"), at(kept, "user"), at(lost, "user")
    lost.kill()
    b = node("b", ready=False)

    def runs():
        try:
            return b.admin("/readyz").status == 503
        except OSError:
            return False

    eventually(runs, "it runs, and is not ready")
    members = [b.join(room, query) for query in ("", f"?user={near}", f"?user={far}")]
    other.send_text("in the room")
    for member in members:
        assert member.read_text() == "in the room"
    lost.start()
    for each in (a, b):
        eventually(lambda each=each: each.admin("/readyz").status == 200, "it is back", timeout_s=15)
    gap = '{"type":"gap","missed":null}'

    def send_until_heard(member, path, sent):
        """Sends, until the member hears what was sent; all that it has heard then."""
        heard = []

        def is_heard():
            sent.append(f"{path} {len(sent)}")
            assert a.admin(f"/v1/{path}", "POST", body=sent[-1].encode()).status == 202
            try:
                while sent[-1] not in heard:
                    heard.append(member.read_text(timeout_s=0.5))
            except TimeoutError:
                return False
            return True

        eventually(is_heard, f"{path} is heard", timeout_s=15)
        return heard

    # Broadcasts were not followed before, nor was the user at the lost one: it is told so ahead of the first of them that
    # it hears, and misses none from there on.
    broadcasts = []
    for member in members:
        heard = send_until_heard(member, "broadcast", broadcasts)
        assert heard[0] == gap, heard
        texts = [text for text in heard if text != gap]
        assert texts == broadcasts[-len(texts) :], (broadcasts, heard)
    messages = []
    texts = [text for text in send_until_heard(members[2], f"users/{far}/send", messages) if text.startswith("users")]
    assert texts == messages[-len(texts) :], (messages, texts)
    # The other user's server was there all the time.
    assert a.admin(f"/v1/users/{near}/send", "POST", body=b"to near").status == 202
    heard = [members[1].read_text()]
    while heard[-1] != "to near":
        heard.append(members[1].read_text())
    assert gap not in heard


def test_what_cannot_be_together_is_refused(tmp_path):
    for urls, wanted in [
        (["redis://h:1", "redis://h:1/2"], "h:1 stands there twice"),
        (["redis-sentinel://h:1/m", "redis-sentinel://h:2/m"], "have the same name"),
        (["redis://h:1", "redis-cluster://h:2"], "a cluster and servers by themselves"),
        (["redis://h:1", "redis://u:hunter2@h:x"], "number 2"),
    ]:
        flags = [flag for url in urls for flag in ("--redis", url)]
        result = run("serve", *flags)
        assert result.returncode != 0
        said = result.stdout + result.stderr
        assert wanted in said and "hunter2" not in said, said
