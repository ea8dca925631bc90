"""What programs must not inherit of the daemon that starts them: what it changed for itself, and what raises it above others.

The rule: privileges end here, restrictions go on. A daemon that was given a negative nice value, a real-time policy, protection from the
out-of-memory killer or ambient capabilities does not hand them to programs that other machines start; a daemon that is confined (CPU
affinity, cgroup, positive nice value, hard limits) confines its programs as well, as sshd and cron do.

Most of it is an attribute of a *thread* on Linux and inherited from the one that forks, so the launching thread drops it once and nothing
has to be done in the child. docs/protocol/spawn.md lists what goes and what stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading

_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_RESET_BY_SUBPROCESS = frozenset((signal.SIGPIPE, signal.SIGXFSZ))
_FIXED = frozenset((signal.SIGKILL, signal.SIGSTOP))


def drop_privileges_of_thread() -> None:
    """In the thread that starts programs, before the first: signals not blocked, no priority above the ordinary, no ambient capabilities.

    Each of these only gives something up, which the kernel allows to everybody; what a sandbox refuses nevertheless stays as it is.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) not in (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        # Of the calling thread: Linux' nice values are.
        if os.getpriority(os.PRIO_PROCESS, 0) < 0:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
    ctypes.CDLL(None).prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def spared_from_oom() -> bool:
    """Whether this process is less likely than others to be killed when memory runs out. Programs set their own score (launch.SCRIPT)."""
    try:
        with open("/proc/self/oom_score_adj", encoding="ascii") as file:
            return int(file.read()) < 0
    except (OSError, ValueError):
        return False


def catch_ignored_signals() -> None:
    """Have what this process was started to ignore (nohup, a shell's `&`) ignored by handlers instead, which end with exec.

    For a daemon's main thread, at its start. A program that is started with a signal ignored could not be ended by it, and a shell cannot
    undo it. Elsewhere than in the main thread it does nothing: signals belong to the program around.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in signal.valid_signals() - _RESET_BY_SUBPROCESS - _FIXED:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
