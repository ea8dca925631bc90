"""The head of typed messages. `resmgr.typed.interface` says what it means."""

from __future__ import annotations

import struct

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage

MAGIC = 0x716D
FORM = 1
HEAD = struct.Struct("!HBBIHH")
REPLY_BIT = 0x8000
OTHER = 0xFFFF
DESCRIBE = 0x7FFF
TYPE_MAX = 0x7FFE
REQUEST_MAX = 1 << 20
"""Bytes of a request; a server answers longer ones with EMSGSIZE."""
REPLY_MAX = 1 << 20
"""Bytes that a client has room for."""
NAME_MAX = 255


def parse_head(view: Buffer) -> tuple[int, int, int]:
    """interface, version, type. BadMessage for what is no typed message."""
    if len(view) < HEAD.size:
        raise BadMessage("no typed message")
    magic, form, zero, interface, version, number = HEAD.unpack_from(view)
    if (magic, form, zero) != (MAGIC, FORM, 0):
        raise BadMessage("no typed message")
    return interface, version, number
