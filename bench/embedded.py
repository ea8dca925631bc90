"""The programs of `qnet bench --only links` that are nodes themselves (`qnetpy.embed`). Clients print one JSON object, the server `ready`.

python bench/embedded.py [--cpu N] [--config FILE] [--spin US] serve
python bench/embedded.py [--cpu N] [--config FILE] [--spin US] round-trips|in-flight|bulk NODE COUNT SIZE
"""

from __future__ import annotations

import argparse
import os
import time

import trio
from probe import WARM_UP, say

from qnetpy.embed import EmbeddedNode, open_node
from resmgr.aio import send
from resmgr.channel import PID_SYSTEM, Connection, Message
from resmgr.dispatch import Buffer
from resmgr.runner import SPIN_DEFAULT

CHID = 50
IN_FLIGHT = 16
INTERFACE = "eth0"


def echo(message: Message) -> None:
    if message.msglen == len(message.data):
        message.reply(0, message.data)
    else:
        message.read(0, message.msglen, lambda status, data: message.reply(0, data) if status >= 0 else message.error(-status))


async def serve(node: EmbeddedNode) -> None:
    node.system.kernel.channel(echo, pid=PID_SYSTEM, chid=CHID, first_part=1 << 20)
    print("ready", flush=True)
    await trio.sleep_forever()


async def reach(node: EmbeddedNode, where: str) -> Connection:
    with trio.fail_after(20):
        await node.up(where)
    return node.connect(where, PID_SYSTEM, CHID)


async def round_trips(node: EmbeddedNode, where: str, count: int, size: int) -> None:
    """A task that sends and waits, again and again."""
    connection = await reach(node, where)
    body = (bytes(size),)
    for _ in range(WARM_UP):
        await send(connection, body, size)
    clock = time.perf_counter_ns
    took = []
    for _ in range(count):
        begin = clock()
        await send(connection, body, size)
        took.append(clock() - begin)
    took.sort()
    say(p50=took[count // 2] / 1e3, p99=took[count * 99 // 100] / 1e3)


async def in_flight(node: EmbeddedNode, where: str, count: int, size: int) -> None:
    """IN_FLIGHT requests under way all the time; a completion sends the next."""
    connection = await reach(node, where)
    body = (bytes(size),)
    done = trio.Event()
    left, answered = count, 0

    def next_one(status: int, reply: Buffer) -> None:
        nonlocal left, answered
        answered += 1
        if left:
            left -= 1
            connection.submit(body, size, next_one)
        elif answered == count:
            done.set()

    def start() -> None:
        nonlocal left
        for _ in range(IN_FLIGHT):
            left -= 1
            connection.submit(body, size, next_one)

    begin = time.perf_counter()
    node.manager.dispatch.enter(start)
    await done.wait()
    say(rate=count / (time.perf_counter() - begin))


async def bulk(node: EmbeddedNode, where: str, count: int, size: int) -> None:
    """Messages one after another, each acknowledged by an empty reply: what the far side holds is what was sent."""
    connection = await reach(node, where)
    body = (os.urandom(size),)
    await send(connection, body, 0)
    begin = time.perf_counter()
    for _ in range(count):
        await send(connection, body, 0)
    say(rate=count * size / (time.perf_counter() - begin) / 1e6)


CLIENTS = {"round-trips": round_trips, "in-flight": in_flight, "bulk": bulk}


async def run(args: argparse.Namespace) -> None:
    async with open_node(config=args.config, interfaces=[INTERFACE], spin=args.spin * 1e-6) as node:
        if args.verb == "serve":
            await serve(node)
        else:
            await CLIENTS[args.verb](node, args.where, args.count, args.size)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu", type=int)
    parser.add_argument("--config")
    parser.add_argument("--spin", type=float, default=SPIN_DEFAULT * 1e6)
    parser.add_argument("verb", choices=["serve", *CLIENTS])
    parser.add_argument("where", nargs="?", default="")
    parser.add_argument("count", nargs="?", type=int, default=0)
    parser.add_argument("size", nargs="?", type=int, default=64)
    args = parser.parse_args()
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    trio.run(run, args)


if __name__ == "__main__":
    main()
