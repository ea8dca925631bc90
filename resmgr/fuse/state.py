"""What one daemon tells the next of a mount (docs/decisions/fuse-hand-over.md): records as values, and as what JSON can say.

A record is told as the list of its fields in the order in which they stand here, without their names: there may be a quarter of a million.
Bytes are text with a character for each. A field takes what it is, or what is told of that; anything else is `BadState`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

import attrs

from resmgr.fuse.formats import AttrTuple
from resmgr.fuse.inode import Version
from resmgr.iomsg import ATTR

VERSION = 1
_T = TypeVar("_T")


class BadState(ValueError):
    """Not a state, or one of another version."""


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadState(f"{value!r:.40} is no number")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadState(f"{value!r:.40} is neither true nor false")
    return value


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or (not value.isascii() and max(value) > "\xff"):
        raise BadState(f"{value!r:.40} is not bytes")
    return value.encode("latin-1")


def _name(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise BadState(f"{value!r:.40} is no name")
    return value


def _numbers(value: object) -> tuple[int, ...]:
    return tuple([_number(one) for one in _rows(value)])


def _attributes(value: object) -> AttrTuple:
    try:
        found: AttrTuple = ATTR.unpack(ATTR.pack(*_numbers(value)))
    except struct.error:
        raise BadState(f"{value!r:.40} are no attributes") from None
    return found


def _version(value: object) -> Version | None:
    if value is None:
        return None
    ino, change, mtime, size = _some(4, value)
    return ino, change, mtime, size


def _some(count: int, value: object) -> tuple[int, ...]:
    found = _numbers(value)
    if len(found) != count:
        raise BadState(f"{len(found)} numbers in place of {count}")
    return found


def _rows(value: object) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise BadState(f"{value!r:.40} is no list")
    return value


def _each(kind: type[_T], value: object) -> list[_T]:
    make: Callable[..., _T] = kind
    try:
        return [row if isinstance(row, kind) else make(*_rows(row)) for row in _rows(value)]
    except TypeError:
        raise BadState(f"a {kind.__name__} with more or fewer fields") from None


@attrs.frozen
class ServerRecord:
    """A server, and the name of its node; None: the daemon's own."""

    node: str | None = attrs.field(converter=_name)
    nd: int = attrs.field(converter=_number)
    pid: int = attrs.field(converter=_number)
    chid: int = attrs.field(converter=_number)
    salt: int = attrs.field(converter=_number)
    gives_tokens: bool = attrs.field(converter=_flag)


@attrs.frozen
class AliasRecord:
    """A further name in the directory with the number *parent*."""

    parent: int = attrs.field(converter=_number)
    name: bytes = attrs.field(converter=_bytes)


def _aliases(value: object) -> list[AliasRecord]:
    return _each(AliasRecord, value)


@attrs.frozen
class NodeRecord:
    """`parent`: its number, 0: none. `server`: its place among the servers."""

    nodeid: int = attrs.field(converter=_number)
    parent: int = attrs.field(converter=_number)
    name: bytes = attrs.field(converter=_bytes)
    named: bool = attrs.field(converter=_flag)
    server: int = attrs.field(converter=_number)
    attr: AttrTuple = attrs.field(converter=_attributes)
    lookups: int = attrs.field(converter=_number)
    aliases: list[AliasRecord] = attrs.field(converter=_aliases)


@attrs.frozen
class TokenRecord:
    """The token of a directory."""

    nodeid: int = attrs.field(converter=_number)
    token: bytes = attrs.field(converter=_bytes)


@attrs.frozen
class LockRecord:
    """A lock that is held, as `LockRequest` has it."""

    kind: int = attrs.field(converter=_number)
    start: int = attrs.field(converter=_number)
    end: int = attrs.field(converter=_number)
    owner: int = attrs.field(converter=_number)
    pid: int = attrs.field(converter=_number)
    whole: bool = attrs.field(converter=_flag)


def _locks(value: object) -> list[LockRecord]:
    return _each(LockRecord, value)


@attrs.frozen
class FileRecord:
    """An open file, as `File` has it; *dirty*: not all that was written through it was synced."""

    fh: int = attrs.field(converter=_number)
    nodeid: int = attrs.field(converter=_number)
    uid: int = attrs.field(converter=_number)
    gid: int = attrs.field(converter=_number)
    flags: int = attrs.field(converter=_number)
    token: bytes = attrs.field(converter=_bytes)
    as_opened: Version | None = attrs.field(converter=_version)
    dirty: bool = attrs.field(converter=_flag)
    written: int = attrs.field(converter=_number)
    error: int = attrs.field(converter=_number)
    unseen: bool = attrs.field(converter=_flag)
    held: list[LockRecord] = attrs.field(converter=_locks)


@attrs.frozen
class DirectoryRecord:
    """An open directory, as `Directory` has it."""

    fh: int = attrs.field(converter=_number)
    nodeid: int = attrs.field(converter=_number)
    uid: int = attrs.field(converter=_number)
    gid: int = attrs.field(converter=_number)
    pid: int = attrs.field(converter=_number)
    cookies: tuple[int, ...] = attrs.field(converter=_numbers)
    home: bool = attrs.field(converter=_flag)


@attrs.frozen
class State:
    """All of a mount. `next`: numbers of nodes and of what is open, from which on none was given. `nodes`: parents first."""

    minor: int
    expires: bool
    resends: bool
    next: tuple[int, int]
    nodes: list[NodeRecord]
    files: list[FileRecord]
    directories: list[DirectoryRecord]
    servers: list[ServerRecord]
    tokens: list[TokenRecord] = attrs.field(factory=list)
    """Not told by daemons of before."""

    def told(self) -> dict[str, object]:
        """As JSON can say it."""
        return {"version": VERSION} | {field.name: _plain(getattr(self, field.name)) for field in attrs.fields(State)}

    @classmethod
    def parse(cls, told: object) -> State:
        """Of what `told` gave. `BadState`."""
        if not isinstance(told, dict) or told.get("version") != VERSION:
            raise BadState("not a state, or one of another version")
        if missing := {field.name for field in attrs.fields(cls)} - told.keys() - {"tokens"}:
            raise BadState(f"a state without {', '.join(sorted(missing))}")
        following = _some(2, told["next"])
        return cls(
            _number(told["minor"]),
            _flag(told["expires"]),
            _flag(told["resends"]),
            (following[0], following[1]),
            _each(NodeRecord, told["nodes"]),
            _each(FileRecord, told["files"]),
            _each(DirectoryRecord, told["directories"]),
            _each(ServerRecord, told["servers"]),
            _each(TokenRecord, told.get("tokens", [])),
        )


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return [_plain(one) for one in attrs.astuple(value, recurse=False)] if attrs.has(type(value)) else value  # type: ignore[arg-type]
