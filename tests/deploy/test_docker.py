"""The image's recipe and its seccomp profile, without a container runtime: linted, replayed, put in force."""

import json
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from balancers.render import DEPLOY, REPOSITORY
from confined import ConfinedServer, run_confined, use_everything
from harness import Server, eventually
from settings import defaults, seconds

DOCKERFILE = DEPLOY / "docker/Dockerfile"
PROFILE = json.loads((DEPLOY / "docker/seccomp.json").read_text())


def instructions():
    """The instructions of the recipe in their order, continuation lines joined: `[(name, rest)]`."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in joined.splitlines() if line.strip()]


def stage(number):
    """The instructions of one stage."""
    starts = [index for index, (name, _) in enumerate(instructions()) if name == "FROM"] + [None]
    return instructions()[starts[number] : starts[number + 1]]


def one(name, rows):
    found = [rest for row, rest in rows if row == name]
    assert len(found) == 1, f"{name}: {found}"
    return found[0]


def test_the_recipe_is_without_a_complaint_of_hadolint():
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not installed")
    outcome = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout


def test_the_recipe_builds_from_what_it_copies(tmp_path):
    """Its context, made by the ignore file and the COPY lines, is enough for its own cargo command."""
    copied = [rest.split() for name, rest in stage(0) if name == "COPY"]
    kept = {line[1:] for line in (DEPLOY / "docker/Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    context = tmp_path / "build"
    context.mkdir()
    for *sources, target in copied:
        for source in sources:
            assert source in kept, f"{source} is not in the context"
            path = REPOSITORY / source
            if path.is_dir():
                assert target == source
                shutil.copytree(path, context / source)
            else:
                shutil.copy(path, context / source)
    build = re.search(r"cargo build ([^&]+)&&", one("RUN", [row for row in stage(0) if "cargo" in row[1]]))[1].split()
    build.remove("--release")
    outcome = subprocess.run(
        ["cargo", "check", "--quiet", *build],
        cwd=context,
        env=os.environ | {"CARGO_TARGET_DIR": str(REPOSITORY / "target")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr


def test_the_compiler_is_the_oldest_that_is_promised_and_both_stages_are_one_debian():
    promised = re.search(r'^rust-version = "(.+)"', (REPOSITORY / "Cargo.toml").read_text(), re.MULTILINE)[1]
    build, image = one("FROM", stage(0)), one("FROM", stage(1))
    version, suffix = re.fullmatch(r"rust:([\d.]+)-slim-(\w+) AS build", build).groups()
    assert tuple(map(int, version.split("."))) >= tuple(map(int, promised.split(".")))
    assert image == f"debian:{suffix}-slim"


def test_what_is_built_is_what_is_started():
    metadata = json.loads(
        subprocess.run(
            ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"],
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        ).stdout
    )
    programs = {
        target["name"]
        for package in metadata["packages"]
        if package["name"] == "throng"
        for target in package["targets"]
        if "bin" in target["kind"]
    }
    build = one("RUN", [row for row in stage(0) if "cargo" in row[1]])
    name = re.search(r"--bin (\S+)", build)[1]
    assert name in programs
    assert re.search(rf"target/release/{name} (/out\S+)", build)[1] == f"/out/usr/local/bin/{name}"
    assert one("COPY", stage(1)) == "--from=build /out/ /"
    assert json.loads(one("ENTRYPOINT", stage(1))) == [f"/usr/local/bin/{name}"]
    assert json.loads(one("CMD", stage(1))) == ["serve"]


def test_the_image_runs_as_nobody_and_stops_by_the_drain():
    user = one("USER", stage(1))
    assert all(int(number) >= 10_000 for number in user.split(":")), "numbers, so that runAsNonRoot can be checked"
    assert one("STOPSIGNAL", stage(1)) == "SIGTERM"
    assert int(re.search(r"--stop-timeout (\d+)", DOCKERFILE.read_text())[1]) >= defaults()["drain_deadline_ms"] / 1000 + 2
    ports = {address.rsplit(":", 1)[1] for address in [*defaults()["listen"], defaults()["admin"]]}
    assert set(one("EXPOSE", stage(1)).split()) == ports


def health_command(port):
    options, command = one("HEALTHCHECK", stage(1)).split(" CMD ", 1)
    command = json.loads(command)
    assert command[0] == "bash" and "/dev/tcp/127.0.0.1/8080" in command[2]
    assert re.search(r"--timeout=(\w+)", options) and seconds(re.search(r"--interval=(\w+)", options)[1]) >= 1
    return ["/bin/bash", *command[1:-1], command[-1].replace("/8080 ", f"/{port} ")]


def test_the_health_check_tells_well_from_draining_and_from_gone(tmp_path):
    server = Server(tmp_path, "drain_delay_ms = 3000\n")
    command = health_command(server.address[1])

    def verdict():
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode

    assert verdict() != 0, "nobody listens yet"
    with server:
        assert verdict() == 0
        server.process.terminate()
        eventually(lambda: server.get("/health").status == 503, "it drains")
        assert verdict() != 0
        assert server.wait() == 0


def test_a_node_lives_its_whole_life_under_the_profile(tmp_path):
    with ConfinedServer(tmp_path, PROFILE) as server:
        use_everything(server)


def test_the_health_check_runs_under_the_profile(tmp_path):
    with ConfinedServer(tmp_path, PROFILE) as server:
        outcome = run_confined(tmp_path, PROFILE, *health_command(server.address[1]))
        assert outcome.returncode == 0, outcome.stderr


def test_check_finds_the_host_fit_under_the_profile(tmp_path):
    server = ConfinedServer(tmp_path, PROFILE)
    command = [part if part != "serve" else "check" for part in server.command]
    outcome = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=30, check=False)
    found = {finding["name"]: finding for finding in json.loads(outcome.stdout)["findings"]}
    assert found["io_uring"]["level"] == "ok", found["io_uring"]


def test_without_the_ring_calls_nothing_starts_and_it_is_said_why(tmp_path):
    """What happens under a runtime's own profile, and that the profile in force here is really in force."""
    rules = [rule | {"names": [name for name in rule["names"] if "io_uring" not in name]} for rule in PROFILE["syscalls"]]
    server = ConfinedServer(tmp_path, PROFILE | {"syscalls": rules})
    outcome = subprocess.run(server.command[:-2], capture_output=True, text=True, timeout=30, check=False)
    assert outcome.returncode == 1
    assert "seccomp" in outcome.stderr + outcome.stdout, outcome.stderr


@pytest.mark.parametrize(
    "command",
    (
        ["/usr/bin/unshare", "--user", "true"],
        ["/usr/bin/unshare", "--net", "true"],
        ["/usr/bin/strace", "true"],
        ["/usr/sbin/chroot", "/", "true"],
    ),
)
def test_what_a_server_never_does_is_refused(tmp_path, command):
    if not Path(command[0]).exists():
        pytest.skip(f"{command[0]} is not installed")
    outcome = run_confined(tmp_path, PROFILE, *command)
    assert outcome.returncode != 0
    assert "not permitted" in outcome.stderr, outcome.stderr


def test_the_profile_names_each_call_once_and_every_group_has_its_reason():
    plain = [name for rule in PROFILE["syscalls"] if "args" not in rule for name in rule["names"]]
    assert len(plain) == len(set(plain))
    for rule in PROFILE["syscalls"]:
        assert rule["comment"].endswith("."), rule
        assert rule["names"] == sorted(rule["names"])
    forbidden = {"bpf", "mount", "ptrace", "unshare", "setns", "keyctl", "init_module", "kexec_load", "perf_event_open", "reboot"}
    assert not forbidden & set(plain)
