"""Numbered requests between nodes, each accounted for: a pair of programs for the machines of a test cluster.

    python -m qnetpy.testing.numbered serve             attaches the name "numbered" and answers
    python -m qnetpy.testing.numbered ask NODE NAME     asks NODE as the client NAME

Each prints one line of JSON when it is ready, one for each line on standard input, and a last one at its end. The server tells what was
delivered of each client, how often a number came twice, and what came with other contents than were sent. The client tells what it asked,
what was answered, what failed by errno, and what was answered wrongly. A request that failed may have been delivered, once.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import select
import struct
import sys
import time
import zlib
from collections import Counter, defaultdict

from resmgr.client import Client, Connection, Send
from resmgr.errors import ResmgrError
from resmgr.names.client import name_attach, name_open
from resmgr.server import Pulse

NAME = "numbered"
HEADER = struct.Struct("!16sQII")
"""Client, number, length of what follows, CRC-32 of client, number and what follows."""
SIZES = (0, 60, 1300, 6000, 30000)
IN_FLIGHT = 4
ANSWER_MAX = 4096
PACE = 0.004
"""Seconds between rounds: there is work all the time and the machine is not full."""
OPEN_SECONDS = 20.0


def request(client: bytes, number: int) -> bytes:
    body = number.to_bytes(4, "big") * (SIZES[number % len(SIZES)] // 4)
    return HEADER.pack(client, number, len(body), zlib.crc32(client + number.to_bytes(8, "big") + body)) + body


def answer(data: bytes) -> bytes:
    """What the server says to a request: its header, and as much of the rest as an answer has room for, backwards."""
    return data[: HEADER.size] + data[HEADER.size :][::-1][: ANSWER_MAX - HEADER.size]


def told(fact: dict[str, object]) -> bool:
    """Say *fact* if somebody asks for it. False at the end of the input, when it is said once more."""
    if not select.select([0], [], [], 0)[0]:
        return True
    line = sys.stdin.readline()
    print(json.dumps(fact), flush=True)
    return bool(line)


def serve(client: Client) -> None:
    seen: defaultdict[str, set[int]] = defaultdict(set)
    counted: Counter[str] = Counter({"twice": 0, "wrong": 0})
    with name_attach(client, NAME) as server:
        print(json.dumps({"ready": True}), flush=True)
        while told({"delivered": {name: len(numbers) for name, numbers in seen.items()}, **counted}):
            message = server.channel.receive(0.05)
            if message is None or isinstance(message, Pulse):
                continue
            try:
                data = bytes(message.read(0, message.msglen))
            except ResmgrError:
                data = b""
            if len(data) < message.msglen:
                # Its client gave up, or its node is gone, before all of it was here.
                counted["incomplete"] += 1
                message.error(errno.EIO)
                continue
            name, number, length, check = HEADER.unpack_from(data.ljust(HEADER.size, b"\0"))
            body = data[HEADER.size :]
            if length != len(body) or check != zlib.crc32(name + number.to_bytes(8, "big") + body):
                counted["wrong"] += 1
            client_name = name.rstrip(b"\0").decode(errors="replace")
            if number in seen[client_name]:
                counted["twice"] += 1
            seen[client_name].add(number)
            message.reply(0, answer(data))


def reach(client: Client, node: str) -> Connection:
    end = time.monotonic() + OPEN_SECONDS
    while True:
        try:
            return name_open(client, NAME, node=node, timeout=5.0)
        except ResmgrError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def ask(client: Client, node: str, name: bytes) -> None:
    counted: Counter[str] = Counter(asked=0, answered=0, wrong=0)
    failed: Counter[str] = Counter()
    longest = 0.0
    connection = reach(client, node)
    print(json.dumps({"ready": True}), flush=True)
    client_id = name.ljust(16, b"\0")
    while told({**counted, "failed": dict(failed), "longest": round(longest, 4)}):
        sends: list[tuple[bytes, Send]] = []
        began = time.monotonic()
        for _ in range(IN_FLIGHT):
            data = request(client_id, counted["asked"])
            counted["asked"] += 1
            sends.append((data, connection.submit(data, reply_len=ANSWER_MAX)))
        broken = False
        for data, send in sends:
            try:
                reply = send.wait()
            except ResmgrError as error:
                failed[os.strerror(error.errno or 0)] += 1
                broken = True
                continue
            counted["answered"] += 1
            counted["wrong"] += bytes(reply.data) != answer(data)
        longest = max(longest, time.monotonic() - began)
        if broken:
            connection.close()
            connection = reach(client, node)
        time.sleep(PACE)


def main() -> None:
    parser = argparse.ArgumentParser(prog="numbered", description=__doc__)
    parser.add_argument("--socket", default="/run/qnet/socket")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("serve")
    asking = verbs.add_parser("ask")
    asking.add_argument("node")
    asking.add_argument("name")
    args = parser.parse_args()
    with Client(args.socket) as client:
        if args.verb == "serve":
            serve(client)
        else:
            ask(client, args.node, args.name.encode())


if __name__ == "__main__":
    main()
