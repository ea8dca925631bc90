"""What programs send to attach, open and watch names, and the events that they get. docs/protocol/names.md has the formats.

Light: blocking programs load it.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from resmgr.errors import BadMessage
from resmgr.subscription import REQUEST as REQUEST

PREFIX = b"dev/name/local"
PREFIX_GLOBAL = b"dev/name/global"
ATTACH = 1
DETACH = 2
ATTACH_GLOBAL = 3
DETACH_GLOBAL = 4
RENEW = 5
STATUS = 6
NAME_MAX = 255
LEASE_MAX = 65535
"""Seconds."""
EVENT = struct.Struct("!BBBBIIIIIQ")
"""kind, scope, length of the name, length of the node, nd, pid, chid, uid, gid, serial."""


class Scope(enum.IntFlag):
    """Where a name counts."""

    LOCAL = 1
    GLOBAL = 2
    BOTH = 3


class NameChange(enum.IntEnum):
    """What happened to a name. CURRENT: what came before is what there is now. OVERFLOW: forget all, it comes anew."""

    APPEARED = 1
    WITHDRAWN = 2
    CURRENT = 3
    OVERFLOW = 4


class Record(NamedTuple):
    """A name of one owner. `nd` is 0 and `node` empty for an owner on this node; `serial` is that node's number for it, never used twice
    by one boot. `uid` and `gid` of another node's owner are what that node says."""

    scope: Scope
    name: bytes
    node: str
    nd: int
    pid: int
    chid: int
    uid: int
    gid: int
    serial: int


NOBODY = Record(Scope.BOTH, b"", "", 0, 0, 0, 0, 0, 0)


class NameEvent(NamedTuple):
    """`record` says nothing for CURRENT and OVERFLOW."""

    kind: NameChange
    record: Record = NOBODY

    @property
    def name(self) -> str:
        return self.record.name.decode(errors="surrogateescape")


def is_name(name: bytes, scope: Scope) -> bool:
    """Whether it can be attached. Control characters are for the terminals of those who list names. In a global name `@` and `~` would be
    a choice."""
    if any(byte < 0x20 or byte == 0x7F for byte in name):
        return False
    if not 0 < len(name) <= NAME_MAX or b"/" in name or name in (b".", b".."):
        return False
    return scope is Scope.LOCAL or (b"@" not in name and b"~" not in name)


def name_path(name: str | bytes, node: str = "", scope: Scope = Scope.LOCAL, policy: str = "") -> bytes:
    """The path of a name: a local one of *node* (empty: this one), or a global one, of an owner on *node* or chosen by *policy*.

    One that begins with a slash is a path already. ValueError: a choice by both, or of a local name.
    """
    name = name.encode(errors="surrogateescape") if isinstance(name, str) else name
    if policy and (node or scope is not Scope.GLOBAL):
        raise ValueError("a policy chooses among the owners of a global name, on all nodes")
    if name.startswith(b"/"):
        return name
    if scope is Scope.GLOBAL:
        choice = b"@" + node.encode() if node else b"~" + policy.encode() if policy else b""
        return b"/" + PREFIX_GLOBAL + b"/" + name + choice
    return (b"/net/" + node.encode() if node else b"") + b"/" + PREFIX + b"/" + name


def pack_pattern(scope: Scope, pattern: str | bytes) -> bytes:
    """What WATCH says: a name, or a beginning and `*`."""
    return bytes((scope,)) + (pattern.encode(errors="surrogateescape") if isinstance(pattern, str) else pattern)


def pack_event(event: NameEvent) -> bytes:
    one = event.record
    node = one.node.encode()
    numbers = EVENT.pack(event.kind, one.scope, len(one.name), len(node), one.nd, one.pid, one.chid, one.uid, one.gid, one.serial)
    return numbers + node + one.name


def parse_event(data: bytes) -> NameEvent:
    """BadMessage for what `pack_event` does not make."""
    try:
        kind, scope, name_length, node_length, nd, pid, chid, uid, gid, serial = EVENT.unpack_from(data)
        end = EVENT.size + node_length
        if end + name_length != len(data):
            raise BadMessage("event of a name: length")
        node = data[EVENT.size : end].decode()
        if scope not in (Scope.LOCAL, Scope.GLOBAL, Scope.BOTH):
            raise BadMessage("event of a name: scope")
        return NameEvent(NameChange(kind), Record(Scope(scope), data[end:], node, nd, pid, chid, uid, gid, serial))
    except (struct.error, ValueError) as error:
        raise BadMessage(f"event of a name: {error}") from None
