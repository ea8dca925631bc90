"""The programs of `qnet bench --only links|paths` that are nodes themselves (`qnetpy.embed`). Clients print one JSON object, the server
`ready`. NODE may have a choice of paths: `n2~exclusive:eth0`.

    python bench/embedded.py [OPTIONS] serve
    python bench/embedded.py [OPTIONS] round-trips|in-flight|bulk|stream|beside-out|beside-in NODE COUNT SIZE
    python bench/embedded.py [OPTIONS] steady NODE SECONDS

OPTIONS: --cpu N, --config FILE, --spin US, --interface NAME (may be repeated)
"""

from __future__ import annotations

import argparse
import itertools
import os
import struct
import time
from collections.abc import Awaitable, Callable

import trio
from gaps import Gaps
from probe import WARM_UP, say

from qnetpy.embed import EmbeddedNode, open_node
from qnetpy.qos import split
from resmgr.aio import send
from resmgr.channel import PID_SYSTEM, Connection, Message
from resmgr.dispatch import Buffer
from resmgr.errors import ResmgrError
from resmgr.runner import SPIN_DEFAULT

CHID = 50
CHID_SOURCE = 51
CHID_NUMBERED = 52
IN_FLIGHT = 16
STREAMS = 4
"""Messages of a transfer under way at a time."""
QUIET = 2.0
"""Seconds of small messages alone, before and after a transfer."""
INTERFACE = "eth0"
NUMBER = struct.Struct("!Q")


def echo(message: Message) -> None:
    if message.msglen == len(message.data):
        message.reply(0, message.data)
    else:
        message.read(0, message.msglen, lambda status, data: message.reply(0, data) if status >= 0 else message.error(-status))


class Source:
    """Answers with as many bytes as the client takes."""

    def __init__(self) -> None:
        self._bytes = os.urandom(1 << 20)

    def __call__(self, message: Message) -> None:
        message.reply(0, memoryview(self._bytes)[: message.reply_len])


class Numbered:
    """Counts numbered messages, and those that came before. An empty one asks for the two."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._doubled = 0

    def __call__(self, message: Message) -> None:
        if not message.msglen:
            message.reply(0, NUMBER.pack(len(self._seen)) + NUMBER.pack(self._doubled))
            return
        (number,) = NUMBER.unpack_from(message.data)
        self._doubled += number in self._seen
        self._seen.add(number)
        message.reply(0, message.data)


async def serve(node: EmbeddedNode) -> None:
    for chid, handler in ((CHID, echo), (CHID_SOURCE, Source()), (CHID_NUMBERED, Numbered())):
        node.system.kernel.channel(handler, pid=PID_SYSTEM, chid=chid, first_part=1 << 20)
    print("ready", flush=True)
    await trio.sleep_forever()


async def reach(node: EmbeddedNode, where: str, chid: int = CHID) -> Connection:
    with trio.fail_after(20):
        await node.up(split(where)[0])
    return node.connect(where, PID_SYSTEM, chid)


async def all_paths(node: EmbeddedNode, where: str) -> None:
    """Wait until every interface has a usable path to that node."""
    transport = node.qnet.machine.links[split(where)[0]].transport
    with trio.fail_after(20):
        # No event tells a task of paths.
        while sum(transport.usable(path) for path in transport.paths()) < len(node.qnet.machine.ports):  # noqa: ASYNC110
            await trio.sleep(0.01)


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


async def several(count: int, once: Callable[[], Awaitable[object]]) -> float:
    """*count* calls, STREAMS at a time; seconds."""
    numbers = iter(range(count))

    async def one() -> None:
        for _ in numbers:
            await once()

    begin = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(one)
    return time.perf_counter() - begin


async def stream(node: EmbeddedNode, where: str, count: int, size: int) -> None:
    """Messages, STREAMS under way all the time, over every path that the choice in *where* allows."""
    connection = await reach(node, where)
    await all_paths(node, where)
    body = (os.urandom(size),)
    # Slow start and the search for the packet size are over then.
    await several(max(count // 8, 2 * STREAMS), lambda: send(connection, body, 0))
    say(rate=count * size / await several(count, lambda: send(connection, body, 0)) / 1e6)


class Sampled:
    """Round trips of 64 bytes, one after another, until told to stop."""

    def __init__(self, connection: Connection) -> None:
        self.going = True
        self.took: list[int] = []
        self._connection = connection

    async def run(self) -> None:
        body = (bytes(64),)
        clock = time.perf_counter_ns
        while self.going:
            begin = clock()
            await send(self._connection, body, 64)
            self.took.append(clock() - begin)

    def part(self, share: float) -> float:
        """A quantile in µs."""
        return sorted(self.took)[int(len(self.took) * share)] / 1e3


async def alone(connection: Connection) -> Sampled:
    sampled = Sampled(connection)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sampled.run)
        await trio.sleep(QUIET)
        sampled.going = False
    return sampled


async def beside(node: EmbeddedNode, where: str, chid: int, count: int, body: bytes, answer: int) -> None:
    """Round trips of 64 bytes while a transfer goes on in the same programs, and before and after it."""
    connection = await reach(node, where)
    bulky = node.connect(where, PID_SYSTEM, chid)
    await several(2 * STREAMS, lambda: send(bulky, (body,), answer))
    quiet = await alone(connection)
    busy = Sampled(connection)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(busy.run)
        seconds = await several(count, lambda: send(bulky, (body,), answer))
        busy.going = False
    quiet.took += (await alone(connection)).took
    size = max(len(body), answer)
    say(
        rate=count * size / seconds / 1e6,
        alone_p50=quiet.part(0.5),
        alone_p99=quiet.part(0.99),
        p50=busy.part(0.5),
        p99=busy.part(0.99),
        longest=busy.part(1 - 1e-9),
        samples=len(busy.took),
    )


async def beside_out(node: EmbeddedNode, where: str, count: int, size: int) -> None:
    """The transfer goes the way of the questions."""
    await beside(node, where, CHID, count, os.urandom(size), 0)


async def beside_in(node: EmbeddedNode, where: str, count: int, size: int) -> None:
    """It goes the way of the answers."""
    await beside(node, where, CHID_SOURCE, count, bytes(8), size)


async def steady(node: EmbeddedNode, where: str, seconds: int, size: int) -> None:
    """Numbered requests one after another; says when the time between two answers was long, and whether all were heard once."""
    connection = await reach(node, where, CHID_NUMBERED)
    await all_paths(node, where)
    gaps = Gaps(seconds)
    failed = 0
    print("steady", flush=True)
    for number in itertools.count():
        if gaps.over:
            break
        try:
            await send(connection, (NUMBER.pack(number), bytes(size - NUMBER.size)), size)
        except ResmgrError:
            failed += 1
        gaps.answered()
    told = (await send(connection, (b"",), 2 * NUMBER.size)).data
    (heard,), (doubled,) = NUMBER.iter_unpack(told)
    gaps.say(lost=number - heard, doubled=doubled, failed=failed)


CLIENTS = {
    "round-trips": round_trips,
    "in-flight": in_flight,
    "bulk": bulk,
    "stream": stream,
    "beside-out": beside_out,
    "beside-in": beside_in,
    "steady": steady,
}


async def run(args: argparse.Namespace) -> None:
    async with open_node(config=args.config, interfaces=args.interface or [INTERFACE], spin=args.spin * 1e-6) as node:
        if args.verb == "serve":
            await serve(node)
        else:
            await CLIENTS[args.verb](node, args.where, args.count, args.size)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu", type=int)
    parser.add_argument("--config")
    parser.add_argument("--interface", action="append")
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
