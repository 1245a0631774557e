"""Fixtures: three nodes, and a balancer before them that runs on the files of deploy/."""

import importlib.util
from pathlib import Path

import pytest
from balancers import Cluster, Haproxy, Nginx
from balancers.render import tool

BALANCERS = {"nginx": Nginx, "haproxy": Haproxy}


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# A coroutine test runs on a loop of its own within a time limit, as in the end-to-end tests.
pytest_pyfunc_call = _load("e2e_conftest", Path(__file__).parent.parent / "e2e/conftest.py").pytest_pyfunc_call


def need(name):
    """Skips the test where a program is missing, and says which."""
    if tool(name) is None:
        pytest.skip(f"{name} is not installed")


@pytest.fixture
def cluster(tmp_path):
    """Three nodes of the test's own. Whatever it did to them, they are gone after it."""
    directory = tmp_path / "nodes"
    directory.mkdir()
    nodes = Cluster(directory)
    yield nodes
    nodes.kill()
    for node in nodes:
        assert "panicked" not in node.log(), node.log()


@pytest.fixture
def balance(tmp_path):
    """Starts balancers of the test's own: `balance("nginx", nodes, "cookie", …)`."""
    started = []

    def start(kind, nodes, way, **how):
        need(kind)
        directory = tmp_path / f"{kind}-{len(started)}"
        directory.mkdir()
        one = BALANCERS[kind](directory, nodes, way, **how)
        started.append(one)
        return one

    yield start
    for one in reversed(started):
        one.stop()


@pytest.fixture
def cluster_of_four_places(tmp_path):
    """Three nodes that take four connections each."""
    directory = tmp_path / "small-nodes"
    directory.mkdir()
    nodes = Cluster(directory, "connection_count_max = 4\n")
    yield nodes
    nodes.kill()
