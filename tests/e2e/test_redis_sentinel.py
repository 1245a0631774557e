"""A master, a replica and three Sentinels: nodes find the master, follow it, and leave who is none any more."""

import json
import re
import signal
import threading
import time

import pytest
from harness import Group, Sentinel, eventually, has_redis, refused, run

pytestmark = pytest.mark.skipif(not has_redis(), reason="there is no redis-server on this host")


@pytest.fixture
def group(tmp_path):
    with Group(tmp_path) as one:
        yield one


@pytest.fixture
def node(serve, group):
    def start(name, settings="", **how):
        url = how.pop("url", group.url)
        return serve(settings, flags=["--redis", url, "--node-id", name, "--drain-window-ms", "200"], **how)

    return start


def is_ready(*nodes):
    return all(one.admin("/readyz").status == 200 for one in nodes)


def nodes_at(server):
    return {name.rsplit("-", 1)[0] for name in server.clients()}


class Traffic:
    """One member of each node sends numbers; all are read, with the notices among them, and when they came."""

    def __init__(self, nodes, room="r", every_s=0.02):
        self.wires = [one.join(room) for one in nodes]
        self.every_s = every_s
        self.sent = [0] * len(nodes)
        self.heard = [[] for _ in nodes]
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._send, daemon=True)]
        self.threads += [threading.Thread(target=self._read, args=(index,), daemon=True) for index in range(len(nodes))]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        for thread in self.threads:
            thread.join(10)

    def _send(self):
        while not self.ended.is_set():
            for index, wire in enumerate(self.wires):
                wire.send_text(f"{index}:{self.sent[index]}")
                self.sent[index] += 1
            time.sleep(self.every_s)

    def _read(self, index):
        while not self.ended.is_set():
            try:
                frame = self.wires[index].read_message(0.2)
            except TimeoutError:
                continue
            self.heard[index].append((time.monotonic(), frame.payload.decode()))

    def numbers(self, reader, sender):
        """What the reader has heard of the sender, in order."""
        found = (text for _, text in self.heard[reader])
        return [int(text.split(":")[1]) for text in found if text.startswith(f"{sender}:")]

    def notices(self, reader):
        return [json.loads(text) for _, text in self.heard[reader] if text.startswith("{")]

    def crosses(self):
        """Whether what is sent now is heard at the other end."""
        marks = list(self.sent)
        return lambda: all(
            self.numbers(reader, sender)[-1:] > [marks[sender]]
            for reader in range(len(marks))
            for sender in range(len(marks))
        )


def test_the_master_is_found_and_a_replica_is_not_used(node, group):
    a, b = node("a"), node("b")
    one, other = a.join("r"), b.join("r")
    one.send_text("hi")
    assert other.read_text() == "hi"
    master, replica = group.servers
    assert nodes_at(master) == {"throng-a", "throng-b"} and not nodes_at(replica)


@pytest.mark.parametrize("mode", ["pubsub", "streams"])
def test_a_failover_is_followed_and_nothing_is_silently_lost(node, group, mode):
    settings = f'backplane_mode = "{mode}"\n'
    nodes = [node("a", settings), node("b", settings)]
    old = group.master()
    with Traffic(nodes) as traffic:
        eventually(traffic.crosses(), "messages cross")
        old.kill()
        killed = time.monotonic()
        new = group.await_master(old)
        promoted = time.monotonic()
        eventually(traffic.crosses(), "messages cross again", timeout_s=20)
        healed = time.monotonic()
        eventually(lambda: is_ready(*nodes), "the nodes are ready", timeout_s=20)
        print(f"{mode}: promoted after {promoted - killed:.2f} s, healed {healed - promoted:.2f} s later")
        assert healed - promoted < 5
        eventually(traffic.crosses(), "and go on")
    for reader in range(2):
        own = traffic.numbers(reader, reader)
        assert own == sorted(set(own)), "once and in order"
        other = traffic.numbers(reader, 1 - reader)
        assert other == sorted(set(other)), "once and in order"
        missing = set(range(other[-1])) - set(other)
        told = traffic.notices(reader)
        print(f"{mode}: reader {reader} misses {len(missing)}, was told {told}")
        if missing:
            assert any(notice["type"] == "gap" for notice in told), "what is missing was told"
        if mode == "streams":
            assert not missing, "streams lose nothing that the publisher still holds"
    assert {"throng-a", "throng-b"} <= nodes_at(new)
    # The old master comes back, as a replica: nobody uses it.
    old.settings.append(f"replicaof 127.0.0.1 {new.port}")
    old.start()
    time.sleep(2)  # longer than a question's interval while all is well: what is checked is that nothing happens
    assert not nodes_at(old)
    assert is_ready(*nodes)


