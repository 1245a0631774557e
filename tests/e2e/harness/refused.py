"""A node that is to fail at its start because of its Redis."""

from .server import run


def refused(url, *flags, **environment):
    """Runs it, and returns its exit code and its log."""
    done = run(
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "off",
        "--shards",
        "1",
        "--redis",
        url,
        "--redis-at-start",
        "fail",
        *flags,
        env=environment,
    )
    return done.returncode, done.stdout + done.stderr
