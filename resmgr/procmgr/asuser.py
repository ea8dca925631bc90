"""Doing one thing with the rights of a user and no more, in a thread that ends with it. What the kernel refuses the user, it refuses here.

For what `hostfs.identity` cannot do: there a thread keeps its real and saved uid 0 to come back, and a process whose *real* uid is 0 may
signal root's processes. So this thread takes other credentials for good: the user's effective uid, groups and no capability, and as real
and saved uid one that nobody has. Since the kernel lets a user signal or trace what has his real or saved uid, he cannot touch this
thread, which is a thread of the daemon; and since that uid owns nothing, the thread gains nothing by it.

The thread runs system calls that do not block, or /proc. It costs about 0.1 ms.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import TypeVar

from resmgr.access import ID_MAX, MappedUser
from resmgr.credentialcalls import credential_calls, raw
from resmgr.ownthread import in_own_thread

T = TypeVar("T")


def as_user(user: MappedUser, work: Callable[[], T]) -> T:
    """*work* with *user*'s rights; what it raises is raised. Blocks until it has returned. PermissionError (EPERM), and *work* is not
    called, where this process cannot take the user's rights, and nothing less will do: they are never this process's own instead, unless
    it is that user. Root has no fewer rights than this process."""
    own = os.geteuid()
    if user.uid == own:
        return work()
    if own != 0:
        raise PermissionError(errno.EPERM, f"this daemon cannot act as uid {user.uid}")

    def run() -> T:
        _take(user)
        return work()

    return in_own_thread("procmgr-user", run)


def _take(user: MappedUser) -> None:
    """The calling thread's rights become *user*'s, for good."""
    numbers, stranger = credential_calls(), _stranger()
    if numbers is None or stranger == user.uid or not all(0 <= number <= ID_MAX for number in (user.uid, user.gid, *user.groups)):
        raise PermissionError(errno.EPERM, f"cannot act as uid {user.uid}")
    setresuid, setresgid, setgroups = map(ctypes.c_long, numbers)
    groups = (ctypes.c_uint32 * max(1, len(user.groups)))(*user.groups)
    gid, uid, nobody = ctypes.c_long(user.gid), ctypes.c_long(user.uid), ctypes.c_long(stranger)
    # Of this thread only, so not by the C library, which changes them all.
    calls: tuple[tuple[object, ...], ...] = (
        (setgroups, ctypes.c_long(len(user.groups)), ctypes.byref(groups)),
        (setresgid, gid, gid, gid),
        (setresuid, nobody, uid, nobody),
    )
    if any(raw(*call) != 0 for call in calls) or _capable():
        raise PermissionError(errno.EPERM, f"cannot act as uid {user.uid}")


def _stranger() -> int:
    """A uid that nobody has: the last one that there is in this user namespace."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return max(int(first) + int(count) - 1 for first, _, count in map(str.split, file))


def _capable() -> bool:
    """Whether this thread has kept a capability, as under securebits that keep them."""
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as file:
        return any(int(line.split()[1], 16) for line in file if line.startswith(("CapEff:", "CapPrm:", "CapAmb:")))
