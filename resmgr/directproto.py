"""What programs and their daemon say to each other about direct links (docs/protocol/direct.md). Only on the local socket.

Messages begin as those of `resmgr.message` do:

| kind   | id                  | then                              |
|--------|---------------------|-----------------------------------|
| OFFER  | most links          | none                              |
| DIRECT | request             | pid u32, chid u32                 |
| LINKED | request             | status i32; one descriptor if 0   |
| ACCEPT | link                | connect block; one descriptor     |
| UNLINK | link; with flag TO_CLIENT the request | none            |

Imports only what a small program can afford.
"""

from __future__ import annotations

import struct
from typing import Final

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.message import BLOCK, ERRNO_MAX, HEADER, ConnectBlock, pack_block, parse_block

OFFER: Final = 12
DIRECT: Final = 13
LINKED: Final = 14
ACCEPT: Final = 15
UNLINK: Final = 16

BROKERS: Final = 1
"""Flag of HELLO: this daemon makes direct links."""
TO_CLIENT: Final = 1
"""Flag of the daemon's UNLINK: the id is the client's request. The two sides of a program number their links apart."""
CHID_BITS: Final = 20
"""Channel ids of one link to the daemon; above them the link's number within the process."""
LINKS_PER_SERVER = 256
"""Direct links to one link of a server. Stops clients from using up its descriptors; the rest go through the daemon."""
LINKS_PER_CLIENT = 256
"""Direct links of one link of a client. Stops a client from filling the daemon's tables."""

_DIRECT = struct.Struct("!BBBBIII")
_LINKED = struct.Struct("!BBBBIi")


def links_offered(open_files: int) -> int:
    """How many links a program takes that may have *open_files* descriptors: the rest are for its own work."""
    return min(LINKS_PER_SERVER, open_files // 4)


def pack_bare(kind: int, identifier: int, flags: int = 0) -> bytes:
    """OFFER, UNLINK."""
    return HEADER.pack(kind, flags, 0, 0, identifier)


def pack_direct(request: int, pid: int, chid: int) -> bytes:
    return _DIRECT.pack(DIRECT, 0, 0, 0, request, pid, chid)


def parse_direct(view: Buffer) -> tuple[int, int, int]:
    """request, pid, chid."""
    if len(view) != _DIRECT.size:
        raise BadMessage("DIRECT has a wrong length")
    _, _, _, _, request, pid, chid = _DIRECT.unpack_from(view)
    return request, pid, chid


def pack_linked(request: int, status: int) -> bytes:
    return _LINKED.pack(LINKED, 0, 0, 0 if status else 1, request, status)


def parse_linked(view: Buffer) -> tuple[int, int]:
    """request, status."""
    if len(view) != _LINKED.size:
        raise BadMessage("LINKED has a wrong length")
    _, _, _, _, request, status = _LINKED.unpack_from(view)
    if not -ERRNO_MAX <= status <= 0:
        raise BadMessage("LINKED contradicts itself")
    return request, status


def pack_accept(link: int, pid: int, uid: int, gid: int, groups: tuple[int, ...]) -> bytes:
    return HEADER.pack(ACCEPT, 0, 0, 1, link) + pack_block(ConnectBlock(0, 0, 0, pid, uid, gid, groups))


def parse_accept(view: Buffer) -> tuple[int, ConnectBlock]:
    """link, the client (pid, uid, gid, groups)."""
    if len(view) < HEADER.size + BLOCK.size:
        raise BadMessage("ACCEPT cut short")
    block, end = parse_block(view, HEADER.size)
    if end != len(view):
        raise BadMessage("ACCEPT has a wrong length")
    link: int = HEADER.unpack_from(view)[4]
    return link, block
