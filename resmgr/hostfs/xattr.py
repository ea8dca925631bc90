"""Extended attributes of host files, POSIX ACLs among them. Safe to run on any thread, as `operations`.

The kernel decides who may do what: `user.` by the file's mode, `trusted.` and most of `security.` by rights that a mapped user has only if
he is root here, `system.posix_acl_*` by ownership. Ids in ACLs are translated as owners are, and who was told as nobody cannot be set: an
ACL that is read, changed and written back must not give nobody what others had. File capabilities are set-ID bits by another name, so the
export must allow these. Sizes are its own, too: ERANGE for room that is too small, E2BIG for too much.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Container
from stat import S_ISDIR
from typing import Final

from resmgr.access import Scope
from resmgr.hostfs.opened import own_path
from resmgr.iomsg import LENGTH, XATTR_GET, XATTR_LIST, XATTR_REMOVE, XATTR_SET, XATTR_SIZE_MAX
from resmgr.iorequest import XattrRequest
from resmgr.owners import NOBODY, Owners

WHICH_MAX: Final = 16384
"""Entries of a directory that one WHICH looks at; with more it is EFBIG, and each is asked about by itself."""
_ACL: Final = b"system.posix_acl_"
_CAPABILITY: Final = b"security.capability"
_ACL_HEAD: Final = 4
_ACL_ENTRY: Final = struct.Struct("<HHI")
"""tag, permissions, id."""
_ACL_USER: Final = 2
_ACL_GROUP: Final = 8
DEFAULT_ACL: Final = "system.posix_acl_default"


def xattr(fd: int, scope: Scope, request: XattrRequest, owners: Owners | None, at_risk: Container[bytes]) -> bytes:
    """Carry out *request* on what *fd* is (any descriptor, O_PATH too; a symbolic link itself), for a client who is told *owners*."""
    operation = request.operation
    path = own_path(fd)
    if operation in (XATTR_SET, XATTR_REMOVE):
        if not scope.write:
            raise OSError(errno.EROFS, "export is read-only")
        if operation == XATTR_SET:
            value = request.value
            if request.name == _CAPABILITY and not scope.setuid:
                raise PermissionError(errno.EPERM, "the export allows no set-ID bits")
            if owners is not None and request.name.startswith(_ACL):
                value = _translated(value, _somebody(owners.user_in), _somebody(owners.group_in))
            os.setxattr(path, request.name, value, request.flags & 3)
        else:
            os.removexattr(path, request.name)
        return b""
    if not scope.read and scope.verbs:
        raise PermissionError(errno.EACCES, "export is write-only")
    if operation == XATTR_GET:
        found = os.getxattr(path, request.name)
        if owners is not None and request.name.startswith(_ACL):
            found = _translated(found, owners.user_out, owners.group_out)
    elif operation == XATTR_LIST:
        found = b"".join([os.fsencode(name) + b"\0" for name in os.listxattr(path)])
    else:
        found = _which(fd, path, scope, at_risk)
    if not request.size:
        return LENGTH.pack(len(found))
    if len(found) > request.size:
        raise OSError(errno.ERANGE, "more than there is room for")
    return found


def _translated(acl: bytes, user: Callable[[int], int], group: Callable[[int], int]) -> bytes:
    """An ACL with other numbers for its users and groups. What is not an ACL is left to the kernel to refuse."""
    if len(acl) < _ACL_HEAD or (len(acl) - _ACL_HEAD) % _ACL_ENTRY.size:
        return acl
    parts = [acl[:_ACL_HEAD]]
    for tag, permissions, number in _ACL_ENTRY.iter_unpack(acl[_ACL_HEAD:]):
        if tag == _ACL_USER:
            number = user(number)
        elif tag == _ACL_GROUP:
            number = group(number)
        parts.append(_ACL_ENTRY.pack(tag, permissions, number))
    return b"".join(parts)


def _somebody(inwards: Callable[[int], int]) -> Callable[[int], int]:
    """*inwards*, with OSError EINVAL for the number by which all are told that have none there."""

    def number(there: int) -> int:
        if there == NOBODY:
            raise OSError(errno.EINVAL, "nobody in an ACL stands for whoever has no number there")
        return inwards(there)

    return number


def _which(fd: int, path: bytes, scope: Scope, at_risk: Container[bytes]) -> bytes:
    """Names of the directory's entries that have extended attributes, or of which that cannot be said, as of those *at_risk*: a file system
    that may not answer is mounted there.
    """
    if not S_ISDIR(os.fstat(fd).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory")
    if not (scope.fixed and scope.verbs):
        raise OSError(errno.EFBIG, "not all of it is exported")
    names = os.listdir(path)
    if len(names) > WHICH_MAX:
        raise OSError(errno.EFBIG, "too many entries")
    having: list[bytes] = []
    for name in names:
        try:
            if name not in at_risk and not os.listxattr(path + b"/" + name, follow_symlinks=False):
                continue
        except FileNotFoundError:
            continue
        except OSError:
            pass
        having.append(name + b"\0")
    found = b"".join(having)
    if len(found) > XATTR_SIZE_MAX:
        raise OSError(errno.EFBIG, "too many entries")
    return found


def inherits_acl(fd: int) -> bool:
    """Whether what is made in directory *fd* gets its permissions from a default ACL: then the maker's umask does not count."""
    try:
        os.getxattr(own_path(fd), DEFAULT_ACL)
    except OSError:
        return False
    return True