def test_a_switch_on_purpose_is_followed_at_once(node, group):
    a, b = node("a"), node("b")
    old = group.master()
    one, other = a.join("r"), b.join("r")
    group.sentinels[0].command("SENTINEL", "FAILOVER", group.name)
    new = group.await_master(old)
    eventually(lambda: nodes_at(new) >= {"throng-a", "throng-b"} and not nodes_at(old), "the nodes have moved", timeout_s=5)
    eventually(lambda: is_ready(a, b), "they are ready", timeout_s=5)
    one.send_text("after")
    texts = iter(other.read_text, None)
    assert next(text for text in texts if not text.startswith("{")) == "after"
    assert "Sentinel has named another master" in a.log()


def test_sentinels_that_do_not_answer_are_passed_over(node, group):
    group.sentinels[0].kill()
    group.sentinels[1].signal(signal.SIGSTOP)
    a, b = node("a", "redis_probe_timeout_ms = 300\n"), node("b", "redis_probe_timeout_ms = 300\n")
    one, other = a.join("r"), b.join("r")
    one.send_text("hi")
    assert other.read_text() == "hi"
    # All are gone: who has found the master goes on with it, and stays ready.
    group.sentinels[1].kill()
    group.sentinels[2].kill()
    eventually(lambda: "is of no use" in a.log(), "it is noticed")
    one.send_text("still here")
    assert other.read_text() == "still here"
    assert is_ready(a, b)


def test_passwords_differ_at_the_sentinels_and_the_master(serve, tmp_path):
    with Group(tmp_path, sentinel_count=1, password="at-redis", sentinel_password="at-sentinel") as group:
        url = group.url.replace("://", "://:at-redis@")
        code, said = refused(url)
        assert code == 1 and "wants a password" in said and "Sentinel" in said, said
        a = serve(flags=["--redis", url, "--redis-at-start", "fail"], env={"THRONG_REDIS_SENTINEL_PASSWORD": "at-sentinel"})
        member = a.join("r")
        member.send_text("hi")
        assert member.read_text() == "hi"
        b = serve(flags=["--redis", url + "?sentinel_password=at-sentinel", "--redis-at-start", "fail"])
        other = b.join("r")
        member.send_text("again")
        assert other.read_text() == "again"
        assert "at-sentinel" not in a.log() + b.log() and "at-redis" not in a.log() + b.log()


def test_what_is_wrong_with_sentinels_is_told(tmp_path, group, redis):
    sentinel = group.sentinels[0]
    code, said = refused(f"redis-sentinel://127.0.0.1:{sentinel.port}/another")
    assert code == 1 and "watches no master called another" in said and "sentinel monitor" in said, said
    code, said = refused(f"redis-sentinel://127.0.0.1:{redis.port}/m")
    assert code == 1 and "no Sentinel but a Redis" in said and f"write redis://127.0.0.1:{redis.port}" in said, said
    code, said = refused("redis-sentinel://127.0.0.1:1,127.0.0.1:2/m")
    assert code == 1 and "no Sentinel says where the master is" in said and "refuses the connection" in said, said
    with Sentinel(tmp_path) as lonely:
        lonely.command("SENTINEL", "MONITOR", "gone", "127.0.0.1", "1", "1")
        code, said = refused(f"redis-sentinel://127.0.0.1:{lonely.port}/gone")
        assert code == 1 and "127.0.0.1:1 refuses the connection" in said, said


