"""The alerts and the dashboard: every name exists, every alert fires when it should, and nothing else does."""

import copy
import json
import re
import subprocess

import pytest
import yaml
from balancers.render import DEPLOY, REPOSITORY, tool
from harness import Server
from metric_names import samples, unknown, used
from settings import keys

RULES = DEPLOY / "prometheus/rules.yaml"
DASHBOARD = DEPLOY / "grafana/dashboard.json"


def alerts():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments):
    if tool("promtool") is None:
        pytest.skip("promtool is not installed")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_promtool_finds_no_fault():
    for arguments in (("check", "rules", RULES), ("check", "config", DEPLOY / "prometheus/prometheus.yaml")):
        outcome = promtool(*arguments)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_names_are_taken_apart_rightly():
    expression = 'histogram_quantile(0.99, sum by (instance, le) (rate(a_bucket{x="b"}[5m]))) > on (instance) 2 * max(c_total)'
    assert used(expression) == {"a_bucket", "c_total"}
    assert unknown("throng_connections + throng_conections") == {"throng_conections"}


def test_every_metric_of_the_alerts_exists():
    for alert in alerts():
        assert used(alert["expr"]), alert["alert"]
        assert unknown(alert["expr"]) == set(), alert["alert"]


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names))
    for alert in alerts():
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert len(alert["annotations"]["runbook"]) > 80, alert["alert"]
        assert alert["annotations"]["summary"]


def test_what_a_runbook_names_exists():
    known = samples() | {name.removesuffix("_total") for name in samples()} | keys()
    outcomes = set(re.findall(r'=> "([a-z_]+)"', (REPOSITORY / "src/metrics/shard.rs").read_text()))
    for alert in alerts():
        for name in re.findall(r"\b[a-z]+_[a-z_]+\b", alert["annotations"]["runbook"]):
            assert name in known | outcomes | {"shard_stalled", "nr_throttled"}, f"{alert['alert']}: {name}"
        for name in re.findall(r"\bThrong[A-Z]\w+", alert["annotations"]["runbook"]):
            assert name in {one["alert"] for one in alerts()}, f"{alert['alert']}: {name}"


def test_every_label_value_of_the_alerts_is_one_that_the_program_writes():
    written = set()
    for source in ("src/metrics/shard.rs", "src/protocol/close.rs"):
        written |= set(re.findall(r'=> "([a-z_-]+)"', (REPOSITORY / source).read_text()))
    written |= {"sent", "answered", "dead"}
    for alert in alerts():
        for value in re.findall(r'(?:outcome|reason|policy|event)=~?"([^"]+)"', alert["expr"]):
            assert set(value.split("|")) <= written, (alert["alert"], value)


# --- when they fire ---------------------------------------------------------------------------------------------------

MINUTES = 40
NODE = '{job="throng",instance="%s:8081"%s}'


def series(name, values, node="a", **labels):
    rest = "".join(f',{key}="{value}"' for key, value in labels.items())
    return {"series": name + NODE % (node, rest), "values": values}


def steady(name, value, **labels):
    return series(name, f"{value}x{MINUTES}", **labels)


def growing(name, a_minute, **labels):
    return series(name, f"0+{a_minute}x{MINUTES}", **labels)


