"""The Autobahn test suite against the real binary, compared with the verdicts that are kept beside this file.

`verdicts.json` holds, for each case, how the suite judged the behaviour and the closing. Whatever is neither `OK` nor
`INFORMATIONAL` has a reason beside it; a failure is never kept. Where the verdict hangs on how the kernel cuts the stream,
both are named: `OK or NON-STRICT`. A verdict that changes, for better or worse, fails here:
`THRONG_VERDICTS=write` writes the new ones, and the reasons are written by hand.

`THRONG_WSTEST` names the suite's program (`wstest`); scripts/test.sh installs it and sets this.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from harness import Server

VERDICTS = Path(__file__).parent / "verdicts.json"
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
CASE_COUNT = 301
RUN_TIMEOUT_S = 600
KEPT = {"OK", "INFORMATIONAL", "NON-STRICT"}

# What the suite needs: messages of 16 MiB (9.1.6), in up to 65,536 fragments (9.3.1), echoed whole.
SETTINGS = """
message_bytes_max = "16MiB"
connection_queue_bytes_max = "64MiB"
message_fragment_count_max = 131072
node_bytes_max = "1GiB"
shard_bytes_max = "1GiB"
"""


def wstest():
    named = os.environ.get("THRONG_WSTEST")
    return named if named and Path(named).exists() else shutil.which("wstest")


def case_order(case):
    return [int(part) for part in case.split(".")]


def judged(server, directory):
    """Runs the suite: `{case: (behaviour, closing)}`."""
    spec = directory / "spec.json"
    reports = directory / "reports"
    spec.write_text(
        json.dumps(
            {
                "outdir": str(reports),
                "servers": [{"agent": "throng", "url": server.url("/rooms/autobahn")}],
                "cases": CASES,
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
        )
    )
    run = subprocess.run(
        [wstest(), "-m", "fuzzingclient", "-s", str(spec)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    index = reports / "index.json"
    assert index.exists(), run.stdout[-2000:] + run.stderr[-2000:]
    results = json.loads(index.read_text())["throng"]
    return {case: (result["behavior"], result["behaviorClose"]) for case, result in results.items()}, reports


def story(reports, case):
    """What the suite says happened in a case."""
    report = json.loads((reports / f"throng_case_{case.replace('.', '_')}.json").read_text())
    keys = (
        "description",
        "expectation",
        "result",
        "resultClose",
        "remoteCloseCode",
        "remoteCloseReason",
        "expected",
        "received",
    )
    return "\n".join(f"    {key}: {str(report.get(key))[:300]}" for key in keys)


def is_kept(entry, verdict):
    """Whether a case's behaviour and closing are among those that are kept for it."""
    kept = (entry.get("behaviour", ""), entry.get("closing", ""))
    return all(now in allowed.split(" or ") for allowed, now in zip(kept, verdict, strict=True))


def write(verdicts, kept):
    """Keeps verdicts, one case a line, with the reasons that are known. What is right already stays as it is."""
    lines = []
    for case in sorted(verdicts, key=case_order):
        behaviour, closing = verdicts[case]
        entry = {"behaviour": behaviour, "closing": closing}
        if is_kept(kept.get(case, {}), verdicts[case]):
            entry = kept[case]
        elif not {behaviour, closing} <= {"OK", "INFORMATIONAL"}:
            entry["reason"] = kept.get(case, {}).get("reason", "")
        lines.append(f"  {json.dumps(case)}: {json.dumps(entry, ensure_ascii=False)}")
    VERDICTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def test_every_kept_exception_has_its_reason_and_no_failure_is_kept():
    kept = json.loads(VERDICTS.read_text())
    assert len(kept) == CASE_COUNT
    for case, entry in kept.items():
        verdicts = entry["behaviour"].split(" or ") + entry["closing"].split(" or ")
        assert set(verdicts) <= KEPT, f"{case}: {entry}"
        if "NON-STRICT" in verdicts:
            assert entry.get("reason"), f"{case} is not strict, and no reason is given"


@pytest.mark.skipif(not wstest(), reason="needs the Autobahn test suite: set THRONG_WSTEST")
def test_the_autobahn_suite_judges_as_kept(tmp_path):
    with Server(tmp_path, SETTINGS, shards=2) as server:
        verdicts, reports = judged(server, tmp_path)
    kept = json.loads(VERDICTS.read_text()) if VERDICTS.exists() else {}
    if os.environ.get("THRONG_VERDICTS") == "write":
        write(verdicts, kept)
        kept = json.loads(VERDICTS.read_text())
    assert len(verdicts) == CASE_COUNT, f"{len(verdicts)} cases were run"
    different = []
    for case in sorted(verdicts, key=case_order):
        entry = kept.get(case, {})
        if not is_kept(entry, verdicts[case]):
            different.append(
                f"{case}: kept {entry.get('behaviour')}/{entry.get('closing')}, now {'/'.join(verdicts[case])}\n"
                f"{story(reports, case)}"
            )
    assert not different, f"{len(different)} verdicts differ:\n" + "\n".join(different)
