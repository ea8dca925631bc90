"""A man in the middle, as a program for a machine of a test cluster: everything between two sides of the network goes through him.

    python -m qnetpy.testing.middleman --cable eth0:eth1 [--cable eth2:eth3] [--seed N]

A cable is two interfaces of this machine, to neither of which the nodes of the other side have another way. He hands on every frame, and
does to those of our protocol what the act says that a line on standard input names (`qnetpy.testing.tamper`; "honest" at first). Each such
line is answered by one line of JSON: what was done since the one before. It ends at the end of standard input. It needs CAP_NET_RAW and
knows no key.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import select
import socket
import struct
import sys
import time
from collections import Counter

from qnetpy.testing.tamper import ACTS, Sending, Tamper
from stack.linux.buffers import widen
from stack.linux.constants import ETH_P_ALL, PACKET_IGNORE_OUTGOING, PACKET_STATISTICS, SOL_PACKET

PACKET_ADD_MEMBERSHIP = 1
PACKET_MR_PROMISC = 1
FRAME_MAX = 65536
BUFFER = 16 << 20
BATCH = 64
HELD_MAX = 65536
"""Frames kept back at a time; more are lost, and counted."""


def open_end(interface: str) -> socket.socket:
    """Hears and sends everything on *interface*."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    widen(sock, socket.SO_RCVBUF, BUFFER)
    sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("iHH8s", socket.if_nametoindex(interface), PACKET_MR_PROMISC, 0, b""))
    sock.bind((interface, ETH_P_ALL))
    return sock


class Middleman:
    """The runner of a `Tamper`: sockets, clock, and frames that are kept back."""

    def __init__(self, interfaces: list[str], tamper: Tamper) -> None:
        self.tamper = tamper
        self.counted: Counter[str] = Counter()
        self._ends = [open_end(name) for name in interfaces]
        self._held: list[tuple[float, int, int, bytes]] = []
        self._count = 0

    def run(self) -> None:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        ends = {sock.fileno(): end for end, sock in enumerate(self._ends)}
        for fd in ends:
            poll.register(fd, select.POLLIN)
        while True:
            timeout = None if not self._held else max(0.0, self._held[0][0] - time.monotonic()) * 1000
            for fd, _ in poll.poll(timeout):
                if fd in ends:
                    self._hear(ends[fd])
                elif not self._told():
                    return
            now = time.monotonic()
            while self._held and self._held[0][0] <= now:
                _, _, end, frame = heapq.heappop(self._held)
                self._send(end, frame)

    def _told(self) -> bool:
        """A line with an act: False at the end of the input."""
        line = sys.stdin.readline()
        if not line:
            return False
        for sock in self._ends:
            self.counted["missed"] += struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        print(json.dumps({"act": self.tamper.act, "did": self.tamper.did.total(), **self.counted}), flush=True)
        self.counted.clear()
        self.tamper.did.clear()
        self.tamper.act = line.strip()
        return True

    def _hear(self, end: int) -> None:
        sock = self._ends[end]
        for _ in range(BATCH):
            try:
                frame = sock.recv(FRAME_MAX)
            except BlockingIOError:
                return
            self.counted["heard"] += 1
            for sending in self.tamper.heard(end, frame):
                if sending.delay:
                    self._hold(sending)
                else:
                    self._send(sending.end, sending.frame)

    def _hold(self, sending: Sending) -> None:
        if len(self._held) >= HELD_MAX:
            self.counted["held too many"] += 1
            return
        self._count += 1
        heapq.heappush(self._held, (time.monotonic() + sending.delay, self._count, sending.end, sending.frame))

    def _send(self, end: int, frame: bytes) -> None:
        try:
            self._ends[end].send(frame)
            self.counted["sent"] += 1
        except OSError:
            self.counted["not sent"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="middleman", description=__doc__)
    parser.add_argument("--cable", required=True, action="append", metavar="IF:IF")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--act", choices=["honest", *ACTS], default="honest")
    args = parser.parse_args()
    interfaces = [name for cable in args.cable for name in cable.split(":")]
    tamper = Tamper(len(args.cable), args.seed)
    tamper.act = args.act
    middleman = Middleman(interfaces, tamper)
    print(json.dumps({"pid": os.getpid(), "cables": args.cable}), flush=True)
    middleman.run()


if __name__ == "__main__":
    main()
