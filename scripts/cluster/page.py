"""Tables that a script writes into docs/SPECIFICATION.md."""

import os
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/SPECIFICATION.md"


def processors():
    """How many, and which."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} x {line.split(':', 1)[1].strip()}"
    return str(os.cpu_count())


def read_between(script, page=PAGE):
    """What stands between the markers of `script`."""
    text = page.read_text().split(f"<!-- {script} writes from here -->\n", 1)[1]
    return text.split(f"<!-- end of what {script} writes -->", 1)[0]


def write_between(script, text, page=PAGE):
    """Puts `text` between the markers of `script`."""
    begin, end = f"<!-- {script} writes from here -->\n", f"<!-- end of what {script} writes -->"
    before, rest = page.read_text().split(begin, 1)
    after = rest.split(end, 1)[1]
    page.write_text(before + begin + text + end + after)
