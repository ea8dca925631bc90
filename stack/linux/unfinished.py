"""What the kernel hands to a packet socket is not always what was, or would be, on a wire. This puts it right.

- A VLAN tag is taken out of the frame and told beside it: it is put back in place, into the room in front of the frame.
- A checksum that a card was to compute is partial, since frames from this machine's own sockets, from virtual machines and other
  namespaces meet no card; and a run of TCP segments or UDP datagrams was merged on receipt (GRO), or not cut yet (GSO). The
  virtio-net header in front of the frame tells (`stack.wire.segmentation`).
  A run that is longer than the MTU allows may be handed up whole (`stack.core.runs`).
- A frame that is longer than a slot of the ring, as such runs are, waits whole in the socket's queue.

Room in front: the virtio-net header has been read when a tag is written over it.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Final

from stack.frame import BadFrame, Frame
from stack.linux.constants import AUXDATA, SOL_PACKET, TP_STATUS_VLAN_TPID_VALID, TP_STATUS_VLAN_VALID
from stack.wire import virtio_net
from stack.wire.ethernet import HEADER_SIZE, MAC_SIZE, TAG, TAG_SIZE, TAGS_MAX, TPID_8021Q
from stack.wire.run import Run
from stack.wire.segmentation import TooManySegments, finished
from stack.wire.virtio_net import VirtioNet

RUN_MAX: Final = virtio_net.SIZE + HEADER_SIZE + TAG_SIZE * TAGS_MAX + 65535
"""Longest message that a run can be."""
UNFINISHED = int.from_bytes(bytes((virtio_net.NEEDS_CSUM, 0xFF)), sys.byteorder)
"""Of the virtio-net header's first two bytes: a partial checksum, or any gso type."""
CONTROL_SIZE = socket.CMSG_SPACE(AUXDATA.size)
ADDRESSES_SIZE: Final = 2 * MAC_SIZE


class Restorer:
    """Puts frames right. What it counts is told by `tell`: `truncated` frames that are longer than the MTU allows or that a
    filter cut short, `refused` those whose header says what cannot be."""

    def __init__(self, mtu: int) -> None:
        self.truncated = 0
        self.refused = 0
        self.tiny = 0
        """Runs of too many segments: a neighbour must not make 2,000 frames of work with one."""
        self.checksums = 0
        self.runs = 0
        self.tags = 0
        self.whole = False
        """Runs that are longer than the MTU allows become a `Run`."""
        self.carried = 0
        self.set_mtu(mtu)

    def set_mtu(self, mtu: int) -> None:
        self._longest = HEADER_SIZE + TAG_SIZE * TAGS_MAX + mtu

    def put_right(self, memory: memoryview, begin: int, length: int, status: int, tci: int, tpid: int) -> list[Frame]:
        """The frames that the frame at *begin* is: itself, as a view of *memory*, or the segments of a run.

        A virtio-net header ends at *begin*. *status* is TP_STATUS_*, *tci* and *tpid* the tag that was taken out.
        """
        header = virtio_net.HEADER.unpack_from(memory, begin - virtio_net.SIZE)
        flags, kind, head, size, start, offset = header
        if status & TP_STATUS_VLAN_VALID:
            if length < ADDRESSES_SIZE:
                self.refused += 1
                return []
            self.tags += 1
            start += TAG_SIZE
            begin -= TAG_SIZE
            length += TAG_SIZE
            memory[begin : begin + ADDRESSES_SIZE] = memory[begin + TAG_SIZE : begin + TAG_SIZE + ADDRESSES_SIZE]
            TAG.pack_into(memory, begin + ADDRESSES_SIZE, tpid if status & TP_STATUS_VLAN_TPID_VALID else TPID_8021Q, tci)
        frame = memory[begin : begin + length]
        if kind == virtio_net.GSO_NONE:
            if length > self._longest:
                self.truncated += 1
                return []
            if not flags & virtio_net.NEEDS_CSUM:
                return [frame]
            self.checksums += 1
        try:
            made = VirtioNet(flags, kind, head, size, start, offset)
            if kind == virtio_net.GSO_NONE:
                return finished(made, frame)
            if self.whole and length > self._longest:
                run = Run.make(made, frame)
                self.carried += 1
                return [run]
            self.runs += 1
            return finished(made, frame)
        except TooManySegments:
            self.tiny += 1
            return []
        except BadFrame:
            self.refused += 1
            return []

    def go_on_from(self, before: Restorer) -> None:
        """Count on where another one stopped."""
        self.truncated += before.truncated
        self.refused += before.refused
        self.tiny += before.tiny
        self.checksums += before.checksums
        self.runs += before.runs
        self.tags += before.tags
        self.carried += before.carried
        self.whole = before.whole

    def tell(self, count: Callable[[str, int], None]) -> None:
        """Tell *count* what was dropped since the last time."""
        if not (self.truncated or self.tiny or self.refused):
            return
        for reason, number in (("rx_truncated", self.truncated), ("rx_tiny_segments", self.tiny), ("rx_unfinished", self.refused)):
            if number:
                count(reason, number)
        self.truncated = self.tiny = self.refused = 0

    def info(self) -> dict[str, str | int]:
        """For people: how often there was something to do."""
        told = {
            "tags put back": self.tags,
            "checksums completed": self.checksums,
            "runs taken apart": self.runs,
            "runs left whole": self.carried,
        }
        return {label: number for label, number in told.items() if number}


class Messages:
    """Single messages, which are longer than a slot. *sock* has PACKET_VNET_HDR and PACKET_AUXDATA set."""

    def __init__(self, sock: socket.socket, restorer: Restorer) -> None:
        self._sock = sock
        self._restorer = restorer
        self._room = memoryview(bytearray(RUN_MAX + 1))

    def take(self) -> list[Frame]:
        """Receive one. The frames are bytes. OSError when there is none."""
        try:
            size, control, _, _ = self._sock.recvmsg_into((self._room,), CONTROL_SIZE)
        except BlockingIOError:
            raise
        except OSError:
            # The interface went down: the error has been fetched now, and the message is still there.
            size, control, _, _ = self._sock.recvmsg_into((self._room,), CONTROL_SIZE)
        status = tci = tpid = 0
        for level, _, data in control:
            if level == SOL_PACKET:
                status, _, _, tci, tpid = AUXDATA.unpack_from(data)
        if size > RUN_MAX or size < virtio_net.SIZE:
            self._restorer.truncated += 1
            return []
        frames = self._restorer.put_right(self._room, virtio_net.SIZE, size - virtio_net.SIZE, status, tci, tpid)
        return [bytes(frame) if isinstance(frame, memoryview) else frame for frame in frames]
