"""The server's settings as the program tells them: what the files of deploy/ have to fit."""

import functools
import re
import tomllib

from harness import run

_TABLE_ROW = re.compile(r"^\| `(?P<key>[a-z_]+)` \|", re.MULTILINE)


@functools.cache
def defaults():
    """Every setting that `throng config` prints, with its value by default; times in ms, sizes in bytes."""
    outcome = run("config")
    assert outcome.returncode == 0, outcome.stderr
    return tomllib.loads(outcome.stdout)


@functools.cache
def keys():
    """Every key that there is, those that are unset by default among them."""
    outcome = run("config", "--markdown")
    assert outcome.returncode == 0, outcome.stderr
    found = set(_TABLE_ROW.findall(outcome.stdout))
    assert len(found) > 40, found
    return found

def seconds(text):
    """A span of nginx, HAProxy, systemd or Prometheus, such as "90s", "500ms" or "4h", in seconds."""
    match = re.fullmatch(r"(\d+)(ms|s|m|min|h|d)?", text)
    assert match, text
    factor = {"ms": 0.001, "s": 1, None: 1, "m": 60, "min": 60, "h": 3600, "d": 86400}[match[2]]
    return int(match[1]) * factor
