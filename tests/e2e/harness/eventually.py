"""Waiting for a condition instead of sleeping."""

import time


def eventually(probe, what, timeout_s=10.0, every_s=0.02):
    """Calls `probe` until it answers something true, and returns that. Fails with `what` and the last answer."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}; last seen: {answer!r}")
        time.sleep(every_s)
