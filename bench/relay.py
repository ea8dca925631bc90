"""A cable with a length: what comes in at one interface goes out at the other a fixed time later, in order, on a node between two others.

    python bench/relay.py [--cpu N] SECONDS INTERFACE INTERFACE

Stands in for a delaying queue of the kernel, which many kernels are built without. Prints `ready` and carries frames until it is killed;
a frame that finds the far interface without room is lost, as on a wire.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import struct
import time
from collections import deque

ALL = 3
PACKET_MR_PROMISC = 1
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_IGNORE_OUTGOING = 263, 1, 23
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
ROOM = 8 << 20


def port(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("iHH8s", socket.if_nametoindex(name), PACKET_MR_PROMISC, 0, b""))
    for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
        sock.setsockopt(socket.SOL_SOCKET, option, ROOM)
    sock.bind((name, 0))
    sock.setblocking(False)
    return sock


def carry(delay: float, ends: tuple[socket.socket, socket.socket]) -> None:
    held: deque[tuple[float, bytes, socket.socket]] = deque()
    clock = time.monotonic
    across = {ends[0]: ends[1], ends[1]: ends[0]}
    while True:
        wait = max(held[0][0] - clock(), 0.0) if held else None
        readable, _, _ = select.select(ends, [], [], wait)
        for sock in readable:
            with contextlib.suppress(BlockingIOError):
                for _ in range(64):
                    held.append((clock() + delay, sock.recv(65536), across[sock]))
        now = clock()
        while held and held[0][0] <= now:
            _, frame, out = held.popleft()
            with contextlib.suppress(BlockingIOError, OSError):
                out.send(frame)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("interfaces", nargs=2)
    args = parser.parse_args()
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    first, second = (port(name) for name in args.interfaces)
    print("ready", flush=True)
    carry(args.seconds, (first, second))


if __name__ == "__main__":
    main()
