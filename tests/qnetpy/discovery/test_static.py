"""Configured peers, in virtual time."""

from __future__ import annotations

from qnetpy.discovery.hint import Announcement, Discovery, Hint, Interface
from qnetpy.discovery.static import StaticDiscovery, StaticPeer
from resmgr.testing.virtual import VirtualDispatch

A, B, C = (bytes((2, 0, 0, 0, 0, number)) for number in (1, 2, 3))


def test_peers_stand_while_their_interface_is_there() -> None:
    world = VirtualDispatch(1)
    discovery: Discovery = StaticDiscovery([StaticPeer(B), StaticPeer(C, "eth1", 0x9000), StaticPeer(A)])
    hints: list[Hint] = []
    gone: list[Hint] = []
    discovery.start(world.node("n"), [Interface("eth0", A)], Announcement(bytes(16), 0x88B5), hints.append, gone.append)
    assert hints == []
    world.run_for(1.0)
    assert [(hint.interface, hint.mac, hint.ethertype) for hint in hints] == [("eth0", B, 0x88B5)]
    discovery.interface_added(Interface("eth1", bytes((2, 0, 0, 0, 0, 9))))
    world.run_for(1.0)
    assert [(hint.interface, hint.mac, hint.ethertype) for hint in hints[1:]] == [("eth1", B, 0x88B5), ("eth1", C, 0x9000)]
    discovery.interface_removed("eth1")
    assert gone == hints[1:]
    discovery.close()
    discovery.close()
    assert gone == hints[1:]


def test_an_interface_that_went_before_it_was_told_gives_no_hint() -> None:
    world = VirtualDispatch(1)
    discovery = StaticDiscovery([StaticPeer(B)])
    hints: list[Hint] = []
    discovery.start(world.node("n"), [Interface("eth0", A)], Announcement(bytes(16), 0x88B5), hints.append, hints.append)
    discovery.interface_removed("eth0")
    world.run_for(1.0)
    assert hints == []
