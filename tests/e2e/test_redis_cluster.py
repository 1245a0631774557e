"""A real Redis Cluster: rooms over its masters, slots that move under traffic, masters that die; and wrong URLs."""

import re
import threading
import time

import pytest
from harness import Redis, RedisCluster, eventually, has_redis, run

MODES = ["pubsub", "sharded", "streams"]


@pytest.fixture
def cluster(tmp_path):
    if not has_redis():
        pytest.skip("there is no redis-server on this host")
    with RedisCluster(tmp_path) as one:
        yield one


@pytest.fixture
def node(serve):
    def start(name, url, mode, settings="", **how):
        flags = ["--redis", url, "--node-id", name, "--backplane-mode", mode]
        flags += ["--drain-window-ms", "200", "--close-timeout-ms", "300"]
        return serve(settings, flags=flags, **how)

    return start


def texts(member, count):
    return [member.read_text() for _ in range(count)]


@pytest.mark.parametrize("mode", MODES)
def test_everybody_gets_everything_once_and_in_one_order_over_all_masters(node, cluster, mode):
    nodes = [node(f"n{index}", RedisCluster.url_of(one), mode) for index, one in enumerate(cluster.masters)]
    rooms = [f"room-{index}" for index in range(12)]
    members = {room: [one.join(room) for one in nodes] for room in rooms}
    for number in range(20):
        for room in rooms:
            for index, member in enumerate(members[room]):
                member.send_text(f"{index}:{number}")
    for room in rooms:
        heard = [texts(member, 60) for member in members[room]]
        assert len(set(heard[0])) == 60, "each once"
        assert heard[0] == heard[1] == heard[2], "one order"
    for one in nodes:
        redis = one.stats()["backplane"]["redis"]
        assert redis["mode"] == mode and redis["ready"]
        assert len(redis["servers"]) == 3
        assert sum(server["subscriptions"] for server in redis["servers"]) == 13, "twelve rooms and everybody"
        assert all(server["subscriptions"] > 0 for server in redis["servers"]), redis["servers"]
        assert one.metrics().sum("throng_redis_gaps_total") == 0


@pytest.mark.parametrize("mode", MODES)
def test_users_and_everybody_are_reached_and_known_over_all_masters(node, cluster, mode):
    a, b = (node(name, cluster.url, mode) for name in "ab")
    tabs = {user: [one.join("r", f"?user={user}") for one in (a, b)] for user in (f"user-{index}" for index in range(8))}
    for user, members in tabs.items():
        assert a.admin(f"/v1/users/{user}/send", "POST", body=user.encode()).status == 202
        assert [member.read_text() for member in members] == [user] * 2
    assert b.admin("/v1/broadcast", "POST", body=b"all").status == 202
    for member in (member for members in tabs.values() for member in members):
        assert member.read_text() == "all"
    for user in tabs:

        def nodes_of(user=user):
            return {connection["node"] for connection in b.admin(f"/v1/users/{user}").json.get("connections", [])}

        eventually(lambda: nodes_of() == {"a", "b"}, f"{user} is known at its master")
    eventually(lambda: {one["id"] for one in a.admin("/v1/cluster").json.get("nodes", [])} == {"a", "b"}, "both nodes are known")


def channel_of(cluster, mode, room):
    """The channel that a node follows for a room."""
    for one in cluster.alive():
        for channel in one.command("PUBSUB", "SHARDCHANNELS" if mode == "sharded" else "CHANNELS"):
            if channel.endswith(f":room:{room}".encode()):
                return channel.decode()
    raise AssertionError(f"nobody follows {room}")


