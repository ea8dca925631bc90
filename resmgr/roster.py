"""What the accounts of a machine are called: the list that a node asks of another one whose users it maps by name, as bytes.

Asked: version 1 (1), three zero bytes, index of the first entry that is wanted (4). Answered: entries, each kind (1: user 1, group 2),
length of the name (1), number (4), name; the status is the index of the first that found no room, 0 when these are the last.
docs/protocol/accounts.md.
"""

from __future__ import annotations

import grp
import pwd
import struct
from collections.abc import Sequence
from typing import NamedTuple

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage

USER = 1
GROUP = 2
ENTRIES_MAX = 8192
"""Of one machine. Further ones are not told, and not believed."""
PAGE_MAX = 60 * 1024
"""Bytes of one answer."""
NAME_MAX = 255
ID_MAX = 0xFFFFFFFE
_ASKED = struct.Struct("!BxxxI")
_ENTRY = struct.Struct("!BBI")


class Entry(NamedTuple):
    """One account or group."""

    kind: int
    number: int
    name: str


def pack_question(index: int) -> bytes:
    return _ASKED.pack(1, index)


def parse_question(data: Buffer) -> int:
    """Index of the first entry that is wanted. BadMessage for anything else."""
    if len(data) != _ASKED.size or bytes(data[:4]) != b"\1\0\0\0":
        raise BadMessage("question for accounts of another kind")
    index: int = _ASKED.unpack(data)[1]
    if index > ENTRIES_MAX:
        raise BadMessage("question for more accounts than there may be")
    return index


def pack_page(entries: Sequence[Entry], index: int) -> tuple[int, bytes]:
    """(status, data) of the answer that begins with entry *index*."""
    parts: list[bytes] = []
    room = PAGE_MAX
    for at in range(index, len(entries)):
        kind, number, name = entries[at]
        encoded = name.encode()
        room -= _ENTRY.size + len(encoded)
        if room < 0:
            return at, b"".join(parts)
        parts.append(_ENTRY.pack(kind, len(encoded), number) + encoded)
    return 0, b"".join(parts)


def parse_page(data: Buffer) -> list[Entry]:
    """BadMessage for what `pack_page` does not make."""
    entries: list[Entry] = []
    raw = bytes(data)
    offset = 0
    while offset < len(raw):
        try:
            kind, length, number = _ENTRY.unpack_from(raw, offset)
        except struct.error:
            raise BadMessage("account cut short") from None
        offset += _ENTRY.size
        encoded = raw[offset : offset + length]
        offset += length
        if kind not in (USER, GROUP) or not length or len(encoded) != length or number > ID_MAX:
            raise BadMessage("account of another kind, or cut short")
        try:
            name = encoded.decode()
        except UnicodeDecodeError:
            raise BadMessage("an account's name is no text") from None
        if not name.isprintable():
            raise BadMessage("an account's name is no text")
        entries.append(Entry(kind, number, name))
    if len(entries) > ENTRIES_MAX:
        raise BadMessage("more accounts than there may be")
    return entries


def read_entries() -> list[Entry]:
    """This machine's, as its database lists them. Blocks, perhaps for long."""
    found = [Entry(USER, user.pw_uid, user.pw_name) for user in pwd.getpwall()]
    found += [Entry(GROUP, group.gr_gid, group.gr_name) for group in grp.getgrall()]
    good = [entry for entry in found if entry.name.isprintable() and 0 < len(entry.name.encode()) <= NAME_MAX and entry.number <= ID_MAX]
    return good[:ENTRIES_MAX]


def matched(theirs: Sequence[Entry], ours: Sequence[Entry]) -> tuple[dict[int, int], dict[int, int]]:
    """(users, groups): number there to number here of who has the same name. Number 0 of neither side is among them, and of several of one
    number or name the first one counts."""
    tables: tuple[dict[int, int], dict[int, int]] = {}, {}
    for kind, table in ((USER, tables[0]), (GROUP, tables[1])):
        here: dict[str, int] = {}
        for entry in ours:
            if entry.kind == kind:
                here.setdefault(entry.name, entry.number)
        seen: set[str] = set()
        for entry in theirs:
            number = here.get(entry.name)
            if entry.kind == kind and number and entry.number and entry.name not in seen:
                seen.add(entry.name)
                table.setdefault(entry.number, number)
    return tables
