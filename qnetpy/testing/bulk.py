"""Bulk data between two programs that are nodes themselves (`qnetpy.embed`): what a flood, or any other trouble, leaves of a link's speed.

    python -m qnetpy.testing.bulk serve             takes messages and answers each with nothing
    python -m qnetpy.testing.bulk send NODE         for each line on standard input, a number of seconds, sends for so long

Both print a line of JSON when they are ready; the sender another for each line: MB that were answered, and MB/s. They use every Ethernet
interface and take the daemon's place: its keys, and its socket, so that `qnet status` tells about them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import trio

from qnetpy.embed import EmbeddedNode, open_node
from resmgr.aio import send
from resmgr.channel import PID_SYSTEM, Connection, Message

CHID = 50
SIZE = 1 << 20
IN_FLIGHT = 2
"""Enough that the link is never idle while an answer is under way."""
REACH_SECONDS = 20.0
SOCKET = "/run/qnet/socket"


def take(message: Message) -> None:
    if message.msglen == len(message.data):
        message.reply(0, b"")
    else:
        message.read(0, message.msglen, lambda status, data: message.reply(0, b"") if status == message.msglen else message.error(5))


async def stream(connection: Connection, body: bytes, until: float) -> int:
    """Bytes sent and answered."""
    sent = 0
    while time.monotonic() < until:
        await send(connection, (body,), 0)
        sent += len(body)
    return sent


async def measure(connection: Connection, body: bytes, seconds: float) -> dict[str, float]:
    total = 0
    began = time.monotonic()

    async def one() -> None:
        nonlocal total
        total += await stream(connection, body, began + seconds)

    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(one)
    return {"sent": total / 1e6, "rate": total / (time.monotonic() - began) / 1e6}


async def serve(node: EmbeddedNode) -> None:
    node.system.kernel.channel(take, pid=PID_SYSTEM, chid=CHID, first_part=SIZE)
    print(json.dumps({"ready": True}), flush=True)
    while await trio.to_thread.run_sync(sys.stdin.readline):
        pass


async def send_to(node: EmbeddedNode, where: str) -> None:
    with trio.fail_after(REACH_SECONDS):
        await node.up(where)
    connection = node.connect(where, PID_SYSTEM, CHID)
    body = os.urandom(SIZE)
    await measure(connection, body, 0.5)
    print(json.dumps({"ready": True}), flush=True)
    while line := await trio.to_thread.run_sync(sys.stdin.readline):
        print(json.dumps(await measure(connection, body, float(line))), flush=True)


async def run(args: argparse.Namespace) -> None:
    async with open_node(socket=SOCKET) as node:
        if args.verb == "serve":
            await serve(node)
        else:
            await send_to(node, args.node)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bulk", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("serve")
    verbs.add_parser("send").add_argument("node")
    os.makedirs(os.path.dirname(SOCKET), exist_ok=True)
    trio.run(run, parser.parse_args())


if __name__ == "__main__":
    main()
