"""What a peer costs a node: memory and processor time with 1, 10, 100 and 1,000 peers, and handshakes per second. In virtual time.

    python bench/scale.py [PEERS ...]      also `qnet bench --only peers`

One node in the middle is linked to each of the others, which know only it. Memory is what hangs on the middle node's link machine, node
table and peers, measured object by object, less what it was before the first peer. The cost per peer must not grow with their number.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, ModuleType

import attrs
import handshakes
from run import Result

from qnetpy.testing.world import SimNode, World
from resmgr.channel import PID_SYSTEM
from resmgr.compiled import describe, running
from resmgr.testing.virtual import NodeView, VirtualDispatch
from stack.core.stack import Stack

CHID = 50
IDLE = 10.0
"""Virtual seconds."""
COUNTS = [1, 10, 100, 1000]
OUTSIDE = (type, ModuleType, FunctionType, BuiltinFunctionType, World, SimNode, VirtualDispatch, NodeView, Stack)


def deep_size(*roots: object) -> int:
    """Bytes of everything reachable from *roots* but code and what is the world's."""
    seen: set[int] = set()
    waiting: list[object] = list(roots)
    total = 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, OUTSIDE):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        waiting += gc.get_referents(one)
    return total


def memory(node: SimNode) -> int:
    gc.collect()
    return deep_size(node.qnet.machine, node.qnet.nodes, node.qnet._peers, node.qnet._up)


def cluster(peers: int) -> tuple[World, SimNode, int]:
    """A world with *peers* nodes linked to the one in the middle, and the middle's size before."""
    world = World(seed=1)
    world.join("middle")
    middle = world.start("middle", call=[])
    before = memory(middle)
    for number in range(peers):
        world.start(f"p{number}", call=["middle"])
    if not world.until(lambda: len(middle.qnet.machine.links) == peers, limit=120):
        raise SystemExit(f"only {len(middle.qnet.machine.links)} of {peers} peers were linked")
    world.run(2.0)
    return world, middle, before


def messages(world: World, middle: SimNode, peers: int) -> None:
    """A message of 64 bytes to each peer, and its answer."""
    answered = 0

    def done(status: int, reply: object) -> None:
        nonlocal answered
        answered += status == 0

    def ask(number: int) -> None:
        middle.connect(f"p{number}", PID_SYSTEM, CHID).submit((bytes(64),), 64, done)

    for number in range(peers):
        world.nodes[f"p{number}"].system.kernel.channel(lambda message: message.reply(0, message.data), pid=PID_SYSTEM, chid=CHID)
        middle.view.call_soon(lambda number=number: ask(number))  # type: ignore[misc]  # bound now
    if not world.until(lambda: answered == peers):
        raise SystemExit(f"{answered} of {peers} answered")
    world.run(2.0)


@attrs.frozen
class Cost:
    """Of one peer: KiB when idle, KiB after a message, processor seconds per second when idle (both ends and the simulated wire)."""

    idle: float
    used: float
    time: float


def cost(peers: int) -> Cost:
    """What each of that many peers costs."""
    world, middle, before = cluster(peers)
    quiet = (memory(middle) - before) / peers
    begin = time.process_time()
    world.run(IDLE)
    idle = (time.process_time() - begin) / peers / IDLE
    messages(world, middle, peers)
    return Cost(quiet / 1024, (memory(middle) - before) / peers / 1024, idle)


def measure(report: Callable[[Result], None]) -> None:
    """The lines of `qnet bench --only peers`: memory, then handshakes beside TLS."""
    code = describe(len(running())).partition(",")[0]
    first: Cost | None = None
    for peers in COUNTS:
        found = cost(peers)
        if first is None:
            first = found
        several = peers > 1
        for what, ours, theirs in (("idle peer", found.idle, first.idle), ("peer after a message", found.used, first.used)):
            # The first row has what is there once for all peers as well.
            report(
                Result(
                    f"memory of an {what}, {peers:,}" if what.startswith("idle") else f"memory of a {what}, {peers:,}",
                    "KiB",
                    ours,
                    "1 peer" if several else "",
                    theirs if several else None,
                    target="<= 1.1" if several else "",
                    met=ours / theirs <= 1.1 if several else None,
                    note=f"idle {found.time * 1e6:.0f} us/s" if what.startswith("idle") else "",
                    placement="virtual",
                    code=code,
                )
            )
    contact, known, tls, resumed = handshakes.rates()
    for what, ours, peer, theirs in (
        ("handshakes, both ends, first contact", contact, "TLS 1.3 mutual", tls),
        ("handshakes, both ends, key known", known, "TLS 1.3 mutual", tls),
        ("handshakes, both ends, key known", known, "TLS 1.3 resumed", resumed),
    ):
        report(Result(what, "/s", ours, peer, theirs, code=code))


def main() -> None:
    counts = [int(word) for word in sys.argv[1:]] or COUNTS
    first: Cost | None = None
    for peers in counts:
        found = cost(peers)
        if first is None:
            first = found
        print(
            f"{peers:5} peers: {found.idle:6.1f} KiB per idle peer, {found.used:6.1f} KiB per peer after a message "
            f"({found.used / first.used:.2f} of the first row); idle {found.time * 1e6:6.0f} µs per peer and second, both ends "
            f"({found.time / first.time:.2f})",
            flush=True,
        )
    contact, known, tls, resumed = handshakes.rates()
    print(f"handshakes, both ends on one core: {contact:.0f} per second at first contact, {known:.0f} with a known key")
    print(f"TLS 1.3 with both certificates, the same way: {tls:.0f}, resumed {resumed:.0f}")


if __name__ == "__main__":
    main()