def well():
    """A node that is busy and well: 10,000 connections, deliveries, a few losses, some slow members."""
    rows = [
        steady("up", 1),
        steady("process_start_time_seconds", 1_700_000_000),
        steady("process_open_fds", 300),
        steady("process_max_fds", 1_048_576),
        steady("throng_connections_max", 100_000),
        steady("throng_connection_skew", 1.1),
        steady("throng_budget_used_ratio", 0.3),
        steady("throng_bus_stalled_seconds", 0),
        growing("throng_messages_dropped_total", 60, policy="latest"),
        growing("throng_handshakes_total", 600, outcome="upgraded"),
        growing("throng_handshakes_total", 0, outcome="node_full"),
        growing("throng_connections_closed_total", 6, reason="slow_consumer"),
        growing("throng_heartbeats_total", 24_000, event="sent"),
        growing("throng_heartbeats_total", 300, event="dead"),
        growing("throng_client_addresses_total", 600, how="forwarded"),
        growing("throng_client_addresses_total", 0, how="proxy_missing"),
        steady("throng_redis_ready", 1),
        steady("throng_redis_buffer_bytes", 10_000),
        steady("throng_redis_buffer_max_bytes", 1_000_000),
        growing("throng_redis_messages_refused_total", 0),
        growing("throng_redis_gaps_total", 0),
        growing("throng_redis_backlog_dropped_total", 0),
        growing("throng_redis_lag_seconds_bucket", 60_000, le="0.008192"),
        growing("throng_redis_lag_seconds_bucket", 60_000, le="0.524288"),
        growing("throng_redis_lag_seconds_bucket", 60_000, le="+Inf"),
        steady("throng_registry_up", 1),
        steady("throng_registry_queued_max", 1_000),
        steady("throng_cluster_nodes", 2),
        steady("throng_cluster_nodes", 2, node="b"),
        steady("throng_redis_ready", 1, node="b"),
        steady("throng_cluster_misfits", 0, differs="layout"),
        steady("throng_cluster_misfits", 0, differs="mode"),
        growing("throng_publish_to_deliver_seconds_bucket", 60_000, le="0.008192"),
        growing("throng_publish_to_deliver_seconds_bucket", 60_000, le="0.524288"),
        growing("throng_publish_to_deliver_seconds_bucket", 60_000, le="+Inf"),
    ]
    for shard in (0, 1):
        rows += [
            steady("throng_connections", 5_000, shard=shard),
            steady("throng_shard_answering", 1, shard=shard),
            steady("throng_drain_phase", 0, shard=shard),
            growing("throng_deliveries_total", 600_000, shard=shard),
            growing("throng_ring_accept_exhausted_total", 0, shard=shard),
            growing("throng_ring_buffers_exhausted_total", 60, shard=shard),
            growing("throng_loop_turn_seconds_bucket", 60_000, shard=shard, le="0.008192"),
            growing("throng_loop_turn_seconds_bucket", 60_000, shard=shard, le="0.524288"),
            growing("throng_loop_turn_seconds_bucket", 60_000, shard=shard, le="+Inf"),
        ]
    return rows


def sick(*changes):
    """A well node with some of its series replaced, or added."""
    rows = {row["series"]: row for row in well()}
    return list((rows | {row["series"]: row for row in changes}).values())


ALL_BUT_FAST = {"le": "0.008192"}

