"""Which sample names there are: docs/METRICS.md, whose table a unit test compares with the program."""

import re

from balancers.render import REPOSITORY

_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|", re.MULTILINE)
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "info": ("_info",), "histogram": ("_bucket", "_sum", "_count")}

# What Prometheus itself makes of a scrape.
SCRAPE = {"up"}


def samples():
    """Every name that a sample can have."""
    page = (REPOSITORY / "docs/METRICS.md").read_text()
    names = {name + suffix for name, kind in _ROW.findall(page) for suffix in _SUFFIXES[kind]}
    assert len(names) > 60, names
    return names


def used(expression):
    """The metric names that a PromQL expression selects."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]', " ", expression)
    bare = re.sub(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    return {name for name in re.findall(r"(?<![\w$.])([a-z_][a-z0-9_]*)\b(?!\s*\()", bare) if name not in _WORDS}


_WORDS = {"and", "or", "unless", "bool", "offset", "by", "on", "le", "inf", "nan"}


def unknown(expression):
    """Names in the expression that no node and no scrape has."""
    return used(expression) - samples() - SCRAPE
