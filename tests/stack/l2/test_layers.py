"""A bridge above a VLAN above an aggregate, and all that frames go through on their way: content, order within a flow, and no frame twice.

peer: vlan5 on agr0  ==two cables==  agr0, vlan5 [ bridge0 ] en2  ---  host
"""

from __future__ import annotations

import pytest

from stack.testing.driver import TYPE, frame
from stack.testing.machines import Machine, World
from stack.wire.ethernet import BROADCAST

FLOWS, ROUNDS, BATCH = 12, 30, 5
SIZES = (0, 1, 46, 700, 1500)


def station(side: int, number: int) -> bytes:
    return bytes((2, 0, 0, 0, side, number))


class Yard:
    def __init__(self, bridge: str = "") -> None:
        self.world = World(3)
        self.peer = self.world.machine("peer", 0, 1)
        self.ours = self.world.machine("ours", 0, 1, 2)
        self.host = self.world.machine("host", 2)
        for machine in (self.peer, self.ours):
            machine.stack.load("agr", "agrport=en0,agrport=en1")
            machine.stack.load("vlan", "vlan=5,vlanif=agr0")
        self.ours.stack.load("bridge", f"add=vlan5,add=en2{bridge}")
        for machine, name in ((self.peer, "vlan5"), (self.host, "en0")):
            machine.stack.promiscuous(machine.interface(name), "ears")
        self.world.dispatch.run_for(10)

    def heard(self, machine: Machine, name: str) -> list[bytes]:
        return machine.tap(name)

    def meet(self) -> None:
        """The bridge learns all stations."""
        for number in range(FLOWS):
            self.peer.stack.output(self.peer.interface("vlan5"), [frame(BROADCAST, station(1, number), b"peer")])
            self.host.stack.output(self.host.interface("en0"), [frame(BROADCAST, station(2, number), b"host")])
        self.world.dispatch.run_for(1)


def numbered(to: int, number: int, first: int) -> list[bytes]:
    """A batch of one flow, of every size."""
    frames = []
    for place in range(BATCH):
        size = SIZES[(first + place) % len(SIZES)]
        body = (first + place).to_bytes(4, "big") + bytes((number + place + byte) & 255 for byte in range(max(0, size - 4)))
        frames.append(frame(station(to, number), station(3 - to, number), body))
    return frames


def by_flow(frames: list[bytes]) -> dict[bytes, list[bytes]]:
    flows: dict[bytes, list[bytes]] = {}
    for one in frames:
        if one[12:14] == TYPE.to_bytes(2, "big") and one[0] == 2:
            flows.setdefault(one[:12], []).append(one)
    return flows


@pytest.mark.parametrize("bridge", ["", ",ipf", ",stp"])
@pytest.mark.parametrize("direction", [1, 2])
def test_content_and_order_through_all_layers(bridge: str, direction: int) -> None:
    """*direction*: 2 from the peer to the host, 1 back."""
    yard = Yard(bridge)
    if bridge == ",stp":
        yard.world.dispatch.run_for(40)
    yard.meet()
    far, name, near, out = (yard.host, "en0", yard.peer, "vlan5") if direction == 2 else (yard.peer, "vlan5", yard.host, "en0")
    wire = yard.heard(far, name)
    sent: dict[bytes, list[bytes]] = {}
    for turn in range(ROUNDS):
        batch = [numbered(direction, number, turn * BATCH) for number in range(FLOWS)]
        # Flows are mixed within a batch, as they come from a wire.
        mixed = [flow[place] for place in range(BATCH) for flow in batch]
        near.stack.output(near.interface(out), list(mixed))
        for one in mixed:
            sent.setdefault(one[:12], []).append(one)
        yard.world.dispatch.run_for(0.01)
    yard.world.dispatch.run_for(1)
    assert by_flow(wire) == sent
    used = [yard.peer.interface(port).tx_frames if direction == 2 else yard.ours.interface(port).tx_frames for port in ("en0", "en1")]
    assert min(used) > FLOWS * ROUNDS * BATCH / 10, "both cables are used"


@pytest.mark.parametrize("direction", [1, 2])
def test_a_cable_that_goes_makes_no_frame_come_twice_or_late(direction: int) -> None:
    yard = Yard()
    yard.meet()
    far, name, near, out = (yard.host, "en0", yard.peer, "vlan5") if direction == 2 else (yard.peer, "vlan5", yard.host, "en0")
    wire = yard.heard(far, name)
    sent: dict[bytes, list[bytes]] = {}
    for turn in range(ROUNDS):
        if turn in (10, 20):
            for machine in (yard.ours, yard.peer):
                machine.carrier("en0", turn == 20)
            yard.world.dispatch.run_for(10)
        for number in range(FLOWS):
            frames = numbered(direction, number, turn * BATCH)
            near.stack.output(near.interface(out), list(frames))
            sent.setdefault(frames[0][:12], []).extend(frames)
        yard.world.dispatch.run_for(0.01)
    yard.world.dispatch.run_for(1)
    assert by_flow(wire) == sent


def test_a_tag_within_the_vlan_goes_through_the_bridge() -> None:
    yard = Yard()
    yard.meet()
    wire = yard.heard(yard.host, "en0")
    inner = frame(station(2, 0), station(1, 0), bytes(range(100)), TYPE, ((0x8100, 9),))
    yard.peer.stack.output(yard.peer.interface("vlan5"), [inner])
    yard.world.dispatch.run_for(1)
    assert wire == [inner]
