"""The side queue of a packet socket: a second socket on the interface, for frames that a screen sets apart (`stack.core.screen`).

Its ring is short and it is drained within a budget: BATCH frames, and when there were as many, none for PAUSE seconds. What does not fit is
dropped by the kernel. So whatever a stranger sends costs a bounded part of the node's time, and none of it pushes a frame out of the main
ring.
A frame that the kernel cut short is a sample of what the screen shed.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from resmgr.dispatch import Dispatch, Timer
from stack.core.driver import Port
from stack.core.screen import Screen
from stack.drivers.af_packet.filter import side_program
from stack.drivers.af_packet.receiver import Receiver
from stack.filter.bpf.attach import attach
from stack.linux.constants import ETH_P_ALL, PACKET_STATISTICS, SOL_PACKET

BATCH = 32
PAUSE = 0.004
"""32 frames in 4 ms are 8,000 a second; at 6 µs for one that is refused, 5 % of a core."""
MTU = 1500
"""Longest payload that the ring takes: longer frames are no handshakes."""
RING = 1 << 17
"""Bytes: 80 frames."""


class SideQueue:
    """See the head of this file. *sock* is a packet socket that receives nothing yet; it is the queue's from now on."""

    def __init__(self, dispatch: Dispatch, sock: socket.socket, receiver: Receiver, port: Port) -> None:
        self._dispatch = dispatch
        self._sock = sock
        self._receiver = receiver
        self._port = port
        self._timer: Timer | None = None
        self._screens: Mapping[int, Screen] = {}
        self._delivering = False
        self._closed = False
        self._sample_of = 0
        self.shed = 0
        """Frames, as far as samples tell: each stood for as many as its screen said at that time."""
        self.lost = 0
        dispatch.attach_fd(sock.fileno(), self._readable)

    def bind(self, name: str) -> None:
        """Receive from that interface."""
        self._sock.bind((name, ETH_P_ALL))

    def screen(self, ethertypes: frozenset[int] | None, screens: Mapping[int, Screen]) -> None:
        """OSError when the kernel refuses the program."""
        self._screens = screens
        if screens:  # samples of the last ones may still lie in the ring
            self._sample_of = max(screen.sample_of for screen in screens.values())
        attach(self._sock, side_program(ethertypes, screens))

    def _readable(self) -> None:
        receiver = self._receiver
        try:
            frames = receiver.take(BATCH)
        except OSError:
            # The interface went down; the main socket's driver hears of it too.
            return
        count = len(frames) + receiver.restorer.truncated
        if count == 0:
            receiver.give_back()
            self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            return
        # Samples of what the screen shed; and frames too long for the ring, which nobody misses.
        self.shed += receiver.restorer.truncated * self._sample_of
        receiver.restorer.truncated = 0
        self._delivering = True
        try:
            if frames:
                self._port.deliver(frames)
        finally:
            self._delivering = False
            if self._closed:
                receiver.close()
            else:
                receiver.give_back()
        if not self._closed and count >= BATCH:
            self._dispatch.want_read(self._sock.fileno(), False)
            self._timer = self._dispatch.call_at(self._dispatch.now() + PAUSE, self._resume)
            for screen in self._screens.values():
                screen.pressed()

    def _resume(self) -> None:
        self._timer = None
        self._dispatch.want_read(self._sock.fileno(), True)

    def count_lost(self) -> int:
        """Frames that found no room since the last call."""
        _, lost = struct.unpack("II", self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self.lost += lost
        return int(lost)

    def describe(self) -> str:
        return self._receiver.describe()

    def close(self) -> None:
        """The socket is the driver's."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._dispatch.detach_fd(self._sock.fileno())
        if not self._delivering:
            self._receiver.close()
