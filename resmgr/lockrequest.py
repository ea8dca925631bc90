"""Requests about locks: LOCK, and DELEGATION that gives a file's locks back (docs/protocol/iomsg.md). As `iorequest`."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from typing import Final

import attrs

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError
from resmgr.iomsg import (
    DELEGATION_LOCK,
    DELEGATION_LOCKS_MAX,
    LOCK,
    LOCK_RECLAIM,
    LOCK_SET,
    LOCK_TEST,
    LOCK_WAIT,
    LOCK_WHOLE,
    REQUEST,
    Io,
)
from resmgr.iorequest import HEAD

LOCK_END: Final = 1 << 63
"""End of a range that has none."""


@attrs.define
class LockRequest:
    """A LOCK message. The range is [start, end); end LOCK_END: to the end of the file, wherever that is. `whole`: flock. `reclaim`: it was
    had before the connection, or the server's daemon, ended."""

    operation: int
    kind: int
    start: int
    end: int
    owner: int
    pid: int = 0
    whole: bool = False
    reclaim: bool = False


def pack_lock(handle: int, request: LockRequest) -> bytes:
    length = 0 if request.end == LOCK_END else request.end - request.start
    fixed = LOCK.pack(request.operation, request.kind, request.start, length, request.owner, request.pid)
    flags = (LOCK_WHOLE if request.whole else 0) | (LOCK_RECLAIM if request.reclaim else 0)
    return REQUEST.pack(Io.LOCK, 0, flags, handle) + fixed


def parse_lock(data: Buffer) -> LockRequest:
    try:
        _, _, flags, _ = REQUEST.unpack_from(data)
        operation, kind, start, length, owner, pid = LOCK.unpack_from(data, HEAD)
    except struct.error:
        raise BadMessage("lock cut short") from None
    if operation not in (LOCK_TEST, LOCK_SET, LOCK_WAIT) or kind > 2 or flags & ~(LOCK_WHOLE | LOCK_RECLAIM):
        raise BadMessage("lock of an unknown kind")
    whole = bool(flags & LOCK_WHOLE)
    reclaim = bool(flags & LOCK_RECLAIM)
    if reclaim and (operation != LOCK_SET or kind == 2):
        raise BadMessage("only a lock can be set again")
    if whole and (start or length or operation == LOCK_TEST):
        raise BadMessage("lock of the whole with a range")
    end = start + length if length else LOCK_END
    if start >= LOCK_END or end > LOCK_END:
        raise ResmgrError(errno.EOVERFLOW)
    return LockRequest(operation, kind, start, end, owner, pid, whole, reclaim)


def pack_delegation(handle: int, locks: Iterable[LockRequest]) -> bytes:
    """DELEGATION that gives back, with the locks that stand."""
    parts = [REQUEST.pack(Io.DELEGATION, 0, 0, handle)]
    for one in locks:
        length = 0 if one.end == LOCK_END else one.end - one.start
        parts.append(DELEGATION_LOCK.pack(one.kind, one.start, length, one.owner, one.pid, LOCK_WHOLE if one.whole else 0))
    return b"".join(parts)


def parse_delegation(data: Buffer) -> list[LockRequest]:
    """The locks of a DELEGATION that gives back."""
    tail = len(data) - HEAD
    if tail % DELEGATION_LOCK.size or not 0 <= tail <= DELEGATION_LOCKS_MAX * DELEGATION_LOCK.size:
        raise BadMessage("locks cut short, or too many")
    found = []
    for kind, start, length, owner, pid, flags in DELEGATION_LOCK.iter_unpack(bytes(data[HEAD:])):
        whole = flags == LOCK_WHOLE
        end = start + length if length else LOCK_END
        if kind > 1 or flags & ~LOCK_WHOLE or (whole and (start or length)) or start >= LOCK_END or end > LOCK_END:
            raise BadMessage("a lock that makes no sense")
        found.append(LockRequest(LOCK_SET, kind, start, end, owner, pid, whole))
    return found
