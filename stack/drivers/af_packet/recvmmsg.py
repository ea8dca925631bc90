"""recvmmsg(2) on a packet socket: many frames with one call, each into a cell of its own, with what the kernel says beside it.

    cell: virtio-net header, frame        rest: what of a merged run does not fit into the cell; takes memory only when it is used

The structures that the call takes are made once and filled by the kernel (`stack.linux.mmsg`).
"""

from __future__ import annotations

import socket

from stack.frame import Frame
from stack.linux import mmsg
from stack.linux.constants import AUXDATA, TP_STATUS_VLAN_VALID
from stack.linux.unfinished import CONTROL_SIZE, RUN_MAX, UNFINISHED, Restorer
from stack.wire import virtio_net

CELLS = 64
REST = (RUN_MAX + 4095) // 4096 * 4096
AUXDATA_AT = socket.CMSG_LEN(0)
SMALL = virtio_net.SIZE


class Cells:
    """See the head of this file. *room*: longest frame that a cell takes without its rest."""

    def __init__(self, sock: socket.socket, room: int, restorer: Restorer) -> None:
        self._restorer = restorer
        self.stride = stride = (virtio_net.SIZE + room + 15) // 16 * 16
        memory = bytearray(CELLS * stride)
        rests = bytearray(CELLS * REST)
        controls = bytearray(CELLS * CONTROL_SIZE)
        iovecs = bytearray(2 * CELLS * mmsg.IOVEC.size)
        cells_at, rests_at = mmsg.address(memory), mmsg.address(rests)
        for number in range(CELLS):
            mmsg.IOVEC.pack_into(iovecs, 2 * number * mmsg.IOVEC.size, cells_at + number * stride, stride)
            mmsg.IOVEC.pack_into(iovecs, (2 * number + 1) * mmsg.IOVEC.size, rests_at + number * REST, REST)
        headers = mmsg.headers(CELLS, mmsg.address(iovecs), 2, controls=(mmsg.address(controls), CONTROL_SIZE))
        self.memory = memoryview(memory)
        self._kinds = self.memory.cast("H")
        self._rests = memoryview(rests)
        self._controls = memoryview(controls)
        self._iovecs = iovecs
        self._receiver = mmsg.Receiver(sock, headers)

    def take(self, limit: int) -> list[Frame]:
        """What is there, of at most *limit* and CELLS messages; views of `memory`, or bytes. OSError, never EAGAIN."""
        frames: list[Frame] = []
        memory, kinds, stride = self.memory, self._kinds, self.stride
        begin = place = 0
        for number, size in enumerate(self._receiver.receive(limit)):
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
