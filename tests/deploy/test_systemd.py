"""The unit, judged by systemd's own tools and put in force by hand; the host's tuning, judged by `throng check`."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from balancers.render import DEPLOY, tool
from confined import ConfinedServer, use_everything
from harness import Server, run
from harness.server import binary
from settings import defaults, keys, seconds

UNIT = DEPLOY / "systemd/throng.service"
EXPOSURE_MAX = 1.5


def directives(name):
    """The values of a directive, in their order; an empty one clears those before it, as systemd has it."""
    values = []
    for line in UNIT.read_text().splitlines():
        if line.startswith(f"{name}="):
            value = line.split("=", 1)[1]
            values = [*values, value] if value else []
    return values


def directive(name):
    (value,) = directives(name)
    return value


def settings_file():
    return tomllib.loads((DEPLOY / "systemd/throng.toml").read_text())


@pytest.fixture
def analyze(tmp_path):
    """Runs systemd-analyze on the unit, with the program of this build in it."""
    if tool("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")

    def judge(*arguments, replacements=()):
        text = UNIT.read_text().replace("/usr/local/bin/throng", binary())
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        unit = tmp_path / "throng.service"
        unit.write_text(text)
        return subprocess.run(["systemd-analyze", *arguments, unit], capture_output=True, text=True, timeout=60, check=False)

    return judge


def test_systemd_finds_no_fault_in_the_unit(analyze):
    outcome = analyze("verify", "--man=no")
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "", "")


def test_systemd_would_have_found_one(analyze):
    outcome = analyze("verify", "--man=no", replacements=[("ProtectSystem=strict", "ProtectSystem=rather")])
    assert "protect system" in outcome.stderr


def test_the_units_exposure_stays_low(analyze):
    outcome = analyze("security", "--offline=yes", "--no-pager")
    exposure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", outcome.stdout)[1])
    assert exposure <= EXPOSURE_MAX, outcome.stdout
    worse = analyze("security", "--offline=yes", "--no-pager", replacements=[("BoundingSet=\n", "BoundingSet=CAP_SYS_ADMIN\n")])
    assert float(re.search(r"Overall exposure level for \S+: ([\d.]+)", worse.stdout)[1]) > exposure


def test_sigkill_never_comes_before_the_drain_is_over():
    deadline_s = in_ms(settings_file()["drain_deadline_ms"]) / 1000
    assert deadline_s >= defaults()["drain_deadline_ms"] / 1000
    assert seconds(directive("TimeoutStopSec")) >= deadline_s + 2
    assert directive("KillSignal") == "SIGTERM"


def in_ms(value):
    return seconds(value) * 1000 if isinstance(value, str) else value


def test_mistakes_in_the_settings_are_not_tried_again(tmp_path):
    assert directive("Restart") == "on-failure"
    broken = tmp_path / "broken.toml"
    broken.write_text("ping_intervall_ms = 1\n")
    assert str(run("serve", "--config", broken).returncode) in directive("RestartPreventExitStatus").split()


def test_the_limits_are_what_check_asks_for():
    findings = json.loads(run("check", "--json").stdout)["findings"]
    mends = [mend for finding in findings for mend in finding["mend"]]
    for mend in mends:
        if mend.startswith("systemd: Limit"):
            name, value = mend.removeprefix("systemd: ").split("=")
            assert directive(name) == value
    assert directive("LimitMEMLOCK") == "infinity"
    assert int(directive("LimitNOFILE")) == 1 << 20


def test_the_settings_file_is_read_as_it_is(tmp_path):
    outcome = run("config", "--config", DEPLOY / "systemd/throng.toml")
    assert outcome.returncode == 0, outcome.stderr
    assert set(settings_file()) <= keys()


def test_the_commented_settings_are_settings():
    text = (DEPLOY / "systemd/throng.toml").read_text()
    commented = re.findall(r"^# ([a-z_]+) = .*$", text, re.MULTILINE)
    assert commented and set(commented) <= keys()
    uncommented = re.sub(r"^# ([a-z_]+ = )", r"\1", text, flags=re.MULTILINE)
    outcome = run("config", "--config", "-", stdin=uncommented)
    assert outcome.returncode == 0, outcome.stderr


def test_the_admin_key_comes_as_a_credential(tmp_path):
    """systemd puts the credential where %d points; the program reads it from there and guards the API with it."""
    (name, path) = directive("LoadCredential").split(":")
    assert directive("Environment") == f"THRONG_ADMIN_KEY_FILE=%d/{name}" and path.startswith("/etc/throng/")
    (tmp_path / name).write_text("a-key-of-the-test\n")
    with Server(tmp_path, env={"THRONG_ADMIN_KEY_FILE": str(tmp_path / name)}) as server:
        assert server.admin("/v1/stats").status == 401
        assert server.admin("/v1/stats", key="a-key-of-the-test").status == 200


def calls_of(group):
    """The system calls of a group, its groups' among them."""
    outcome = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
    found = set()
    for line in outcome.stdout.splitlines()[1:]:
        name = line.strip()
        if name and not name.startswith("#"):
            found |= calls_of(name) if name.startswith("@") else {name}
    return found


