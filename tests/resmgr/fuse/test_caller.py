"""Memory of a program that waits, and its signal."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import subprocess
from collections import Counter

import pytest

from resmgr.fuse.caller import USERS_MAX, Callers, broken_pipe, read_memory, write_memory
from resmgr.testing.fuserig import PID
from resmgr.testing.virtual import VirtualDispatch


def test_memory_is_copied_whole_or_not() -> None:
    with mmap.mmap(-1, 2 * mmap.PAGESIZE) as pages:
        buffer = (ctypes.c_char * len(pages)).from_buffer(pages)
        at = ctypes.addressof(buffer)
        write_memory(os.getpid(), at + 10, b"hello")
        assert pages[9:16] == b"\0hello\0"
        assert read_memory(os.getpid(), at + 11, 3) == b"ell"
        del buffer
    for call in (lambda: read_memory(os.getpid(), 16, 8), lambda: write_memory(os.getpid(), (1 << 63) + 16, b"x")):
        with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
            call()


def test_what_is_not_there_or_not_ours_is_enotty_and_counted() -> None:
    counters: Counter[str] = Counter()
    dispatch = VirtualDispatch(1)
    callers = Callers(dispatch, counters)
    answers: list[tuple[int, bytes]] = []

    def done(code: int, data: bytes) -> None:
        answers.append((code, data))

    callers.read(0, PID, 4096, 4, done)
    callers.read(0, 0, 4096, 4, done)
    callers.write(0, os.getpid(), 16, b"x", done)
    kept = ctypes.create_string_buffer(b"kept")
    callers.read(0, os.getpid(), ctypes.addressof(kept), 4, done)
    dispatch.run_until(lambda: len(answers) == 4)
    assert sorted(answers) == sorted([(errno.ENOTTY, b""), (errno.ENOTTY, b""), (errno.EFAULT, b""), (0, b"kept")])
    assert counters == {"caller_memory_refused": 2}
    # A lane for each user, and not for ever.
    for uid in range(2 * USERS_MAX):
        callers.read(uid, os.getpid(), ctypes.addressof(kept), 4, done)
        dispatch.run_until(lambda uid=uid: len(answers) == 5 + uid)  # type: ignore[misc]  # the default is the type
    assert len(callers._of_user) <= USERS_MAX


def test_sigpipe() -> None:
    with subprocess.Popen(["sleep", "100"], restore_signals=True) as program:
        broken_pipe(program.pid)
        assert program.wait(10) == -signal.SIGPIPE
    broken_pipe(PID)
    broken_pipe(0)
    broken_pipe(-1)
