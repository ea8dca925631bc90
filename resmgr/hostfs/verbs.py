"""What an export's verbs let a client do with a name. Safe to run on any thread, as `operations`."""

from __future__ import annotations

import errno
import os

from resmgr.access import ALL_DEVICES, Scope


def may_make(scope: Scope, name: bytes) -> Scope:
    """EROFS, or ENOENT, if *name* may not be made or changed in *scope*; else its scope."""
    below = scope.enter(name)
    if not scope.write:
        raise OSError(errno.EROFS, "export is read-only")
    return below


def may_make_new(dirfd: int, scope: Scope, name: bytes) -> Scope:
    """`may_make` of what must not be there yet. What is at the place of an export comes from this machine, not through a wider one."""
    below = may_make(scope, name)
    if scope.pinned(name):
        try:
            os.stat(name, dir_fd=dirfd, follow_symlinks=False)
        except FileNotFoundError:
            raise OSError(errno.EBUSY, "an export begins there") from None
        raise FileExistsError(errno.EEXIST, "exists")
    return below


def may_remove(scope: Scope, name: bytes) -> Scope:
    """`may_make` of what is to go away: not where an export begins."""
    below = may_make(scope, name)
    if scope.pinned(name):
        raise OSError(errno.EBUSY, "an export begins there")
    return below


def no_wider(old: Scope, new: Scope) -> None:
    """EXDEV if an object that goes from *old* to *new* could be used for more there, or keep set-ID bits where there are to be none."""
    devices = ALL_DEVICES in old.devices or new.devices <= old.devices
    if not new.verbs <= old.verbs or not devices or new.setuid != old.setuid:
        raise OSError(errno.EXDEV, "between exports")


def check_verbs(scope: Scope, reads: bool, writes: bool) -> None:
    """EROFS or EACCES if what is in *scope* may not be opened so."""
    if writes and not scope.write:
        raise OSError(errno.EROFS, "export is read-only")
    if reads and not scope.read and scope.verbs:
        raise PermissionError(errno.EACCES, "export is write-only")