# The node's state, the moment, and the labels of what fires then (beside job, instance and severity).
CASES = {
    "a well node": (well(), "30m", {}),
    "unreachable": (sick(steady("up", 0)), "5m", {"ThrongDown": {}}),
    "unreachable for a moment": (sick(series("up", "1 1 1 1 1 1 0 1x30")), "6m", {}),
    "not there": ([], "10m", {"ThrongMissing": {}}),
    "restarting": (sick(series("process_start_time_seconds", f"1000+60x{MINUTES}")), "20m", {"ThrongRestarting": {}}),
    "restarted once": (sick(series("process_start_time_seconds", f"1000x10 2000x{MINUTES - 10}")), "20m", {}),
    "a silent shard": (sick(steady("throng_shard_answering", 0, shard=1)), "5m", {"ThrongShardSilent": {"shard": "1"}}),
    "stopping": (sick(series("throng_drain_phase", f"0x27 2x{MINUTES - 27}", shard=0)), "29m", {}),
    "stopping without an end": (sick(steady("throng_drain_phase", 2, shard=0)), "10m", {"ThrongDrainStuck": {}}),
    "slow turns": (
        sick(growing("throng_loop_turn_seconds_bucket", 50_000, shard=1, **ALL_BUT_FAST)),
        "30m",
        {"ThrongLoopSlow": {"shard": "1"}},
    ),
    "nearly full": (sick(steady("throng_connections", 90_000, shard=0)), "10m", {"ThrongNearlyFull": {}}),
    "refusing": (
        sick(growing("throng_handshakes_total", 60, outcome="node_full")),
        "20m",
        {"ThrongRefusing": {"outcome": "node_full"}},
    ),
    "answering health checks": (sick(growing("throng_handshakes_total", 600, outcome="health")), "20m", {}),
    "out of budget": (sick(steady("throng_budget_used_ratio", 0.95)), "10m", {"ThrongBudgetNearlyUsed": {}}),
    "out of descriptors": (sick(steady("process_open_fds", 1_000_000)), "10m", {"ThrongDescriptorsNearlyUsed": {}}),
    "no accepts": (
        sick(growing("throng_ring_accept_exhausted_total", 6, shard=0)),
        "20m",
        {"ThrongAcceptsFail": {}},
    ),
    "uneven": (
        sick(steady("throng_connection_skew", 1.9), steady("throng_connections", 19_000, shard=0)),
        "20m",
        {"ThrongSkewed": {}},
    ),
    "uneven with few": (
        sick(steady("throng_connection_skew", 2), *(steady("throng_connections", 100, shard=shard) for shard in (0, 1))),
        "20m",
        {"ThrongSlowConsumersClosed": {}},
    ),
    "no receive buffers": (
        sick(growing("throng_ring_buffers_exhausted_total", 6_000, shard=1)),
        "30m",
        {"ThrongBuffersExhausted": {}},
    ),
    "a lane that waits": (sick(steady("throng_bus_stalled_seconds", 5)), "5m", {"ThrongBusStalled": {}}),
    "dropping": (
        sick(growing("throng_messages_dropped_total", 6_000, policy="drop-oldest")),
        "30m",
        {"ThrongMessagesDropped": {"policy": "drop-oldest"}},
    ),
    "closing slow members": (
        sick(growing("throng_connections_closed_total", 600, reason="slow_consumer")),
        "30m",
        {"ThrongSlowConsumersClosed": {}},
    ),
    "clients that vanish": (
        sick(growing("throng_heartbeats_total", 3_000, event="dead")),
        "30m",
        {"ThrongHeartbeatsLost": {}},
    ),
    "slow deliveries": (
        sick(growing("throng_publish_to_deliver_seconds_bucket", 50_000, **ALL_BUT_FAST)),
        "30m",
        {"ThrongDeliverySlow": {}},
    ),
    "a balancer without its header": (
        sick(growing("throng_client_addresses_total", 60, how="proxy_missing")),
        "20m",
        {"ThrongProxyHeadersRefused": {"how": "proxy_missing"}},
    ),
    "Redis is away": (sick(steady("throng_redis_ready", 0)), "5m", {"ThrongRedisAway": {}}),
    "without Redis": (
        sick(
            steady("throng_redis_ready", 0),
            steady("throng_redis_buffer_max_bytes", 0),
            steady("throng_redis_buffer_bytes", 0),
            steady("throng_registry_up", 0),
            steady("throng_registry_queued_max", 0),
        ),
        "20m",
        {},
    ),
    "refused by the buffer": (
        sick(growing("throng_redis_messages_refused_total", 60)),
        "20m",
        {"ThrongRedisMessagesRefused": {}},
    ),
    "gaps": (sick(growing("throng_redis_gaps_total", 60)), "20m", {"ThrongRedisGaps": {}}),
    "a full buffer": (sick(steady("throng_redis_buffer_bytes", 900_000)), "10m", {"ThrongRedisBufferNearlyFull": {}}),
    "a full backlog": (
        sick(growing("throng_redis_backlog_dropped_total", 60)),
        "20m",
        {"ThrongRedisBacklogDropped": {}},
    ),
    "a slow Redis": (
        sick(growing("throng_redis_lag_seconds_bucket", 50_000, **ALL_BUT_FAST)),
        "30m",
        {"ThrongRedisSlow": {}},
    ),
    "a registry that is refused": (sick(steady("throng_registry_up", 0)), "10m", {"ThrongRegistryBehind": {}}),
    "another layout": (
        sick(steady("throng_cluster_misfits", 1, differs="layout")),
        "5m",
        {"ThrongLayoutsDiffer": {"differs": "layout"}},
    ),
    "a mode that is changed, node by node": (
        sick(series("throng_cluster_misfits", f"0x10 1x5 0x{MINUTES - 15}", differs="mode")),
        "15m",
        {},
    ),
    "two modes": (
        sick(steady("throng_cluster_misfits", 1, differs="mode")),
        "20m",
        {"ThrongModesDiffer": {"differs": "mode"}},
    ),
    "a node that others do not see": (sick(steady("throng_cluster_nodes", 1)), "10m", {"ThrongNodesApart": {}}),
    "a node that starts": (
        sick(series("throng_cluster_nodes", f"1x3 2x{MINUTES - 3}")),
        "4m",
        {},
    ),
}


def test_every_alert_has_a_case_in_which_it_fires():
    assert {alert["alert"] for alert in alerts()} == {name for _, _, fired in CASES.values() for name in fired}


