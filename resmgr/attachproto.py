"""The messages with which a program attaches itself to the pathname space, and asks who serves what. Imports nothing that costs time.

To `(nd, PID_SYSTEM, CHID_ATTACH)`, network byte order:

    0           2       4                       8
    +-----------+-------+-----------------------+------
    | operation | flags | channel, or first row | path
    +-----------+-------+-----------------------+------

ATTACH (1): the sender's channel serves *path* from now on, for as long as the connection that the message came on. Flags are those of
`resmgr.pathspace.Attach`. DETACH (2): not any more. LIST (3): rows from the given one on, as many as fit the reply, without path; the
status is how many there are in all. The server's pid is the sender's, as its socket proved it. EXPORTS (4): what the asking user of
another node may do with the files of this one, as JSON, exports from the given one on; the status is how many there are in all.

A row: pid 4, uid 4, channel 4, flags 2, length of the path 2, length of the program's name 1; path, name.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage

REQUEST = struct.Struct("!HHI")
ATTACH = 1
DETACH = 2
LIST = 3
EXPORTS = 4
ROW = struct.Struct("!IIIHHB")
LIST_LEN = 64 * 1024
READ_ONLY = "=read"
"""What the daemon says among the roles of a remote client's node, when what it exports to that node is for reading only. No role of a
certificate begins with an equals sign."""


class Row(NamedTuple):
    """One attachment."""

    path: bytes
    pid: int
    uid: int
    chid: int
    flags: int
    program: str


def pack_row(row: Row) -> bytes:
    name = row.program.encode()[:255]
    return ROW.pack(row.pid, row.uid, row.chid, row.flags, len(row.path), len(name)) + row.path + name


def parse_rows(view: Buffer) -> list[Row]:
    rows: list[Row] = []
    at = 0
    while at < len(view):
        try:
            pid, uid, chid, flags, path, name = ROW.unpack_from(view, at)
        except struct.error:
            raise BadMessage("row cut short") from None
        at += ROW.size
        text = bytes(view[at : at + path + name])
        if len(text) != path + name:
            raise BadMessage("row's names cut short")
        at += path + name
        rows.append(Row(text[:path], pid, uid, chid, flags, text[path:].decode("utf-8", "backslashreplace")))
    return rows
