"""recvmmsg(2) on a packet socket: many frames with one call, each into a cell of its own, with what the kernel says beside it.

    cell: virtio-net header, frame        rest: what of a merged run does not fit into the cell; takes memory only when it is used

The structures that the call takes are made once and filled by the kernel. The function is called without letting go of the interpreter
lock (PyDLL): the call never blocks.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from stack.frame import Frame
from stack.linux.constants import AUXDATA, MSG_DONTWAIT, TP_STATUS_VLAN_VALID
from stack.linux.unfinished import CONTROL_SIZE, RUN_MAX, UNFINISHED, Restorer
from stack.wire import virtio_net

CELLS = 64
REST = (RUN_MAX + 4095) // 4096 * 4096
HEADER = struct.Struct("@PIPNPNi0PI0P")
"""struct mmsghdr: name, its length, iovecs, their number, control data, its length, flags; bytes received."""
WORDS = HEADER.size // 4
RECEIVED_AT = struct.calcsize("@PIPNPNi0P") // 4
IOVEC = struct.Struct("@PN")
AUXDATA_AT = socket.CMSG_LEN(0)
SMALL = virtio_net.SIZE


class Cells:
    """See the head of this file. *room*: longest frame that a cell takes without its rest."""

    def __init__(self, sock: socket.socket, room: int, restorer: Restorer) -> None:
        self._sock = sock
        self._restorer = restorer
        self.stride = stride = (virtio_net.SIZE + room + 15) // 16 * 16
        memory = bytearray(CELLS * stride)
        rests = bytearray(CELLS * REST)
        controls = bytearray(CELLS * CONTROL_SIZE)
        iovecs = bytearray(2 * CELLS * IOVEC.size)
        headers = bytearray(CELLS * HEADER.size)
        starts = [_address(one) for one in (memory, rests, controls, iovecs)]
        for number in range(CELLS):
            place = 2 * number * IOVEC.size
            IOVEC.pack_into(iovecs, place, starts[0] + number * stride, stride)
            IOVEC.pack_into(iovecs, place + IOVEC.size, starts[1] + number * REST, REST)
            HEADER.pack_into(
                headers, number * HEADER.size, 0, 0, starts[3] + place, 2, starts[2] + number * CONTROL_SIZE, CONTROL_SIZE, 0, 0
            )
        self.memory = memoryview(memory)
        self._kinds = self.memory.cast("H")
        self._rests = memoryview(rests)
        self._controls = memoryview(controls)
        self._iovecs = iovecs
        self._headers = memoryview(headers)
        self._words = self._headers.cast("I")
        self._fresh = bytes(headers)
        self._used = 0
        self._at = ctypes.c_void_p(_address(headers))
        self._recvmmsg = ctypes.PyDLL(None, use_errno=True).recvmmsg

    def take(self, limit: int) -> list[Frame]:
        """What is there, of at most *limit* and CELLS messages; views of `memory`, or bytes. OSError, never EAGAIN."""
        used = self._used * HEADER.size
        self._headers[:used] = self._fresh[:used]
        count = self._recvmmsg(self._sock.fileno(), self._at, min(limit, CELLS), MSG_DONTWAIT, None)
        if count <= 0:
            code = ctypes.get_errno() if count < 0 else 0
            if code in (0, errno.EAGAIN, errno.EINTR):
                return []
            raise OSError(code, "recvmmsg")
        self._used = count
        frames: list[Frame] = []
        memory, kinds, stride = self.memory, self._kinds, self.stride
        sizes = self._words[RECEIVED_AT : count * WORDS : WORDS].tolist()
        begin = place = 0
        for number, size in enumerate(sizes):
            status, whole, received, tci, tpid = AUXDATA.unpack_from(self._controls, number * CONTROL_SIZE + AUXDATA_AT)
            if whole > received or size < SMALL:
                self._restorer.truncated += 1
            elif size <= stride and not (status & TP_STATUS_VLAN_VALID or kinds[begin >> 1] & UNFINISHED):
                frames.append(memory[begin + SMALL : begin + size])
            elif size <= stride:
                frames += self._restorer.put_right(memory, begin + SMALL, size - SMALL, status, tci, tpid)
            else:
                rest = self._rests[place : place + size - stride]
                joined = memoryview(bytearray(b"".join((memory[begin : begin + stride], rest))))
                frames += self._restorer.put_right(joined, SMALL, size - SMALL, status, tci, tpid)
            begin += stride
            place += REST
        return frames


def _address(memory: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
