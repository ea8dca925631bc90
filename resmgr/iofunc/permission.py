"""The access check of a resource manager that keeps its own attributes (QNX iofunc_check_access): owner, then group, then others."""

from __future__ import annotations

import errno

from resmgr.access import MappedUser

READ = 4
WRITE = 2
SEARCH = 1


def may(mode: int, uid: int, gid: int, user: MappedUser, want: int) -> bool:
    """Whether *user* has all of *want* (READ, WRITE, SEARCH) on something of *mode*, *uid*, *gid*. Root has everything but execution."""
    if user.uid == 0:
        return not want & SEARCH or bool(mode & 0o111) or mode & 0o170000 == 0o040000
    if user.uid == uid:
        bits = mode >> 6
    elif user.gid == gid or gid in user.groups:
        bits = mode >> 3
    else:
        bits = mode
    return bits & want == want


def check(mode: int, uid: int, gid: int, user: MappedUser, want: int) -> None:
    """As `may`, but raises EACCES."""
    if not may(mode, uid, gid, user, want):
        raise PermissionError(errno.EACCES, "permission denied")
