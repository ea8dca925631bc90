"""Signals to processes, with the rights of the user on whose behalf: the kernel's check decides, as for his own kill(2)."""

from __future__ import annotations

import errno
import os
import signal

from resmgr.access import MappedUser
from resmgr.procmgr import listing
from resmgr.procmgr.asuser import as_user

SIGNAL_MAX = 64
PID_MAX = (1 << 31) - 1
"""Numbers above are none: the kernel's are signed."""


def send_to_group(user: MappedUser, group: int, number: int) -> int:
    """0 when it reached at least one process of the group, or an errno: EPERM, where all are somebody else's, ESRCH."""
    try:
        as_user(user, lambda: os.killpg(group, number))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def send_to_process(user: MappedUser, pid: int, number: int, began: int) -> None:
    """To that very process, pinned by a pidfd. OSError: ESRCH when it has ended, or is not the one that *began* then (0: whoever it is)."""
    pidfd = os.pidfd_open(pid)
    try:
        row = listing.read(pid) if began else None
        if began and (row is None or row.began != began):
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        as_user(user, lambda: signal.pidfd_send_signal(pidfd, number))
    finally:
        os.close(pidfd)
