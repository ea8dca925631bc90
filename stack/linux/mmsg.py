"""Many messages with one call, sendmmsg(2) and recvmmsg(2): the structures, which are made once.

Each message is a `struct mmsghdr` that points to `iovecs`, `struct iovec`, and perhaps to room for an address and for control data. Whoever
makes them keeps the memory.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from stack.linux.constants import MSG_DONTWAIT

MMSGHDR = struct.Struct("@PIPNPNi0PI0P")
"""struct mmsghdr: name, its length, iovecs, their number, control data, its length, flags; bytes received or sent."""
IOVEC = struct.Struct("@PN")
"""struct iovec: where, how long."""
WORDS = MMSGHDR.size // 4
_LENGTH_AT = struct.calcsize("@PIPNPNi0P") // 4
_CONTROL_LENGTH_AT = struct.calcsize("@PIPNPN") - struct.calcsize("N")

Room = tuple[int, int]
"""Address of the first message's, and bytes for each; the others follow."""
NO_ROOM: Room = (0, 0)


def headers(count: int, iovecs: int, each: int = 1, names: Room = NO_ROOM, controls: Room = NO_ROOM) -> bytearray:
    """*count* messages with *each* iovecs, which begin at the address *iovecs*."""
    made = bytearray(count * MMSGHDR.size)
    for number in range(count):
        name, control = names[0] + number * names[1], controls[0] + number * controls[1]
        place = iovecs + number * each * IOVEC.size
        MMSGHDR.pack_into(made, number * MMSGHDR.size, name, names[1], place, each, control, controls[1], 0, 0)
    return made


def address(memory: bytearray | memoryview) -> int:
    """Where memory that can be written lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Receiver:
    """recvmmsg with *made* headers on *sock*, without letting go of the interpreter lock (PyDLL): it never blocks."""

    def __init__(self, sock: socket.socket, made: bytearray) -> None:
        self._sock = sock
        self._count = len(made) // MMSGHDR.size
        self._headers = memoryview(made)
        self._words = self._headers.cast("I")
        self._fresh = bytes(made)
        self._used = 0
        self._at = ctypes.c_void_p(address(made))
        self._recvmmsg = ctypes.PyDLL(None, use_errno=True).recvmmsg

    def receive(self, limit: int) -> list[int]:
        """The length of each message that was there, at most *limit*. OSError, never EAGAIN."""
        used = self._used * MMSGHDR.size
        self._headers[:used] = self._fresh[:used]
        self._used = 0
        count = self._recvmmsg(self._sock.fileno(), self._at, min(limit, self._count), MSG_DONTWAIT, None)
        if count <= 0:
            code = ctypes.get_errno() if count < 0 else 0
            if code in (0, errno.EAGAIN, errno.EINTR):
                return []
            raise OSError(code, "recvmmsg")
        self._used = count
        return self._words[_LENGTH_AT : count * WORDS : WORDS].tolist()

    def control_length(self, number: int) -> int:
        """Bytes of control data that the message *number* brought."""
        (used,) = struct.unpack_from("@N", self._headers, number * MMSGHDR.size + _CONTROL_LENGTH_AT)
        return int(used)
