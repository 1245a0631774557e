"""Redis goes away in every way there is: each is found within seconds, told, and healed without a restart."""

import json
import signal
import threading
import time

import pytest
from harness import Redis, StallingProxy, eventually

PROBES = "redis_probe_interval_ms = 500\nredis_probe_timeout_ms = 1000\ndrain_window_ms = 200\nclose_timeout_ms = 300\n"


@pytest.fixture
def node(serve, redis):
    def start(name, settings="", url=None, **how):
        return serve(PROBES + settings, flags=["--redis", url or redis.url, "--node-id", name], **how)

    return start


def is_ready(server):
    return server.admin("/readyz").status == 200


def troubles(server):
    """The links that `/readyz` names: `{link: reason}`."""
    answer = json.loads(server.admin("/readyz").body)
    return {reason["link"]: reason for reason in answer["reasons"] if reason["code"] == "redis_link"}


def is_notice(text):
    return text.startswith('{"type":')


def read_until(wire, wanted, timeout_s=15):
    """All texts up to `wanted`, notices apart: `(texts, notices)`."""
    texts, notices = [], []
    while True:
        text = wire.read_text(timeout_s)
        (notices if is_notice(text) else texts).append(json.loads(text) if is_notice(text) else text)
        if text == wanted:
            return texts, notices


def heal(*servers, timeout_s=15):
    for one in servers:
        eventually(lambda one=one: is_ready(one), f"{one.host_port} is ready again", timeout_s)


def exchange(one, other, word):
    """Sends `word` until both members have it; returns what each heard before it."""
    one.send_text(word)
    return read_until(one, word), read_until(other, word)


@pytest.mark.parametrize("link", ["publishing", "subscription"])
def test_a_killed_link_is_made_anew_and_nothing_is_lost_in_silence(node, redis, link):
    a, b = node("a"), node("b")
    one, other = a.join("r"), b.join("r")
    exchange(one, other, "before")
    stop = threading.Event()

    def talk():
        number = 0
        while not stop.is_set():
            one.send_text(str(number))
            number += 1
            time.sleep(0.002)
        one.send_text("end")

    talking = threading.Thread(target=talk)
    talking.start()
    time.sleep(0.2)
    assert redis.kill_client(f"throng-a-{link}") == 1
    a.await_metric("throng_redis_losses_total", 1, link=link)
    heal(a)
    time.sleep(0.2)
    stop.set()
    talking.join()
    for member in (one, other):
        texts, notices = read_until(member, "end")
        numbers = [int(text) for text in texts[:-1]]
        assert numbers == sorted(set(numbers)), "one order, each once"
        missing = numbers[-1] + 1 - len(numbers)
        told = [notice for notice in notices if notice["type"] == "gap"]
        counted = sum(notice["missed"] or 0 for notice in told)
        assert missing == 0 or counted >= missing or any(notice["missed"] is None for notice in told), (missing, told)
        if link == "publishing":
            assert missing == 0 and not told, (missing, told)
    if link == "subscription":
        assert b.metric("throng_redis_gaps_total") == 0, "the other node has missed nothing"


def test_a_stopped_redis_is_found_told_and_healed(node, redis):
    a, b = node("a"), node("b")
    one, mate, other = a.join("r"), a.join("r"), b.join("r")
    exchange(one, other, "before")
    read_until(mate, "before")
    redis.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    eventually(lambda: not is_ready(a) and not is_ready(b), "both are not ready", 5)
    assert time.monotonic() - stopped < 4
    found = eventually(lambda: troubles(a) if len(troubles(a)) == 2 else None, "both links are named", 5)
    assert all(reason["since_ms"] < 10_000 for reason in found.values()), found
    assert a.admin("/livez").status == 200
    # Members of one node hear each other meanwhile; the other node hears it later.
    one.send_text("meanwhile")
    assert mate.read_text() == "meanwhile"
    assert one.read_text() == "meanwhile"
    redis.signal(signal.SIGCONT)
    heal(a, b)
    (texts, _), (others, notices) = exchange(one, other, "after")
    assert texts == ["after"], "what was heard at once is not heard again"
    # It was kept for the other node; who came back later than it did was told that something may be missing.
    assert others == ["meanwhile", "after"] or any(notice["type"] == "gap" for notice in notices), (others, notices)
    texts, _ = read_until(mate, "after")
    assert texts == ["after"]


