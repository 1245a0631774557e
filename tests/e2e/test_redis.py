"""Several nodes on one Redis: everybody gets everything once and in one order, rooms are followed, nodes leave cleanly."""

import json
import signal
import time

import pytest
from harness import Redis, RedisError, eventually, refused, run


@pytest.fixture
def node(serve, redis):
    """Starts a node on the test's Redis: `node("a", settings)`; its fixtures end before the Redis does."""

    def start(name, settings="", **how):
        url = how.pop("url", redis.url)
        flags = ["--redis", url, "--node-id", name, "--drain-window-ms", "200", "--close-timeout-ms", "300"]
        return serve(settings, flags=flags, **how)

    return start


def texts(wire, count):
    return [wire.read_text() for _ in range(count)]


@pytest.mark.parametrize("node_count", [2, 3])
def test_everybody_gets_everything_once_and_in_one_order(node, node_count):
    nodes = [node(f"n{index}", shards=1 + index % 2) for index in range(node_count)]
    members = [one.join("r") for one in nodes for _ in range(3)]
    count = 100
    for number in range(count):
        for index, member in enumerate(members):
            member.send_text(f"{index}:{number}")
    heard = [texts(member, count * len(members)) for member in members]
    assert len(set(heard[0])) == count * len(members), "each once"
    for one in heard[1:]:
        assert one == heard[0], "one order"
    for index in range(len(members)):
        own = [text for text in heard[0] if text.startswith(f"{index}:")]
        assert own == [f"{index}:{number}" for number in range(count)], "a publisher's own order"
    for one in nodes:
        metrics = one.metrics()
        assert metrics.sum("throng_redis_gaps_total") == 0
        assert metrics.sum("throng_redis_messages_duplicate_total") == 0
        assert metrics.sum("throng_redis_malformed_total") == 0
        assert metrics.sum("throng_redis_messages_received_total") == count * len(members)
        assert metrics.sum("throng_node_rooms_leased") == 0, "with Redis nobody orders by himself"
        stats = one.stats()["backplane"]["redis"]
        assert stats["ready"] and stats["subscription"] == {"up": True, "connects": 1, "losses": 0, "connect_failures": 0}
        assert stats["lag"]["count"] > 0


def test_kinds_echo_and_the_api_work_across_nodes(node):
    a, b = node("a"), node("b", shards=1)
    loud, quiet, other = a.join("r"), a.join("r", "?echo=0"), b.join("r", "?echo=0")
    quiet.send_binary(b"\x00\xff")
    other.send_text("zwölf")
    assert b.admin("/v1/rooms/r/publish", "POST", body=b"api").status == 202
    frames = [loud.read_message() for _ in range(3)]
    assert sorted((frame.opcode, frame.payload) for frame in frames) == sorted(
        [(2, b"\x00\xff"), (1, "zwölf".encode()), (1, b"api")]
    )
    assert sorted(texts(quiet, 2)) == ["api", "zwölf"], "not its own"
    assert sorted(other.read_message().payload for _ in range(2)) == [b"\x00\xff", b"api"], "not its own"
    # A room that nobody on the publishing node is in.
    far = b.join("far")
    assert a.admin("/v1/rooms/far/publish", "POST", body=b"hello").status == 202
    assert far.read_text() == "hello"


def test_a_node_follows_the_rooms_of_its_members_and_no_others(node, redis):
    a, b = node("a", "redis_hold_ms = 700\n"), node("b", "redis_hold_ms = 700\n")
    assert redis.subscribers("r") == 0
    first, second = a.join("r"), a.join("r")
    assert redis.subscribers("r") == 1, "the answer to the upgrade came when it stood"
    other = b.join("r")
    assert redis.subscribers("r") == 2
    assert a.metric("throng_redis_subscriptions") == 2, "the room, and everybody"
    first.cut()
    second.cut()
    left = time.monotonic()
    eventually(lambda: redis.subscribers("r") == 1, "the channel is left", every_s=0.01)
    assert time.monotonic() - left > 0.6, "not before the hold is over"
    # Who comes back within the hold finds it standing.
    back = a.join("r")
    back.cut()
    a.await_open(0)
    back = a.join("r")
    time.sleep(1.0)  # longer than the hold: what is checked is that nothing happens
    assert redis.subscribers("r") == 2
    other.send_text("still here")
    assert back.read_text() == "still here"
    assert a.metric("throng_redis_commands_total", command="unsubscribe") == 1


