"""The message with which a node's daemon tells another its own global names. docs/protocol/names.md, "From node to node"."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.names.protocol import Scope, is_name

VERSION = 1
PUT = 1
DROP = 2
ENTRIES_MAX = 512
MESSAGE_MAX = 64 * 1024
LOAD_MAX = 65535

HEAD = struct.Struct("!BBHHHQ")
ENTRY = struct.Struct("!BBHQ")
OWNER = struct.Struct("!IIII")


class Put(NamedTuple):
    """A record of the sender is there."""

    serial: int
    name: bytes
    pid: int
    chid: int
    uid: int
    gid: int


class Drop(NamedTuple):
    """A record of the sender is gone."""

    serial: int


Entry = Put | Drop


class Told(NamedTuple):
    generation: int
    load: int
    entries: list[Entry]


def size(entry: Entry) -> int:
    """Bytes of it in a message."""
    return ENTRY.size + (OWNER.size + len(entry.name) if isinstance(entry, Put) else 0)


def pack(generation: int, load: int, entries: Iterable[Entry]) -> bytes:
    """At most ENTRIES_MAX entries and MESSAGE_MAX bytes; the caller counts."""
    parts = []
    count = 0
    for entry in entries:
        count += 1
        if isinstance(entry, Put):
            parts.append(ENTRY.pack(PUT, len(entry.name), 0, entry.serial) + OWNER.pack(entry.pid, entry.chid, entry.uid, entry.gid))
            parts.append(entry.name)
        else:
            parts.append(ENTRY.pack(DROP, 0, 0, entry.serial))
    return b"".join((HEAD.pack(VERSION, 0, count, load, 0, generation), *parts))


def parse(data: Buffer) -> Told:
    """BadMessage for anything that `pack` does not make."""
    data = bytes(data)
    if not HEAD.size <= len(data) <= MESSAGE_MAX:
        raise BadMessage("names: length")
    version, zero, count, load, zero_too, generation = HEAD.unpack_from(data)
    if version != VERSION or zero or zero_too or count > ENTRIES_MAX:
        raise BadMessage("names: version or count")
    entries: list[Entry] = []
    place = HEAD.size
    for _ in range(count):
        try:
            kind, length, nothing, serial = ENTRY.unpack_from(data, place)
            place += ENTRY.size
            if nothing or kind not in (PUT, DROP) or (kind == DROP and length):
                raise BadMessage("names: entry")
            if kind == DROP:
                entries.append(Drop(serial))
                continue
            pid, chid, uid, gid = OWNER.unpack_from(data, place)
            place += OWNER.size
        except struct.error:
            raise BadMessage("names: cut short") from None
        name = data[place : place + length]
        place += length
        if len(name) != length or not is_name(name, Scope.GLOBAL):
            raise BadMessage("names: no name")
        entries.append(Put(serial, name, pid, chid, uid, gid))
    if place != len(data):
        raise BadMessage("names: more than its count")
    return Told(generation, load, entries)
