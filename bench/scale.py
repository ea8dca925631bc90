"""What a peer costs a node: memory and processor time with 1, 10, 100 and 1,000 peers, and handshakes per second. In virtual time.

    python bench/scale.py [PEERS ...]

One node in the middle is linked to each of the others, which know only it. Memory is what hangs on the middle node's link machine, node
table and peers, measured object by object, less what it was before the first peer. The cost per peer must not grow with their number.
"""

from __future__ import annotations

import gc
import sys
import time
from types import BuiltinFunctionType, FunctionType, ModuleType

from qnetpy.identity.authority import issue_identity, make_authority
from qnetpy.link.testing import WALL, Caller, Wire, address, agreed
from qnetpy.testing.world import DAY, SimNode, World
from resmgr.channel import PID_SYSTEM
from resmgr.testing.virtual import NodeView, VirtualDispatch
from stack.core.stack import Stack

CHID = 50
IDLE = 10.0
"""Virtual seconds."""
HANDSHAKES = 200
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


def handshakes() -> tuple[float, float]:
    """Whole handshakes per second and core, both ends' work together: at first contact, and with the key known."""
    wire = Wire(1)
    authority = make_authority("scale", WALL)
    identities = [issue_identity(authority, name, ("member",), WALL, DAY) for name in ("a", "b")]
    one, two = (Caller(wire, identity, address(number)) for number, identity in enumerate(identities, 1))
    rates = []
    for first in (True, False):
        begin = time.process_time()
        for _ in range(HANDSHAKES):
            if first:
                one, two = (Caller(wire, identity, address(number)) for number, identity in enumerate(identities, 1))
            one.call(two.address, two.name)
            wire.run(wire.now + 0.2)
            if agreed(one, two) is None:
                raise SystemExit("a handshake failed")
        rates.append(HANDSHAKES / (time.process_time() - begin))
    return rates[0], rates[1]


def main() -> None:
    counts = [int(word) for word in sys.argv[1:]] or [1, 10, 100, 1000]
    first: tuple[float, float] | None = None
    for peers in counts:
        world, middle, before = cluster(peers)
        quiet = (memory(middle) - before) / peers
        begin = time.process_time()
        world.run(IDLE)
        # Both ends of each link are simulated here, and their wires.
        idle = (time.process_time() - begin) / peers / IDLE
        messages(world, middle, peers)
        used = (memory(middle) - before) / peers
        if first is None:
            first = used, idle
        print(
            f"{peers:5} peers: {quiet / 1024:6.1f} KiB per idle peer, {used / 1024:6.1f} KiB per peer after a message "
            f"({used / first[0]:.2f} of the first row); idle {idle * 1e6:6.0f} µs per peer and second, both ends ({idle / first[1]:.2f})",
            flush=True,
        )
    contact, known = handshakes()
    print(f"handshakes, both ends on one core: {contact:.0f} per second at first contact, {known:.0f} with a known key")


if __name__ == "__main__":
    main()
