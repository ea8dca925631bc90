"""Multipath TCP of the Linux kernel, in clear text: what `qnet bench --only paths` stands beside. Runs on a node.

    python bench/mptcp.py [--cpu N] serve
    python bench/mptcp.py [--cpu N] stream ADDRESS COUNT SIZE
    python bench/mptcp.py [--cpu N] steady ADDRESS SECONDS SIZE

The kernel's path manager has been told the addresses before (`paths.py`).
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
import time

from gaps import Gaps
from probe import say

PORT = 7300
ECHO, SINK = b"E", b"S"


def take(connection: socket.socket, buffer: memoryview) -> bool:
    """Fill *buffer*; False at the end of the stream."""
    while buffer:
        count = connection.recv_into(buffer)
        if not count:
            return False
        buffer = buffer[count:]
    return True


def attend(connection: socket.socket) -> None:
    head = bytearray(5)
    if not take(connection, memoryview(head)):
        return
    size = int.from_bytes(head[1:], "big")
    buffer = memoryview(bytearray(size))
    while take(connection, buffer):
        connection.sendall(buffer if head[:1] == ECHO else b".")


def serve() -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("", PORT))
    server.listen()
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=attend, args=(connection,), daemon=True).start()


def connect(where: str, verb: bytes, size: int) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    connection.connect((where, PORT))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(verb + size.to_bytes(4, "big"))
    return connection


def stream(where: str, count: int, size: int) -> None:
    """Messages of *size* bytes, each answered by a byte; as many under way as the socket's buffers take."""
    connection = connect(where, SINK, size)
    body = os.urandom(size)
    rate = 0.0
    # The first part is a warm-up: further subflows join after the first data.
    for number in (max(count // 8, 8), count):
        sender = threading.Thread(target=lambda number=number: [connection.sendall(body) for _ in range(number)])  # type: ignore[misc]  # bound now
        begin = time.perf_counter()
        sender.start()
        take(connection, memoryview(bytearray(number)))
        sender.join()
        rate = number * size / (time.perf_counter() - begin) / 1e6
    say(rate=rate)


def steady(where: str, seconds: float, size: int) -> None:
    """Requests one after another, each echoed."""
    connection = connect(where, ECHO, size)
    body, buffer = bytes(size), memoryview(bytearray(size))
    for _ in range(100):
        connection.sendall(body)
        take(connection, buffer)
    gaps = Gaps(seconds)
    print("steady", flush=True)
    while not gaps.over:
        connection.sendall(body)
        if not take(connection, buffer):
            raise SystemExit("mptcp: the connection ended")
        gaps.answered()
    gaps.say()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu", type=int)
    parser.add_argument("verb", choices=["serve", "stream", "steady"])
    parser.add_argument("where", nargs="?", default="")
    parser.add_argument("count", nargs="?", type=int, default=0)
    parser.add_argument("size", nargs="?", type=int, default=64)
    args = parser.parse_args()
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    match args.verb:
        case "serve":
            serve()
        case "stream":
            stream(args.where, args.count, args.size)
        case _:
            steady(args.where, args.count, args.size)


if __name__ == "__main__":
    main()
