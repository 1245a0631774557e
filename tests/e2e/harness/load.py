"""The load generator as a process: run to its end or interrupted, its table, its JSON and its exit code."""

import json
import math
import os
import signal
import subprocess
from pathlib import Path

from .server import REPOSITORY, clean_environment

RUN_S = 60


def load_binary():
    """The program under test: `THRONG_LOAD_BIN`, or the debug build."""
    path = Path(os.environ.get("THRONG_LOAD_BIN", REPOSITORY / "target/debug/throng-load")).resolve()
    assert path.exists(), f"{path} is not there: run `cargo build -p throng-load`, or set THRONG_LOAD_BIN"
    return str(path)


class Run:
    """What a run said: `code`, `out`, `err`; `figures` of the table, which must be those of the JSON file."""

    def __init__(self, arguments, code, out, err, document):
        self.arguments, self.code, self.out, self.err, self.document = arguments, code, out, err, document
        for text in (out, err):
            assert "panicked" not in text, f"{arguments}\n{text}"
        self.figures = dict(table_figures(out))
        if document is not None:
            in_file = document["figures"]
            assert self.figures.keys() == in_file.keys(), self.figures.keys() ^ in_file.keys()
            for name, value in self.figures.items():
                assert math.isclose(value, in_file[name], rel_tol=1e-3), (name, value, in_file[name])

    def __repr__(self):
        return f"throng-load {' '.join(map(str, self.arguments))}\nexit code {self.code}\n{self.out}\n{self.err}"

    def __getitem__(self, figure):
        """A figure in full, as in the file."""
        values = self.document["figures"] if self.document else self.figures
        assert figure in values, f"there is no figure {figure}: {sorted(values)}"
        return values[figure]

    def get(self, figure, default=None):
        return self.document["figures"].get(figure, default)

    @property
    def faults(self):
        return self.document["faults"]

    @property
    def notes(self):
        return self.document["notes"]

    def assert_code(self, code):
        assert self.code == code, self
        return self

    def assert_says(self, *words):
        """Its messages hold each of these, and it blames nobody's code."""
        for word in words:
            assert word in self.err, f"{word!r} is not said\n{self}"
        return self


def table_figures(text):
    """Name and plain value of each line of the table."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and not line.startswith(("--", "note:", "FAULT:", " ")):
            try:
                yield words[0], float(words[1])
            except ValueError:
                continue


class Load:
    """One running `throng-load`. `with Load(…) as load: … load.finish()`."""

    def __init__(self, directory, *arguments, limits=None, report=True, stdout=subprocess.PIPE, program=None):
        self.json = Path(directory) / f"report-{os.urandom(4).hex()}.json" if report else None
        self.arguments = [*map(str, arguments), *(["--json", str(self.json)] if report else [])]
        self.process = subprocess.Popen(
            [program or load_binary(), *self.arguments],
            stdout=stdout,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=clean_environment(),
            preexec_fn=limits,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def finish(self, timeout_s=RUN_S):
        """Awaits the end; a run that hangs is a failure."""
        out, err = self.process.communicate(timeout=timeout_s)
        document = json.loads(self.json.read_text()) if self.json and self.json.exists() else None
        return Run(self.arguments, self.process.returncode, out or "", err, document)


def load(directory, *arguments, timeout_s=RUN_S, **how):
    """Runs it to its end."""
    with Load(directory, *arguments, **how) as running:
        return running.finish(timeout_s)