def test_a_node_that_waits_for_a_master_says_so_and_heals(serve, group):
    for sentinel in group.sentinels:
        sentinel.kill()
    a = serve(flags=["--redis", group.url, "--node-id", "a"], ready=False)

    eventually(lambda: any(reason.get("link") == "sentinel" for reason in a.reasons()), "it says that no Sentinel answers")
    for sentinel in group.sentinels:
        sentinel.start()
    eventually(lambda: is_ready(a), "it is ready", timeout_s=20)


def test_check_looks_at_sentinels_and_the_master_that_they_name(group):
    def checked():
        told = json.loads(run("check", "--json", "--redis", group.url).stdout)
        return [finding for finding in told["findings"] if finding["name"].startswith("redis ")]

    found = checked()
    assert [finding["level"] for finding in found] == ["ok"] * 4, found
    assert all(f"names the master 127.0.0.1:{group.servers[0].port}" in finding["seen"] for finding in found[:3]), found
    assert "a message is back after" in found[3]["seen"], found
    group.sentinels[0].kill()
    assert sorted(finding["level"] for finding in checked()) == ["ok", "ok", "ok", "warn"]
    for sentinel in group.sentinels:
        sentinel.kill()
    assert [finding["level"] for finding in checked()] == ["fail"] * 3


def test_check_asks_every_sentinel_what_it_lets(group):
    url = group.url + "?sentinel_user=app&sentinel_password=pw"
    for sentinel in group.sentinels:
        sentinel.command("ACL", "SETUSER", "app", "reset", "on", ">pw")

    def checked():
        told = json.loads(run("check", "--json", "--redis", url).stdout)
        return [finding for finding in told["findings"] if finding["name"].startswith("redis ")]

    found = checked()
    assert [finding["level"] for finding in found] == ["fail"] * 3, found
    for finding in found:
        assert "it lacks +sentinel|get-master-addr-by-name +subscribe;" in finding["seen"], found
    rules = re.search(r"ACL SETUSER app (.*)", found[0]["seen"])[1].split()
    for sentinel in group.sentinels:
        sentinel.command("ACL", "SETUSER", "app", *rules)
    assert [finding["level"] for finding in checked()] == ["ok"] * 4
    group.sentinels[1].command("ACL", "SETUSER", "app", "-subscribe")
    found = checked()
    assert sorted(finding["level"] for finding in found) == ["ok", "ok", "ok", "warn"], found
    (warned,) = [finding for finding in found if finding["level"] == "warn"]
    assert warned["name"].endswith(str(group.sentinels[1].port)), found
    assert "a failover is heard of only when the Sentinel is asked next" in warned["seen"], found


def test_two_groups_share_the_rooms(serve, tmp_path):
    (tmp_path / "other").mkdir()
    with Group(tmp_path, sentinel_count=1) as one, Group(tmp_path / "other", sentinel_count=1, name="other") as other:
        urls = [one.url, other.url]
        nodes = [
            serve(flags=["--redis", first, "--redis", second, "--node-id", name])
            for name, first, second in (("a", *urls), ("b", *reversed(urls)))
        ]
        rooms = [f"r{number}" for number in range(40)]
        members = [[node.join(room) for room in rooms] for node in nodes]
        for room, (near, far) in zip(rooms, zip(*members, strict=True), strict=True):
            near.send_text(room)
            assert far.read_text() == room
        counts = [sum(group.master().subscribers(room) for room in rooms) for group in (one, other)]
        assert sum(counts) == 2 * len(rooms) and min(counts) > 10, counts