class Talk:
    """A member that publishes numbers until it is stopped, and readers that note what they hear."""

    def __init__(self, speaker, readers):
        self.speaker = speaker
        self.heard = [[] for _ in readers]
        self.sent = 0
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._speak, daemon=True)]
        for reader, heard in zip(readers, self.heard):
            self.threads.append(threading.Thread(target=self._read, args=(reader, heard), daemon=True))
        for thread in self.threads:
            thread.start()

    def _speak(self):
        while not self.ended.is_set():
            self.sent += 1
            self.speaker.send_text(str(self.sent))
            time.sleep(0.002)
        self.speaker.send_text("end")

    def _read(self, reader, heard):
        while not heard or heard[-1] != "end":
            heard.append(reader.read_text())

    def end(self):
        self.ended.set()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive(), "everybody hears the end"

    def check(self):
        """Each once, in order, and whoever misses some was told."""
        for heard in self.heard:
            numbers = [int(text) for text in heard if text.isdigit()]
            assert numbers == sorted(set(numbers)), "each once, and in order"
            told = [text for text in heard if '"gap"' in text]
            assert len(numbers) == self.sent or told, f"{self.sent - len(numbers)} lost in silence"


@pytest.mark.parametrize("mode", MODES)
def test_a_slot_moves_under_traffic_and_nothing_is_lost_in_silence(node, cluster, mode):
    nodes = [node(f"n{index}", cluster.url, mode) for index in range(3)]
    speaker = nodes[0].join("r", "?echo=0")
    readers = [one.join("r") for one in nodes]
    channel = channel_of(cluster, mode, "r")
    count = "SHARDNUMSUB" if mode == "sharded" else "NUMSUB"
    slot = cluster.slot_of(channel)
    source = cluster.master_of(slot)
    targets = [one for one in cluster.masters if one is not source]
    talk = Talk(speaker, readers)
    time.sleep(0.3)
    for target in [*targets, source]:
        cluster.move_slot(slot, target)
        # Without pushes of the server a move is found by the next look at the topology.
        eventually(
            lambda target=target: target.command("PUBSUB", count, channel)[1] == len(nodes),
            "all nodes follow it",
            timeout_s=4 if mode == "sharded" else 15,
        )
        time.sleep(0.2)
    talk.end()
    talk.check()
    if mode == "streams":
        for heard in talk.heard:
            numbers = [int(text) for text in heard if text.isdigit()]
            assert numbers == list(range(1, talk.sent + 1)), "none is lost"
    for one in nodes:
        assert one.admin("/readyz").status == 200
        if mode == "sharded":
            assert one.metrics().sum("throng_redis_losses_total") == 0, "a move is no failure"


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_master_is_replaced_by_its_replica(node, tmp_path, mode):
    with RedisCluster(tmp_path, replica_count=1) as cluster:
        nodes = [node(f"n{index}", cluster.url, mode, "redis_buffer_age_ms = 30000\n") for index in range(2)]
        rooms = [f"room-{index}" for index in range(30)]
        # A room whose master has a replica, and one of another master's: nothing is missing there. (Its members may be told
        # of a gap in what everybody gets: everybody's channel is at one of the masters, too.)
        joined = {room: [one.join(room) for one in nodes] for room in rooms}
        homes = {room: cluster.master_of(cluster.slot_of(channel_of(cluster, mode, room))) for room in rooms}
        struck = next(room for room in rooms if homes[room] is cluster.masters[0])
        spared = next(room for room in rooms if homes[room] is cluster.masters[1])
        talks = [Talk(nodes[0].join(room, "?echo=0"), joined[room]) for room in (struck, spared)]
        time.sleep(0.3)
        cluster.masters[0].kill()
        killed = time.monotonic()
        replica = cluster.replicas[0]
        eventually(lambda: b"role:master" in replica.command("INFO", "replication"), "it is promoted", timeout_s=20)
        promoted = time.monotonic()
        for one in nodes:
            eventually(lambda one=one: one.admin("/readyz").status == 200, "it heals", timeout_s=15)
        healed = time.monotonic()
        print(f"{mode}: promoted after {promoted - killed:.1f} s, ready {healed - promoted:.1f} s later")
        time.sleep(0.3)
        for talk in talks:
            talk.end()
            talk.check()
            if mode == "streams":
                for heard in talk.heard:
                    numbers = [int(text) for text in heard if text.isdigit()]
                    assert numbers == list(range(1, talk.sent + 1)), "none is lost"
        for heard in talks[1].heard:
            assert [text for text in heard if text.isdigit()] == [str(number + 1) for number in range(talks[1].sent)]
        for one in nodes:
            assert one.metrics().sum("throng_redis_messages_refused_total") == 0