def test_room_names_are_taken_as_they_are(node):
    a, b = node("a"), node("b")
    names = ["%C3%BCber", "a%20b", "a%2Fb", "x" * 255, "%7Btag%7D", "*"]
    pairs = [(a.join(name), b.join(name)) for name in names]
    for index, (one, _) in enumerate(pairs):
        one.send_text(str(index))
    for index, (_, other) in enumerate(pairs):
        assert other.read_text() == str(index)


def test_nodes_with_another_prefix_are_another_server(node, redis):
    a = node("a", 'redis_prefix = "blue"\n')
    b = node("b", 'redis_prefix = "green"\n')
    one, other = a.join("r"), b.join("r")
    one.send_text("blue")
    assert one.read_text() == "blue"
    other.send_text("green")
    assert other.read_text() == "green", "and nothing before it"
    assert redis.subscribers("r", "blue") == 1


def test_what_others_publish_on_a_channel_is_counted_and_dropped(node, redis):
    a = node("a")
    member = a.join("r")
    for junk in [b"", b"hello", b"\x01\x01" + b"\xff" * 40, b"\x02\x01" + b"\0" * 40]:
        redis.command("PUBLISH", "throng:room:r", junk)
    a.await_metric("throng_redis_malformed_total", 4)
    member.send_text("fine")
    assert member.read_text() == "fine"


def test_a_unix_socket_and_a_database_will_do(node, redis):
    a, b = node("a", url=redis.unix_url), node("b", url=redis.url + "/7")
    one, other = a.join("r"), b.join("r")
    one.send_text("hi")
    assert other.read_text() == "hi"
    assert redis.clients()["throng-b-publishing"]["db"] == "7"


def test_a_server_without_hello_is_spoken_to_in_resp2(serve, tmp_path):
    with Redis(tmp_path, ['rename-command HELLO ""', "requirepass secret"]) as older:
        env = {"THRONG_REDIS_PASSWORD": "secret"}
        a, b = (serve("drain_window_ms = 200\nclose_timeout_ms = 300\n", flags=["--redis", older.url], env=env) for _ in "ab")
        one, other = a.join("r"), b.join("r")
        for number in range(50):
            one.send_text(str(number))
        assert texts(other, 50) == [str(number) for number in range(50)]
        assert "RESP2" in a.log()
        assert "secret" not in a.log()
        assert (a.stop(), b.stop()) == (0, 0)


def test_a_drain_closes_clients_first_then_leaves_redis(node, redis):
    a, b = node("a"), node("b")
    leaving, staying = a.join("r"), b.join("r")
    leaving.send_text("last words")
    assert leaving.read_text() == "last words"
    a.signal(signal.SIGTERM)
    assert json.loads(leaving.read_text())["type"] == "reconnect"
    assert leaving.read_close().code == 1012
    assert a.wait() == 0
    assert staying.read_text() == "last words"
    assert redis.subscribers("r") == 1, "only the node that stays"
    assert not any(name.startswith("throng-a-") for name in redis.clients())


# --- errors at the start --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, words",
    [
        ("redis-sentinel://host", "what the Sentinels call the master"),
        ("redis-cluster://host/3", "no database but 0"),
        ("redis://a,b", "names one server"),
        ("http://host", "scheme"),
        ("redis://u:hunter2@host:0", "port"),
    ],
)
def test_a_wrong_url_is_a_mistake_and_no_password_is_shown(url, words):
    code, said = refused(url)
    assert code == 2 and words in said, said
    assert "hunter2" not in said