def test_a_redis_that_dies_and_comes_back_finds_everybody_again(node, redis):
    a, b = node("a"), node("b", shards=1)
    rooms = [f"r{index}" for index in range(20)]
    pairs = [(a.join(room), b.join(room)) for room in rooms]
    redis.kill()
    eventually(lambda: not is_ready(a) and not is_ready(b), "both are not ready", 3)
    eventually(
        lambda: all("refuses the connection" in reason["message"] for reason in troubles(a).values()),
        "it says what is wrong",
    )
    for index, (one, _) in enumerate(pairs):
        one.send_text(f"kept {index}")
    redis.start()
    heal(a, b)
    assert all(redis.subscribers(room) == 2 for room in rooms), "both follow what they followed"
    for index, (one, other) in enumerate(pairs):
        (texts, _), (others, notices) = exchange(one, other, "after")
        assert texts == [f"kept {index}", "after"], "each once"
        # The other node may have come back later than the message did: then its members were told that it may be so.
        assert others in ([f"kept {index}", "after"], ["after"]), others
        told = [notice for notice in notices if notice["type"] == "gap"]
        assert len(others) == 2 or told, "no silent loss"


def test_a_half_open_connection_is_found_and_replaced(node, redis):
    with StallingProxy(redis.address) as proxy:
        a = node("a", url="redis://127.0.0.1:%d" % proxy.address[1])
        b = node("b")
        one, other = a.join("r"), b.join("r")
        exchange(one, other, "before")
        proxy.stall()
        stalled = time.monotonic()
        a.await_metric("throng_redis_losses_total", 1, timeout_s=5, link="subscription")
        assert time.monotonic() - stalled < 4
        heal(a)
        exchange(one, other, "after")


def test_a_subscriber_that_redis_kills_for_its_output_heals(serve, tmp_path):
    settings = ["client-output-buffer-limit pubsub 64kb 0 0"]
    with Redis(tmp_path, settings) as redis:
        url = ["--redis", redis.url]
        a = serve(PROBES + "message_bytes_max = 300000\nconnection_queue_bytes_max = 4000000\n", flags=[*url, "--node-id", "a"])
        b = serve(PROBES + "message_bytes_max = 300000\nconnection_queue_bytes_max = 4000000\n", flags=[*url, "--node-id", "b"])
        one, other = a.join("r", "?echo=0"), b.join("r")
        one.send_text("small")
        assert other.read_text() == "small"
        # Frozen, it cannot read, and Redis has more for it than it holds for anybody.
        b.signal(signal.SIGSTOP)
        for _ in range(120):
            one.send_text("x" * 60_000)
        eventually(lambda: "throng-b-subscription" not in redis.clients(), "Redis has cut it")
        a.await_metric("throng_redis_messages_published_total", 121)  # or the rest cuts it once more
        b.signal(signal.SIGCONT)
        b.await_metric("throng_redis_losses_total", 1, link="subscription")
        heal(b)
        one.send_text("end")
        texts, notices = read_until(other, "end")
        assert len(texts) < 121, "some were lost"
        told = [notice for notice in notices if notice["type"] == "gap"]
        assert told and b.metric("throng_redis_gaps_total") >= 1, "and members were told"
        assert (a.stop(), b.stop()) == (0, 0)


def test_what_does_not_fit_the_buffer_is_refused_to_its_publisher(node, redis):
    settings = "redis_buffer_bytes_max = 65536\nredis_buffer_age_ms = 30000\n"
    a, b = node("a", settings), node("b")
    one, other = a.join("r"), b.join("r")
    exchange(one, other, "before")
    redis.kill()
    eventually(lambda: not is_ready(a), "it is not ready", 3)
    count = 100
    for number in range(count):
        one.send_text(f"{number:03}" + "x" * 1_000)
    one.send_text("end")
    texts, notices = read_until(one, "end")
    assert [int(text[:3]) for text in texts[:-1]] == list(range(count)), "members here have all of it"
    if not any(notice["type"] == "backplane" for notice in notices):
        notices.append(json.loads(one.read_text()))
    refused = [notice for notice in notices if notice["type"] == "backplane"]
    assert refused and all(notice["local"] is True for notice in refused), notices
    answer = a.admin("/v1/rooms/r/publish", "POST", body=b"x" * 60_000)
    assert answer.status == 503 and answer.json["error"]["code"] == "backplane_lost_local", answer
    assert a.metric("throng_redis_buffer_bytes") <= 65_536 + 70_000, "the bound, or the one batch that is larger"
    assert a.metric("throng_redis_messages_refused_total") >= sum(notice["refused"] for notice in refused)
    redis.start()
    heal(a, b)
    one.send_text("last")
    other_texts, other_notices = read_until(other, "last")
    numbers = [int(text[:3]) for text in other_texts if text[:3].isdigit()]
    assert numbers == sorted(set(numbers)), "what was kept came in order"
    told = sum(notice["refused"] for notice in refused)
    assert count - len(numbers) <= told or any(notice["type"] == "gap" for notice in other_notices), "no silent loss"


