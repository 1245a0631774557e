"""The manifests: against the API's own schemas, against each other, and against the server that they start."""

import json
import re
import tomllib

import pytest
import yaml
from balancers.render import DEPLOY, REPOSITORY
from confined import ConfinedServer
from harness import Server, eventually, free_port, run
from metric_names import samples
from settings import keys, seconds

FILES = sorted(path for path in (DEPLOY / "k8s").glob("*.yaml"))
# Not of Kubernetes' own API: a file for kustomize and the values of a chart.
OTHERS = {"kustomization.yaml", "prometheus-adapter.yaml"}


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / "k8s" / name).read_text()))


def objects():
    """Every object of the API, by kind and name."""
    found = {}
    for path in FILES:
        if path.name not in OTHERS:
            for one in documents(path.name):
                found[one["kind"], one["metadata"]["name"]] = one
    return found


def pod():
    return objects()["StatefulSet", "throng"]["spec"]["template"]


def container():
    (one,) = pod()["spec"]["containers"]
    return one


def server_settings():
    return tomllib.loads(objects()["ConfigMap", "throng"]["data"]["throng.toml"])


@pytest.mark.parametrize("version", ("1.30", "1.34", "1.37"))
def test_every_object_is_what_the_api_takes(version):
    validator = pytest.importorskip("kubernetes_validate")
    for (kind, name), one in objects().items():
        validator.validate(one, version, strict=True)
        assert one["metadata"].get("namespace", "throng") == "throng", (kind, name)