def test_a_single_redis_takes_sharded_channels_too(node, redis):
    nodes = [node(f"n{index}", redis.url, "sharded") for index in range(2)]
    members = [one.join("r") for one in nodes]
    members[0].send_text("hello")
    assert [member.read_text() for member in members] == ["hello"] * 2
    [channel] = [one for one in redis.command("PUBSUB", "SHARDCHANNELS") if one.endswith(b":room:r")]
    assert channel.startswith(b"throng:{") and redis.command("PUBSUB", "SHARDNUMSUB", channel)[1] == 2


def test_where_sharded_channels_are_forbidden_it_says_so_and_goes_on_without(node, tmp_path):
    settings = ["user default on nopass ~* &* +@all -spublish -ssubscribe -sunsubscribe"]
    with Redis(tmp_path, settings) as redis:
        nodes = [node(f"n{index}", redis.url, "sharded") for index in range(2)]
        members = [one.join("r") for one in nodes]
        members[0].send_text("hello")
        assert [member.read_text() for member in members] == ["hello"] * 2
        for one in nodes:
            assert one.stats()["backplane"]["redis"]["mode"] == "sharded-by-pubsub"
            log = one.log()
            assert "+spublish +ssubscribe +sunsubscribe" in log and "WARN" in log, log


def test_a_cluster_that_cannot_be_used_is_told_in_words(cluster, tmp_path):
    flags = ["--redis-at-start", "fail", "--listen", "127.0.0.1:0"]
    plain = run("serve", "--redis", cluster.masters[0].url, *flags)
    assert plain.returncode != 0
    assert "redis-cluster://" in plain.stdout + plain.stderr
    with Redis(tmp_path) as single:
        wrong = run("serve", "--redis", RedisCluster.url_of(single), *flags)
        assert wrong.returncode != 0
        assert f"redis://127.0.0.1:{single.port}" in wrong.stdout + wrong.stderr
    gone = run("serve", "--redis", RedisCluster.url_of(single), *flags)
    assert gone.returncode != 0
    assert "refuses the connection" in gone.stdout + gone.stderr


def test_a_user_who_may_not_ask_for_the_slots_is_told_so_once(node, cluster):
    for one in cluster.servers:
        one.command("ACL", "SETUSER", "app", "reset", "on", ">pw", "allkeys", "allchannels", "+@all", "-cluster")
    url = RedisCluster.url_of(*cluster.masters).replace("://", "://app:pw@")
    one = node("a", url, "sharded", ready=False)

    eventually(lambda: any("lacks +cluster|slots;" in str(reason) for reason in one.reasons()), "it names the grant", timeout_s=15)

    def count(section, pattern):
        told = (server.command("INFO", section).decode() for server in cluster.servers)
        return sum(int(found) for text in told for found in re.findall(pattern, text))

    denials = r"cmdstat_cluster\|slots:.*rejected_calls=(\d+)"
    eventually(lambda: count("commandstats", denials) >= 6, "all have denied it")
    before = count("commandstats", denials)
    connections = one.log().count("connected to Redis")
    eventually(lambda: count("commandstats", denials) >= before + 3, "it is asked again")
    assert one.log().count("connected to Redis") == connections, "and not connected again"
    assert one.log().count("nobody tells who serves the slots") == 1, one.log()
    for server in cluster.servers:
        server.command("ACL", "SETUSER", "app", "+cluster|slots")
    eventually(lambda: one.admin("/readyz").status == 200, "it comes up", timeout_s=40)


def test_any_node_that_answers_will_do_and_unserved_slots_are_told(node, cluster, redis):
    cluster.masters[2].kill()
    url = RedisCluster.url_of(cluster.masters[2], cluster.masters[0])
    one = node("a", url, "sharded", ready=False)

    eventually(one.reasons, "it is not ready")
    lost = f"127.0.0.1:{cluster.masters[2].port}"
    eventually(lambda: {reason.get("server") for reason in one.reasons()} == {lost}, "and says where", timeout_s=15)
    cluster.masters[2].start()
    eventually(lambda: one.admin("/readyz").status == 200, "it comes up", timeout_s=20)
