"""Silence: the balancers leave it to the nodes' heartbeat who is gone, and end what no heartbeat keeps alive."""

import re
import time

import pytest
from balancers import Cluster
from balancers.render import DEPLOY
from harness.wire import PING, PONG
from settings import defaults, seconds

both = pytest.mark.parametrize("kind", ("nginx", "haproxy"))

# The balancers' own times, shortened: what they wait for at most, and what their defaults would cut after.
SHORT = {
    "nginx": {"server": {"proxy_read_timeout 90s": "proxy_read_timeout 2s", "proxy_send_timeout 90s": "proxy_send_timeout 2s"}},
    "haproxy": {
        "replacements": {
            "timeout client 30s": "timeout client 1s",
            "timeout server 30s": "timeout server 1s",
            "timeout server 15s": "timeout server 1s",
            "timeout tunnel 90s": "timeout tunnel 2s",
        }
    },
}


@pytest.fixture
def nodes_with(tmp_path):
    """Starts one node with settings of the test's own."""
    started = []

    def start(settings):
        cluster = Cluster(tmp_path, settings, count=1)
        started.append(cluster)
        return cluster

    yield start
    for cluster in started:
        cluster.kill()


class OneNode(list):
    """One node in all three places of a balancer's file."""

    def __init__(self, cluster):
        super().__init__([cluster[0]] * 3)


@both
def test_a_silent_client_outlives_the_balancers_timeouts_by_the_heartbeat(kind, nodes_with, balance):
    cluster = nodes_with("ping_interval_ms = 700\npong_timeout_ms = 500\n")
    balancer = balance(kind, OneNode(cluster), "cookie", **SHORT[kind])
    with balancer.join("silent") as wire:
        end = time.monotonic() + 5
        pings = 0
        while time.monotonic() < end:
            frame = wire.read_frame(3)
            assert frame.opcode == PING
            wire.send_frame(PONG, frame.payload)
            pings += 1
        assert pings >= 5
        wire.send_text("still here")
        assert wire.read_text() == "still here"


@both
def test_what_no_heartbeat_keeps_alive_is_cut_after_the_balancers_timeout(kind, nodes_with, balance):
    cluster = nodes_with('heartbeat = "tcp"\n')
    balancer = balance(kind, OneNode(cluster), "cookie", **SHORT[kind])
    with balancer.join("silent") as wire:
        began = time.monotonic()
        assert wire.at_end(8)
        assert 1.0 < time.monotonic() - began < 6
    cluster[0].await_open(0)


@both
def test_a_client_that_vanishes_is_found_by_the_heartbeat_through_the_balancer(kind, nodes_with, balance):
    cluster = nodes_with("ping_interval_ms = 700\npong_timeout_ms = 500\n")
    balancer = balance(kind, OneNode(cluster), "cookie")
    with balancer.join("mute") as wire:
        cluster[0].await_metric("throng_heartbeats_total", 1, event="dead")
        assert wire.at_end(5), "and the balancer ends the client's side"


def test_the_files_leave_the_heartbeat_time_to_decide():
    heartbeat_s = (defaults()["ping_interval_ms"] + defaults()["pong_timeout_ms"]) / 1000
    nginx = (DEPLOY / "nginx/throng-server.conf").read_text()
    haproxy = (DEPLOY / "haproxy/haproxy.cfg").read_text()
    spans = re.findall(r"proxy_(?:read|send)_timeout (90\w+);", nginx) + re.findall(r"timeout tunnel (\w+)", haproxy)
    assert len(spans) == 3
    for span in spans:
        assert seconds(span) >= 2 * heartbeat_s, span
    assert f"{heartbeat_s:.0f} s" in nginx and f"{heartbeat_s:.0f} s" in haproxy, "the comments name the heartbeat"


def test_a_join_that_waits_for_redis_is_waited_for_and_does_not_wait_elsewhere_anew():
    join_s = defaults()["redis_join_timeout_ms"] / 1000
    nginx = (DEPLOY / "nginx/throng-server.conf").read_text()
    haproxy = (DEPLOY / "haproxy/haproxy.cfg").read_text()
    ways = haproxy.split("defaults ways from common\n")[1].split("\nfrontend ")[0]
    assert seconds(re.search(r"^ +timeout server (\w+)", ways, re.MULTILINE)[1]) > join_s + 2
    assert "response-timeout" not in re.search(r"^ +retry-on (.*)$", ways, re.MULTILINE)[1]
    answers = re.findall(r"http-error status (\d+) .* hdr Retry-After \d+$", ways, re.MULTILINE)
    assert answers == ["502", "503", "504"]
    rooms = nginx.split("location /rooms/ {")[1].split("\n    }")[0]
    assert seconds(re.search(r"proxy_read_timeout (\w+);", rooms)[1]) > join_s + 2
    assert seconds(re.search(r"proxy_next_upstream_timeout (\w+);", rooms)[1]) < join_s
    for text in (nginx, haproxy):
        assert f"(redis_join_timeout_ms, {join_s:.0f} s)" in text or f"redis_join_timeout_ms ({join_s:.0f} s)" in text


def test_haproxy_sees_a_node_that_stops_before_its_delay_is_over():
    haproxy = (DEPLOY / "haproxy/haproxy.cfg").read_text()
    line = re.search(r"default-server inter (\w+) fastinter (\w+) downinter \w+ fall (\d+)", haproxy)
    seen_s = seconds(line[1]) + (int(line[3]) - 1) * seconds(line[2])
    advised_s = int(re.search(r"drain_delay_ms of (\d+) s or more", haproxy)[1])
    assert seen_s < advised_s


def test_backlogs_are_the_nodes_own():
    backlog = f"backlog {defaults()['socket_backlog']}"
    assert backlog in (DEPLOY / "haproxy/haproxy.cfg").read_text()
    assert backlog.replace(" ", "=") in (DEPLOY / "nginx/throng-server.conf").read_text()