def test_the_validator_would_have_found_a_fault():
    validator = pytest.importorskip("kubernetes_validate")
    broken = json.loads(json.dumps(objects()["StatefulSet", "throng"]))
    broken["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["paht"] = "/"
    with pytest.raises(validator.ValidationError):
        validator.validate(broken, "1.37", strict=True)


def test_kustomize_has_every_file_and_names_the_image():
    (kustomization,) = documents("kustomization.yaml")
    assert {*kustomization["resources"], *OTHERS} == {path.name for path in FILES}
    assert {image["name"] for image in kustomization["images"]} == {container()["image"]}


def test_sigkill_never_comes_before_the_drain_is_over():
    settings = server_settings()
    delay_s, window_s, deadline_s = (
        seconds(settings[f"drain_{part}_ms"]) for part in ("delay", "window", "deadline")
    )
    assert delay_s + window_s < deadline_s
    hook_s = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod()["spec"]["terminationGracePeriodSeconds"] >= hook_s + deadline_s + 2


def test_the_settings_are_taken_as_they_are(tmp_path):
    """By the very program, the key's path aside, which is a secret's."""
    text = objects()["ConfigMap", "throng"]["data"]["throng.toml"]
    assert set(server_settings()) <= keys()
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert server_settings()["admin_key_file"] == f"{mounts['admin-key']}/admin-key"
    (tmp_path / "admin-key").write_text("0123456789abcdef")
    (tmp_path / "throng.toml").write_text(text.replace(mounts["admin-key"], str(tmp_path)))
    outcome = run("config", "--config", tmp_path / "throng.toml", env={"THRONG_NODE_ID": "throng-0"})
    assert outcome.returncode == 0, outcome.stderr
    # Where the file is mounted, and how the container is started.
    assert container()["args"] == ["serve", "--config", f"{mounts['settings']}/throng.toml"]
    for variable in container()["env"]:
        assert variable["name"].removeprefix("THRONG_").lower() in keys()


def test_ports_are_where_the_server_listens():
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert [f"0.0.0.0:{ports['clients']}"] == server_settings()["listen"]
    assert f"0.0.0.0:{ports['admin']}" == server_settings()["admin"]
    for (kind, _), one in objects().items():
        if kind == "Service":
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= set(ports)
    annotations = pod()["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["admin"])


def probed(server, probe):
    """What the kubelet would be answered: the status."""
    where = probe["httpGet"]
    return (server.get if where["port"] == "clients" else server.admin)(where["path"]).status


def test_probes_say_yes_to_a_node_that_is_well_and_only_readiness_says_no_while_it_drains(tmp_path):
    probes = {name: container()[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    with Server(tmp_path, "drain_delay_ms = 3000\n", env={"THRONG_ADMIN_KEY": "a-key-of-the-test"}) as server:
        for name, probe in probes.items():
            assert probed(server, probe) == 200, name
        server.process.terminate()
        eventually(lambda: probed(server, probes["readiness"]) == 503, "it is not ready")
        assert probed(server, probes["liveness"]) == 200
        assert server.wait() == 0


def missed(server):
    try:
        return server.admin("/readyz").status == 503
    except OSError:
        return False


def test_pods_stay_in_the_service_while_redis_is_away(tmp_path):
    """Members of one node hear each other then (redis_degraded), so nobody gains by a Service without pods."""
    assert "redis_degraded" not in server_settings(), "local, by default"
    settings = f'redis = "redis://127.0.0.1:{free_port()}"\nredis_at_start = "wait"\n'
    server = Server(tmp_path, settings, env={"THRONG_ADMIN_KEY": "a-key-of-the-test"}, ready=False)
    with server:
        eventually(lambda: missed(server), "Redis is missed")
        assert probed(server, container()["readinessProbe"]) == 200


def test_everything_that_selects_selects_the_pods():
    labels = pod()["metadata"]["labels"].items()
    selectors = []
    for (kind, _), one in objects().items():
        spec = one.get("spec", {})
        if kind == "Service":
            selectors.append(spec["selector"])
        elif kind in ("StatefulSet", "PodDisruptionBudget"):
            selectors.append(spec["selector"]["matchLabels"])
        elif kind == "NetworkPolicy":
            selectors.append(spec["podSelector"]["matchLabels"])
    selectors += [one["labelSelector"]["matchLabels"] for one in pod()["spec"]["topologySpreadConstraints"]]
    assert len(selectors) == 7
    for selector in selectors:
        assert selector and selector.items() <= labels


def test_names_that_refer_to_each_other_exist():
    everything = objects()
    stateful = everything["StatefulSet", "throng"]["spec"]
    headless = everything["Service", stateful["serviceName"]]
    assert headless["spec"]["clusterIP"] == "None"
    target = everything["HorizontalPodAutoscaler", "throng"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in everything
    volumes = {volume["name"]: volume for volume in pod()["spec"]["volumes"]}
    assert {mount["name"] for mount in container()["volumeMounts"]} == set(volumes)
    assert ("ConfigMap", volumes["settings"]["configMap"]["name"]) in everything
    secret = volumes["admin-key"]["secret"]["secretName"]
    assert f"create secret generic {secret} " in (REPOSITORY / "docs/DEPLOYING.md").read_text()
    assert "replicas" not in stateful, "the autoscaler has them"


def test_the_pod_may_no_more_than_it_needs():
    spec, one = pod()["spec"], container()["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    user = re.search(r"^USER (\d+):(\d+)$", (DEPLOY / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == (int(user[1]), int(user[2]))
    assert one == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    profile = spec["securityContext"]["seccompProfile"]
    assert profile["type"] == "Localhost"
    assert f"/var/lib/kubelet/seccomp/{profile['localhostProfile']}" in (REPOSITORY / "docs/DEPLOYING.md").read_text()


def test_processors_are_requested_for_every_core_and_not_limited():
    resources = container()["resources"]
    assert int(resources["requests"]["cpu"]) == server_settings()["shards"] + 1
    assert "cpu" not in resources["limits"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_the_autoscaler_asks_for_a_metric_that_the_adapter_makes_of_one_that_exists():
    metrics = objects()["HorizontalPodAutoscaler", "throng"]["spec"]["metrics"]
    assert [metric["type"] for metric in metrics] == ["Resource", "Pods"]
    assert metrics[0]["resource"]["name"] == "cpu"
    name = metrics[1]["pods"]["metric"]["name"]
    (adapter,) = documents("prometheus-adapter.yaml")
    (rule,) = adapter["rules"]["custom"]
    assert rule["name"]["as"] == name
    series = rule["seriesQuery"].split("{")[0]
    assert series in samples()
    assert re.fullmatch(rule["name"]["matches"], series)


def test_the_settings_run_under_the_profile(tmp_path):
    """As nobody, without capabilities, under the profile that the pod refers to, with the very settings."""
    profile = json.loads((DEPLOY / "docker/seccomp.json").read_text())
    settings = server_settings()
    env = {
        f"THRONG_{key.upper()}": str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in settings.items()
        if key not in ("listen", "admin", "admin_key_file", "shards")
    }
    env |= {"THRONG_NODE_ID": "throng-0"}
    with ConfinedServer(tmp_path, profile, env=env, admin_key="a-key-of-the-test") as server:
        assert server.stats()["node"], "it knows its name"
        assert "throng-0" in json.dumps(server.stats())
        with server.join("pod") as wire:
            wire.send_text("hello")
            assert wire.read_text() == "hello"
        server.process.terminate()
        assert server.wait(30) == 0
