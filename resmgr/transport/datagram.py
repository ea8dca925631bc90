"""How messages lie in the datagrams of a local socket (AF_UNIX, SOCK_SEQPACKET).

A datagram is one or more items; an item is four bytes, then its bytes. The low 24 bits are the item's length; the top bit (MORE) says that
the message goes on in the next item. So many small messages share one system call, and one large message takes several datagrams.

    0             4
    +-+-----------+------------ - - - --+-+-----------+----
    |M|  length   | message, or part    |M|  length   | ...
    +-+-----------+------------ - - - --+-+-----------+----

Why datagrams and not a stream: descriptors stay with the message they came with, and bytes of a broken or hostile sender spoil one
datagram, not the place where the next message begins. One of 64 KiB costs 11 µs to send and receive, one of 128 KiB 18 µs.

Imports only what a small program can afford.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.message import MESSAGE_MAX

DATAGRAM_MAX: Final = 65536
MORE: Final = 1 << 31
LENGTH: Final = struct.Struct("!I")
LENGTH_SIZE: Final = 4
ITEM_MAX: Final = DATAGRAM_MAX - LENGTH_SIZE
SEND_DATAGRAM: Final = struct.Struct("!IBBBBIIIQ")
REPLY_DATAGRAM: Final = struct.Struct("!IBBBBIIq")
"""The item's length and the head of a SEND or REPLY that is alone in its datagram."""


def fragments(parts: Sequence[Buffer], size: int) -> list[list[Buffer]]:
    """A message of *size* bytes that is too large for one datagram, as the parts of several. The parts are referred to, not copied."""
    datagrams: list[list[Buffer]] = []
    room = 0
    for part in parts:
        view = memoryview(part)
        while len(view):
            if not room:
                room = min(size, ITEM_MAX)
                size -= room
                datagrams.append([LENGTH.pack(room | (MORE if size else 0))])
            piece = view[:room]
            datagrams[-1].append(piece)
            room -= len(piece)
            view = view[len(piece) :]
    return datagrams


class Assembler:
    """Takes datagrams, gives messages. At most one message is unfinished at a time, and it is never longer than MESSAGE_MAX."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[memoryview] = []
        self._size = 0

    @property
    def idle(self) -> bool:
        """No message is unfinished."""
        return not self._parts

    def feed(self, datagram: bytes) -> list[memoryview]:
        """The messages that *datagram* completes; they refer to its memory. BadMessage if it does not parse: the link is then unusable."""
        view = memoryview(datagram)
        end = len(view)
        if end >= LENGTH_SIZE and not self._parts and LENGTH.unpack_from(view)[0] == end - LENGTH_SIZE:
            return [view[LENGTH_SIZE:]]  # the common case: one whole message
        messages: list[memoryview] = []
        offset = 0
        while offset < end:
            if end - offset < LENGTH_SIZE:
                raise BadMessage("datagram cut short")
            (length,) = LENGTH.unpack_from(view, offset)
            offset += LENGTH_SIZE
            more = length & MORE
            length &= ~MORE
            if length > end - offset:
                raise BadMessage("item is longer than its datagram")
            item = view[offset : offset + length]
            offset += length
            if more or self._parts:
                self._size += length
                if self._size > MESSAGE_MAX or not length:
                    raise BadMessage("message is longer than any may be")
                self._parts.append(item)
                if more:
                    continue
                item = memoryview(b"".join(self._parts))
                self._parts = []
                self._size = 0
            messages.append(item)
        return messages