def test_a_redis_that_cannot_be_used_at_the_start_is_told_in_words(tmp_path, redis):
    code, said = refused("redis://127.0.0.1:1")
    assert code == 1 and "refuses the connection" in said, said
    code, said = refused(f"unix://{tmp_path}/none.sock")
    assert code == 1 and "no such socket" in said, said
    code, said = refused("redis://no-such-host.invalid")
    assert code == 1 and "cannot be resolved" in said, said
    code, said = refused("redis://u:hunter2@127.0.0.1:%d" % redis.port)
    assert code == 1 and "refuses the user or the password" in said, said
    code, said = refused(redis.url + "/99")
    assert code == 1 and "database 99" in said, said
    redis.command("CONFIG", "SET", "requirepass", "s3cr3t")
    redis.password = "s3cr3t"
    code, said = refused(redis.url)
    assert code == 1 and "wants a password" in said, said
    code, said = refused(redis.url, THRONG_REDIS_PASSWORD="hunter2")
    assert code == 1 and "refuses the user or the password" in said, said
    assert "hunter2" not in said


def test_a_missing_permission_is_named(redis):
    def user(*rules):
        redis.command("ACL", "SETUSER", "app", "reset", "on", ">pw", *rules)
        return refused(redis.url.replace("://", "://app:pw@"))

    code, said = user("+publish", "&*")
    assert code == 1 and "lacks a permission" in said and "subscribe" in said, said
    code, said = user("+subscribe", "+unsubscribe", "&*")
    assert code == 1 and "publish" in said, said
    code, said = user("+subscribe", "+unsubscribe", "+publish", "resetchannels", "&other:*")
    assert code == 1 and "it lacks &throng:*" in said, said


def test_the_permissions_that_are_documented_are_enough(serve, redis):
    redis.command(
        "ACL", "SETUSER", "app", "reset", "on", ">pw", "+publish", "+subscribe", "+unsubscribe", "resetchannels", "&throng:*"
    )
    a = serve(flags=["--redis", redis.url.replace("://", "://app:pw@")])
    member = a.join("r")
    member.send_text("hi")
    assert member.read_text() == "hi"
    assert "pw@" not in a.log()


def test_something_else_than_redis_is_quoted(server):
    code, said = refused("redis://{}:{}".format(*server.address))
    assert code == 1 and "not Redis" in said and "HTTP/1.1" in said, said


def test_passwords_come_from_a_file_and_are_not_printed(tmp_path, redis):
    path = tmp_path / "password"
    path.write_text("s3cr3t\n")
    flags = ["--redis", "redis://u:hunter2@127.0.0.1:1/2", "--redis-password-file", str(path)]
    printed = run("config", *flags)
    assert printed.returncode == 0, printed.stderr
    assert "hunter2" not in printed.stdout and "s3cr3t" not in printed.stdout
    assert 'redis = "redis://u@127.0.0.1:1/2"' in printed.stdout
    redis.command("CONFIG", "SET", "requirepass", "s3cr3t")
    redis.password = "s3cr3t"
    with pytest.raises(RedisError):
        redis.password = None
        redis.command("PING")
    redis.password = "s3cr3t"
    code, said = refused(redis.url + "/99", THRONG_REDIS_PASSWORD_FILE=str(path))
    assert "database 99" in said, said


def test_a_node_that_waits_for_redis_is_not_ready_and_heals(serve, tmp_path, redis):
    redis.kill()
    a = serve(flags=["--redis", redis.url], ready=False)
    answer = eventually(lambda: reasons(a), "it is not ready")
    assert {reason["link"] for reason in answer} == {"publishing", "subscription"}
    assert all("refuses the connection" in reason["message"] for reason in answer), answer
    redis.start()
    eventually(lambda: a.admin("/readyz").status == 200, "it is ready")
    assert a.join("r")


def reasons(server):
    """The links that keep the node from being ready."""
    try:
        answer = server.admin("/readyz")
    except OSError:
        return None
    found = [reason for reason in json.loads(answer.body)["reasons"] if reason["code"] == "redis_link"]
    return found if len(found) == 2 and all("connected yet" not in one["message"] for one in found) else None
