"""A file of deploy/ with the test's addresses in it: every replacement must find what it is for."""

import shutil
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
DEPLOY = REPOSITORY / "deploy"


def render(text, replacements):
    """`text` with each key replaced by its value, everywhere; a key that does not occur is a mistake of the test."""
    for old, new in replacements.items():
        assert old in text, f"the file no longer says {old!r}"
        text = text.replace(old, new)
    return text


def without_nodes(text, count):
    """`text` without the lines of the nodes that are not there: the files have three."""
    gone = [f"10.0.0.{11 + index}:8080" for index in range(count, 3)]
    return "".join(line for line in text.splitlines(keepends=True) if not any(address in line for address in gone))


def tool(name):
    """Where a program is; Debian keeps balancers in sbin, which is on no user's path."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
