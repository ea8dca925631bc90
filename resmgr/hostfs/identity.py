"""Acting as somebody else, for the calling thread only, with the kernel's own checks.

Around one operation the calling thread's supplementary groups, effective gid and effective uid are set with raw system calls, and set back
on every way out. Effective, not only file-system ids (`setfsuid`): with an effective uid of 0 kept, /proc/sys would still see root (it
looks at the effective uid), and capabilities that `setfsuid` leaves in place (CAP_SYS_PTRACE, CAP_SYS_RESOURCE) would open other users'
/proc entries and the file system's reserve. Changing the effective uid away from 0 drops every capability, and setting it back restores
them, because the real and saved uids stay 0.

What this costs is the kernel's making of new credentials, about 2 us a call: so calls that would change nothing are left out, and the
daemon's own identity costs nothing. The identity is never left in place between operations: other work runs on the same thread.

Where the process lacks the right (not root, or a user namespace with a single uid) only its own identity can be served. Anything else is
EPERM, with the counter `identity_refused`; never the daemon's own rights in place of the client's.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

from resmgr.access import ID_MAX, MappedUser
from resmgr.credentialcalls import credential_calls, raw

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_long = ctypes.c_long
_KEEP: Final = -1
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7


class Identity:
    """Prepared system calls that make a thread somebody, and back. Made by `Switch.identity`."""

    __slots__ = ("_array", "enter", "leave", "own", "user")

    def __init__(self, user: MappedUser, own: bool) -> None:
        self.user = user
        self.own = own
        self.enter: list[tuple[ctypes.c_long | ctypes.c_void_p, ...]] = []
        self.leave: list[tuple[ctypes.c_long | ctypes.c_void_p, ...]] = []
        self._array: ctypes.Array[ctypes.c_uint32] | None = None


def _groups(number: int, groups: tuple[int, ...]) -> tuple[tuple[ctypes.c_long | ctypes.c_void_p, ...], ctypes.Array[ctypes.c_uint32]]:
    array = (ctypes.c_uint32 * max(1, len(groups)))(*groups)
    return (_long(number), _long(len(groups)), ctypes.c_void_p(ctypes.addressof(array))), array


def _capabilities() -> int:
    with open("/proc/thread-self/status", "rb") as status:
        for line in status:
            if line.startswith(b"CapEff:"):
                return int(line.split()[1], 16)
    return 0


class Switch:
    """What this process may become. Make it before any thread changes its credentials. `problem` says what cannot be done, or is empty."""

    def __init__(self) -> None:
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self.groups = tuple(sorted(set(os.getgroups()) - {self.gid}))
        self.refused = 0
        """Operations refused with EPERM because this process cannot take the identity."""
        self.problem = self._problem()
        numbers = credential_calls()
        self._setresuid, self._setresgid, self._setgroups = numbers or (0, 0, 0)
        self._leave_groups, self._leave_array = _groups(self._setgroups, self.groups)

    def _problem(self) -> str:
        if credential_calls() is None:
            return "acting as another user is not supported on this machine type: only the daemon's own user can be served"
        if self.uid != 0 or os.getresuid() != (0, 0, 0):
            return f"not started as root: only uid {self.uid} can be served; map everybody to it with all:{self.uid}"
        effective = _capabilities()
        if not effective & 1 << CAP_SETUID or not effective & 1 << CAP_SETGID:
            return "no CAP_SETUID and CAP_SETGID: only the daemon's own user can be served; map everybody to it with all:root"
        try:
            with open("/proc/self/uid_map", "rb") as table:
                mapped = sum(int(line.split()[2]) for line in table)
            with open("/proc/self/setgroups", "rb") as file:
                denied = file.read().strip() == b"deny"
        except OSError:
            return ""
        if mapped == 1 or denied:
            return "a user namespace with a single user: only the daemon's own user can be served; map everybody to it with all:root"
        return ""

    def identity(self, user: MappedUser) -> Identity:
        """How to act as *user*; EPERM (counted) where this process cannot."""
        groups = tuple(sorted(set(user.groups) - {user.gid}))
        if not all(0 <= number <= ID_MAX for number in (user.uid, user.gid, *groups)):
            # The kernel would take 0xffffffff for "unchanged" and cut longer numbers: both could be root.
            self.refused += 1
            raise PermissionError(errno.EPERM, f"cannot act as uid {user.uid}, gid {user.gid}: not the number of a user and a group")
        if user.uid == self.uid and (self.problem or (user.gid == self.gid and (user.uid == 0 or groups == self.groups))):
            # Root needs no groups: it passes every check without them.
            return Identity(user, True)
        if self.problem:
            self.refused += 1
            raise PermissionError(errno.EPERM, self.problem)
        identity = Identity(user, False)
        if groups != self.groups:
            call, identity._array = _groups(self._setgroups, groups)
            identity.enter.append(call)
        if user.gid != self.gid:
            identity.enter.append((_long(self._setresgid), _long(_KEEP), _long(user.gid), _long(_KEEP)))
        if user.uid != self.uid:
            identity.enter.append((_long(self._setresuid), _long(_KEEP), _long(user.uid), _long(_KEEP)))
            identity.leave.append((_long(self._setresuid), _long(_KEEP), _long(self.uid), _long(_KEEP)))
        if user.gid != self.gid:
            identity.leave.append((_long(self._setresgid), _long(_KEEP), _long(self.gid), _long(_KEEP)))
        if groups != self.groups:
            identity.leave.append(self._leave_groups)
        return identity

    def run(self, identity: Identity, operation: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call *operation* as *identity* on this thread. EPERM when the kernel refuses the identity; then the operation did not run."""
        if identity.own:
            return operation(*args)
        try:
            for call in identity.enter:
                if raw(*call) != 0:
                    self.refused += 1
                    raise PermissionError(errno.EPERM, f"cannot act as uid {identity.user.uid}")
            return operation(*args)
        finally:
            for call in identity.leave:
                if raw(*call) != 0:
                    # A thread of the daemon with a user's identity must not run on.
                    os.abort()