def test_what_is_too_old_is_refused_to_its_publisher(node, redis):
    a = node("a", 'redis_buffer_age_ms = 500\nredis_degraded = "refuse"\n')
    one, mate = a.join("r"), a.join("r")
    redis.kill()
    eventually(lambda: not is_ready(a), "it is not ready", 3)
    one.send_text("never")
    notice = json.loads(one.read_text(5))
    assert notice == {"type": "backplane", "refused": 1, "local": False}
    assert mate.silent(0.3), "nobody hears it"
    redis.start()
    heal(a)
    exchange(one, mate, "after")


def test_refuse_keeps_one_order_and_delivers_when_redis_is_back(node, redis):
    settings = 'redis_degraded = "refuse"\n'
    a, b = node("a", settings), node("b", settings)
    one, other = a.join("r"), b.join("r")
    exchange(one, other, "before")
    redis.kill()
    eventually(lambda: not is_ready(a) and not is_ready(b), "both are not ready", 3)
    for number in range(10):
        one.send_text(f"kept {number}")
    assert one.silent(0.3), "nobody before Redis is back"
    redis.start()
    heal(a, b)
    (texts, _), _ = exchange(one, other, "after")
    assert texts == [f"kept {number}" for number in range(10)] + ["after"]


def test_joins_wait_for_redis_and_are_refused_when_it_does_not_come(node, redis):
    a, b = node("a", "redis_join_timeout_ms = 1000\n"), node("b")
    standing = a.join("r")
    redis.kill()
    eventually(lambda: not is_ready(a) and not is_ready(b), "both are not ready", 3)
    wire = a.wire()
    began = time.monotonic()
    wire.send(
        b"GET /rooms/new HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    answer = wire.read_response()
    assert answer.status == 503 and "retry-after" in answer.headers, answer
    assert 0.8 < time.monotonic() - began < 3
    assert a.metric("throng_handshakes_total", outcome="backplane") == 1
    # One that waits when Redis comes back is let in.
    joined = []
    waiting = threading.Thread(target=lambda: joined.append(b.join("new")))
    waiting.start()
    eventually(lambda: b.metric("throng_redis_joins_waiting") == 1, "it waits")
    redis.start()
    waiting.join(10)
    assert joined
    joined[0].send_text("hi")
    assert joined[0].read_text() == "hi"
    standing.cut()


def test_more_joins_than_may_wait_are_refused_at_once(node, redis):
    a = node("a", "redis_joins_waiting_max = 2\n", shards=1)
    redis.signal(signal.SIGSTOP)
    request = (
        "GET /rooms/{} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    wires = [a.wire() for _ in range(3)]
    for index, wire in enumerate(wires):
        wire.send(request.format(index).encode())
        if index < 2:
            eventually(lambda index=index: a.metric("throng_redis_joins_waiting") == index + 1, "it waits")
    assert wires[2].read_response(2).status == 503
    redis.signal(signal.SIGCONT)
    assert [wire.read_response().status for wire in wires[:2]] == [101, 101]


def test_a_node_that_is_stopped_and_continued_tells_its_members(node, redis):
    a, b = node("a"), node("b")
    one, other = a.join("r", "?echo=0"), b.join("r")
    one.send_text("before")
    assert other.read_text() == "before"
    b.signal(signal.SIGSTOP)
    for number in range(50):
        one.send_text(str(number))
    time.sleep(1.5)  # longer than its probe may take
    b.signal(signal.SIGCONT)
    heal(a, b)
    one.send_text("end")
    texts, notices = read_until(other, "end")
    assert len(texts) == 51 or any(notice["type"] == "gap" for notice in notices), (len(texts), notices)


def test_a_node_that_dies_leaves_the_others_as_they_are(node, redis):
    a, b, c = node("a"), node("b"), node("c")
    one, lost, other = a.join("r"), b.join("r"), c.join("r")
    exchange(one, other, "before")
    b.kill()
    exchange(one, other, "after")
    assert is_ready(a) and is_ready(c)
    assert a.metric("throng_redis_gaps_total") == 0
    lost.cut()


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_a_node_stops_in_time_whatever_redis_does(node, redis, fault):
    a = node("a")
    member = a.join("r")
    if fault == "killed":
        redis.kill()
        eventually(lambda: not is_ready(a), "it is not ready", 3)
    else:
        redis.signal(signal.SIGSTOP)
    member.send_text("to nobody")
    began = time.monotonic()
    assert a.stop() == 0
    assert time.monotonic() - began < 4
    assert "are lost with this node" in a.log()
