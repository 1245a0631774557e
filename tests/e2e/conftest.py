"""Fixtures: one quiet server for a module's worth of questions, and fresh ones for tests that push."""

import asyncio
import inspect

import pytest
from harness import Redis, Server, has_redis

TEST_TIMEOUT_S = 90


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Runs a coroutine test on a loop of its own, within a time limit."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in wanted}

    async def bounded():
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await pyfuncitem.obj(**arguments)

    asyncio.run(bounded())
    return True


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with three shards and default settings, shared by the tests of a module.

    When they are through, every connection must be gone from its books.
    """
    with Server(tmp_path_factory.mktemp("server"), shards=3) as shared:
        yield shared
        shared.await_open(0)


@pytest.fixture
def redis(tmp_path):
    """A Redis of the test's own; it outlives the servers that `serve` starts."""
    if not has_redis():
        pytest.skip("there is no redis-server on this host")
    with Redis(tmp_path) as one:
        yield one


@pytest.fixture
def serve(tmp_path):
    """Starts servers of the test's own: `serve(settings, …)`. They are stopped, and their exit code checked, after it."""
    started = []

    def start(settings="", **how):
        one = Server(tmp_path, settings, **how)
        started.append(one)
        return one.__enter__()

    yield start
    faults = []
    for one in reversed(started):
        try:
            one.__exit__(None, None, None)
        except AssertionError as fault:
            faults.append(fault)
    if faults:
        raise faults[0]