def test_each_state_fires_what_it_should_and_nothing_else(tmp_path):
    rules = yaml.safe_load(RULES.read_text())
    bare = copy.deepcopy(rules)
    severities = {}
    for group in bare["groups"]:
        for rule in group["rules"]:
            # promtool compares annotations word for word; their templates are what `check rules` has looked at.
            del rule["annotations"]
            severities[rule["alert"]] = rule["labels"]["severity"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(bare))

    def expected(name, labels):
        kept = {"ThrongDown", "ThrongRestarting", "ThrongShardSilent", "ThrongBudgetNearlyUsed", "ThrongSkewed"}
        kept |= {"ThrongBusStalled", "ThrongDescriptorsNearlyUsed", "ThrongRedisAway", "ThrongRedisMessagesRefused"}
        kept |= {"ThrongRedisGaps", "ThrongRedisBufferNearlyFull", "ThrongRedisBacklogDropped", "ThrongRegistryBehind"}
        kept |= {"ThrongLayoutsDiffer", "ThrongModesDiffer", "ThrongNodesApart"}
        base = {"severity": severities[name]}
        if name != "ThrongMissing":
            base["instance"] = "a:8081"
        if name in kept or name == "ThrongMissing":
            base["job"] = "throng"
        return [{"exp_labels": base | labels}]

    tests = [
        {
            "name": title,
            "interval": "1m",
            "input_series": rows,
            "alert_rule_test": [
                {
                    "eval_time": moment,
                    "alertname": name,
                    "exp_alerts": expected(name, fired[name]) if name in fired else [],
                }
                for name in severities
            ],
        }
        for title, (rows, moment, fired) in CASES.items()
    ]
    cases = {"rule_files": ["rules.yaml"], "evaluation_interval": "30s", "tests": tests}
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(cases))
    outcome = promtool("test", "rules", tmp_path / "cases.yaml")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_summaries_can_be_filled_in(tmp_path):
    """One alert with its annotations, as promtool fills them."""
    (tmp_path / "rules.yaml").write_text(RULES.read_text())
    rule = next(alert for alert in alerts() if alert["alert"] == "ThrongBudgetNearlyUsed")
    test = {
        "interval": "1m",
        "input_series": [steady("throng_budget_used_ratio", 0.95)],
        "alert_rule_test": [
            {
                "eval_time": "10m",
                "alertname": rule["alert"],
                "exp_alerts": [
                    {
                        "exp_labels": {"severity": "page", "instance": "a:8081", "job": "throng"},
                        "exp_annotations": {
                            "summary": "a:8081 has used 95% of its memory budget",
                            "runbook": rule["annotations"]["runbook"],
                        },
                    }
                ],
            }
        ],
    }
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    outcome = promtool("test", "rules", tmp_path / "cases.yaml")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


# --- the dashboard ----------------------------------------------------------------------------------------------------


def dashboard():
    return json.loads(DASHBOARD.read_text())


def panels():
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def filled(expression):
    """The expression with Grafana's variables filled in."""
    for name, value in {"$__rate_interval": "5m", "$instance": ".*", "$job": "throng"}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def test_every_metric_of_the_dashboard_exists():
    for panel in panels():
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert used(target["expr"]) and unknown(target["expr"]) == set(), panel["title"]


def test_the_dashboards_expressions_are_promql(tmp_path):
    rules = [
        {"record": f"panel:{index}_{number}", "expr": filled(target["expr"])}
        for index, panel in enumerate(panels())
        for number, target in enumerate(panel["targets"])
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    outcome = promtool("check", "rules", "--lint=none", tmp_path / "rules.yaml")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_the_dashboard_is_laid_out_without_overlaps_and_without_machines_in_it():
    places = set()
    for panel in dashboard()["panels"]:
        grid = panel["gridPos"]
        cells = {
            (grid["x"] + column, grid["y"] + line) for column in range(grid["w"]) for line in range(grid["h"])
        }
        assert grid["x"] + grid["w"] <= 24 and not cells & places, panel["title"]
        places |= cells
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert panel["fieldConfig"]["defaults"].get("unit"), panel["title"]
        assert panel["description"], panel["title"]
    assert {variable["name"] for variable in dashboard()["templating"]["list"]} == {"datasource", "job", "instance"}


def test_what_alerts_and_panels_select_a_node_has(tmp_path):
    """Every name, on a running node: a family that exists in the table alone would leave a panel empty."""
    expressions = [alert["expr"] for alert in alerts()] + [target["expr"] for panel in panels() for target in panel["targets"]]
    wanted = set().union(*(used(expression) for expression in expressions)) - {"up"}
    with Server(tmp_path) as server:
        with server.join("seen") as wire:
            wire.send_text("hello")
            assert wire.read_text() == "hello"
            have = {name for name, _ in server.metrics().samples}
    assert wanted <= have, wanted - have
