"""Requests about many handles or files at once: CLOSE, IDENTIFY and its tokens, WATCH_DROP (docs/protocol/iomsg.md). As `iorequest`."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.iomsg import IDENTIFY_BATCH, IDENTIFY_MAX, REQUEST, WATCH_DROP, Io
from resmgr.iorequest import HEAD

CLOSE_MAX: Final = 4096
"""Handles of one CLOSE message: a client that closes more sends several."""
_HANDLE: Final = struct.Struct("!Q")
DROP_MAX: Final = 1024
"""Directories of one WATCH_DROP."""


def pack_drop(inos: list[int]) -> bytes:
    return REQUEST.pack(Io.WATCH, WATCH_DROP, 0, 0) + b"".join(map(_HANDLE.pack, inos))


def parse_drop(data: Buffer) -> list[int]:
    """Inode numbers of a WATCH_DROP."""
    tail = len(data) - HEAD
    if tail % _HANDLE.size or not 0 <= tail <= DROP_MAX * _HANDLE.size:
        raise BadMessage("inode numbers cut short, or too many")
    return [ino for (ino,) in _HANDLE.iter_unpack(bytes(data[HEAD:]))]


def pack_close(*handles: int) -> bytes:
    """CLOSE of one handle or of several (CLOSE_BATCH)."""
    head = REQUEST.pack(Io.CLOSE, 0, 1 if len(handles) > 1 else 0, handles[0])
    return head if len(handles) == 1 else head + b"".join(map(_HANDLE.pack, handles[1:]))


def parse_close(data: Buffer) -> list[int]:
    """Every handle that a CLOSE names."""
    try:
        _, _, flags, handle = REQUEST.unpack_from(data)
    except struct.error:
        raise BadMessage("close cut short") from None
    tail = len(data) - HEAD
    if not flags & 1:
        if tail:
            raise BadMessage("close of one handle has a tail")
        return [handle]
    if tail % _HANDLE.size:
        raise BadMessage("close's last handle cut short")
    if tail > CLOSE_MAX * _HANDLE.size:
        raise BadMessage("close names too many handles")
    return [handle, *(number for (number,) in _HANDLE.iter_unpack(bytes(data[HEAD:])))]


def pack_identify(*handles: int) -> bytes:
    """IDENTIFY of several handles, at most IDENTIFY_MAX."""
    return REQUEST.pack(Io.IDENTIFY, 0, IDENTIFY_BATCH, handles[0]) + b"".join(map(_HANDLE.pack, handles[1:]))


def parse_identify(data: Buffer) -> list[int]:
    """Every handle that an IDENTIFY of several names."""
    tail = len(data) - HEAD
    if tail < 0 or tail % _HANDLE.size or tail >= IDENTIFY_MAX * _HANDLE.size:
        raise BadMessage("identify's last handle cut short, or too many")
    return [REQUEST.unpack_from(data)[3], *(number for (number,) in _HANDLE.iter_unpack(bytes(data[HEAD:])))]


def pack_tokens(tokens: Iterable[bytes]) -> bytes:
    """The reply to that: b"" for what has none."""
    return b"".join(bytes((len(token),)) + token for token in tokens)


def parse_tokens(reply: Buffer, count: int) -> list[bytes]:
    """*count* tokens; each at most TOKEN_MAX bytes, which is what a length can say."""
    data, at = bytes(reply), 0
    tokens = []
    for _ in range(count):
        end = at + 1 + data[at] if at < len(data) else len(data) + 1
        if end > len(data):
            raise BadMessage("token cut short")
        tokens.append(data[at + 1 : end])
        at = end
    if at != len(data):
        raise BadMessage("more tokens than handles")
    return tokens
