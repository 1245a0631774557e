"""OpenMetrics text as numbers. Strict where it helps to find a broken exposition."""

import re

_LINE = re.compile(r"^(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)(?: \S+)?$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|$)')


class Metrics:
    """One scrape."""

    def __init__(self, text):
        assert text.endswith("# EOF\n"), "an OpenMetrics exposition ends with # EOF"
        self.samples = {}
        self.types = {}
        self.helps = {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                name, kind = line[7:].split(" ", 1)
                assert name not in self.types, f"TYPE of {name} is given twice"
                self.types[name] = kind
            elif line.startswith("# HELP "):
                name, help_text = line[7:].split(" ", 1)
                self.helps[name] = help_text
            elif line.startswith("#"):
                continue
            else:
                match = _LINE.match(line)
                assert match, f"not a sample: {line!r}"
                labels = tuple(sorted(_LABEL.findall(match["labels"] or "")))
                key = (match["name"], labels)
                assert key not in self.samples, f"sample given twice: {line!r}"
                self.samples[key] = float(match["value"])

    def matching(self, name, **labels):
        """All samples of `name` that carry these labels: `[(labels, value)]`."""
        wanted = set(labels.items())
        return [
            (dict(have), value)
            for (sample, have), value in self.samples.items()
            if sample == name and wanted <= set(have)
        ]

    def sum(self, name, **labels):
        """The sum over every sample of `name` that carries these labels. A name that is nowhere is a mistake."""
        assert any(sample == name for sample, _ in self.samples), (
            f"no sample is called {name}; there are: {', '.join(sorted({s for s, _ in self.samples}))}"
        )
        return sum(value for _, value in self.matching(name, **labels))
