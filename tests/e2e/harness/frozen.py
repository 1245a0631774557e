"""Holds single threads of a server still, as a debugger does: a signal could only stop all of them."""

import contextlib
import ctypes
import os
import pathlib

PTRACE_DETACH = 17
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
WAIT_ALL = 0x40000000  # __WALL: threads too

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request, thread):
    if _libc.ptrace(request, thread, None, None) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@contextlib.contextmanager
def frozen(process, prefix):
    """Holds the threads of `process` whose names begin with `prefix`. PermissionError where the host lets nobody."""
    names = {int(task.name): (task / "comm").read_text() for task in pathlib.Path(f"/proc/{process}/task").iterdir()}
    threads = [thread for thread, name in names.items() if name.startswith(prefix)]
    assert threads, f"no thread is called {prefix}…: {sorted(names.values())}"
    held = []
    try:
        for thread in threads:
            _ptrace(PTRACE_SEIZE, thread)
            _ptrace(PTRACE_INTERRUPT, thread)
            os.waitpid(thread, WAIT_ALL)
            held.append(thread)
        yield
    finally:
        for thread in held:
            _ptrace(PTRACE_DETACH, thread)
