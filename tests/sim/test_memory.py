"""Memory is bounded over any number of restarts, partitions, changes of address and rekeys: nothing stays of a cycle of them."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from qnetpy.link.session import RekeyPolicy
from qnetpy.parameters import QnetSettings
from qnetpy.testing.workload import Client, Ledger, Server
from qnetpy.testing.world import World

pytestmark = pytest.mark.sim
WARM = 12
CYCLES = 24
PER_CYCLE = 1024
"""Bytes by which a cycle may add to what all nodes hold: far less than one link, session or handshake, and room for what caps bound."""


def cycle(world: World, number: int) -> None:
    """A crash and a restart, a partition, other addresses, new keys, some work."""
    a, b = world.nodes["a"], world.nodes["b"]
    ledger = Ledger(world.dispatch.note)
    Server(b, ledger)
    client = Client(a, "b", ledger, world.dispatch.random(f"work {number}"))
    for mode in (0, 1, 4):
        client.send(mode)
    a.qnet.rekey()
    world.run(2.0)
    assert not ledger.open
    a.exchange("en0", number % 50)
    world.run(1.0)
    b.cables["en1"].cut = True
    world.run(1.0)
    client.close()
    b.crash()
    world.run(3.5)
    world.start("b")
    assert world.until(world.settled)
    world.run(1.0)


def held() -> int:
    """A collection empties the interpreter's lists of free tuples, too: what is made from those does not count as new memory. So ask after
    each cycle."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def test_nodes_hold_no_more_after_many_cycles() -> None:
    settings = QnetSettings(rekey=RekeyPolicy(after=1.0, stagger=0.2, grace=0.5))
    world = World(1, links=("lan", "lan2"), internets=("wan",), settings=settings, watch=False)
    world.start("a")
    world.start("b")
    assert world.until(world.settled)
    tracemalloc.start()
    try:
        for number in range(WARM):
            cycle(world, number)
            before = held()
        for number in range(WARM, WARM + CYCLES):
            cycle(world, number)
            after = held()
        grown = (after - before) / CYCLES
    finally:
        tracemalloc.stop()
    assert grown < PER_CYCLE, f"{grown:.0f} bytes more each cycle"