def profile_of_the_unit():
    """The unit's filters as a profile: the calls, the address families, and no memory both writable and executable."""
    allowed = set()
    for line in directives("SystemCallFilter"):
        groups = line.removeprefix("~").split()
        calls = set().union(*(calls_of(group) if group.startswith("@") else {group} for group in groups))
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    families = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}

    def only(name, *conditions):
        arguments = [dict(zip(("index", "op", "value", "valueTwo"), one, strict=False)) for one in conditions]
        return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": arguments}

    special = {"socket", "mmap", "mprotect"}
    write_execute, execute = 6, 4
    return {
        "defaultErrnoRet": 1,
        "syscalls": [
            {"names": sorted(allowed - special), "action": "SCMP_ACT_ALLOW"},
            *(only("socket", (0, "SCMP_CMP_EQ", families[name])) for name in directive("RestrictAddressFamilies").split()),
            *(only("mmap", (2, "SCMP_CMP_MASKED_EQ", write_execute, bits)) for bits in (0, 2, 4)),
            only("mprotect", (2, "SCMP_CMP_MASKED_EQ", execute, 0)),
        ],
    }


def test_a_node_lives_its_whole_life_under_the_units_filters(tmp_path):
    if tool("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    assert directive("MemoryDenyWriteExecute") == "yes"
    profile = profile_of_the_unit()
    allowed = {name for rule in profile["syscalls"] for name in rule["names"]}
    assert not allowed & {"mount", "ptrace", "bpf", "setuid", "chown", "keyctl", "reboot", "init_module"}
    with ConfinedServer(tmp_path, profile) as server:
        use_everything(server)


# --- the host ---------------------------------------------------------------------------------------------------------


def tuning(name):
    """`{key: (value, whether the kernel must have it)}` of a file in sysctl.d."""
    found = {}
    for line in (DEPLOY / "systemd/sysctl.d" / name).read_text().splitlines():
        if line and not line.startswith("#"):
            key, value = (part.strip() for part in line.split("=", 1))
            assert key.removeprefix("-") not in found, key
            found[key.removeprefix("-")] = (value, not key.startswith("-"))
    return found


@pytest.mark.parametrize("name", ("90-throng.conf", "91-throng-balancer.conf"))
def test_every_key_of_the_tuning_is_one_of_the_kernel(name):
    for key, (value, required) in tuning(name).items():
        path = Path("/proc/sys") / key.replace(".", "/")
        assert path.exists() or not required, key
        if path.exists() and name.startswith("90"):
            assert len(path.read_text().split()) == len(value.split()), f"{key} has another count of values"


def test_the_tuning_is_enough_for_the_defaults():
    values = {key: [int(number) for number in value.split()] for key, (value, _) in tuning("90-throng.conf").items()}
    assert values["kernel.io_uring_disabled"] == [0]
    assert values["net.core.somaxconn"][0] >= defaults()["socket_backlog"]
    assert values["net.ipv4.tcp_max_syn_backlog"][0] >= defaults()["socket_backlog"]
    assert values["fs.nr_open"][0] >= int(directive("LimitNOFILE"))
    assert values["fs.file-max"][0] >= values["fs.nr_open"][0]
    low, pressure, high = values["net.ipv4.tcp_mem"]
    assert low < pressure < high and low >= 1_000_000, "a page for each of a million"


def test_everything_that_check_would_mend_with_sysctl_is_in_the_tuning():
    """Whatever this host lacks: the file has it, with at least the value that check proposes."""
    values = tuning("90-throng.conf") | tuning("91-throng-balancer.conf")
    for finding in json.loads(run("check", "--json").stdout)["findings"]:
        for mend in finding["mend"]:
            if match := re.match(r"sysctl -w ([\w.]+)=(\d+)$", mend):
                assert int(values[match[1]][0]) >= int(match[2]), mend


def test_the_guide_names_no_key_that_the_tuning_lacks():
    guide = (DEPLOY.parent / "docs/OPERATING.md").read_text().split("## The host")[1].split("### How many")[0]
    named = set(re.findall(r"`((?:net|kernel|fs)\.[\w.-]+)", guide))
    assert len(named) >= 5, named
    assert named <= set(tuning("90-throng.conf")), named - set(tuning("90-throng.conf"))


def test_huge_pages_are_set_as_the_guide_says():
    (line,) = [
        line for line in (DEPLOY / "systemd/tmpfiles.d/throng.conf").read_text().splitlines() if not line.startswith("#")
    ]
    kind, path, *_, value = line.split()
    assert (kind, value) == ("w", "madvise") and Path(path).exists()
    if tool("systemd-tmpfiles"):
        outcome = subprocess.run(
            ["systemd-tmpfiles", "--cat-config", DEPLOY / "systemd/tmpfiles.d/throng.conf"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert outcome.returncode == 0, outcome.stderr
