"""The hub keeps the contract of drivers under virtual time, and is a hub."""

from __future__ import annotations

import pytest

from resmgr.errors import Misuse
from resmgr.testing.virtual import VirtualDispatch
from stack.core.statistics import Drop
from stack.drivers.hub import WAITING_MAX, Hub, HubPort
from stack.frame import Frame
from stack.testing.driver import TYPE, RecordingPort, check_driver, frame
from stack.testing.virtualpair import VirtualPair
from stack.wire.ethernet import BROADCAST

MACS = [bytes((2, 0, 0, 0, 0, number)) for number in range(5)]


def ports(dispatch: VirtualDispatch, hub: Hub, count: int) -> list[tuple[HubPort, RecordingPort]]:
    made = []
    for number in range(count):
        driver, port = hub.port(f"en{number}", MACS[number]), RecordingPort()
        driver.start(port)
        driver.accept(frozenset((TYPE,)))
        made.append((driver, port))
    return made


@pytest.mark.parametrize("latency", [0.0, 10e-6])
@pytest.mark.parametrize("mtu", [1500, 9000])
async def test_contract(latency: float, mtu: int) -> None:
    dispatch = VirtualDispatch(1)
    hub = Hub(dispatch, latency=latency)
    await check_driver(VirtualPair(dispatch, hub.port("en0", MACS[0], mtu=mtu), hub.port("en1", MACS[1], mtu=mtu)))
    assert hub.ports == ()


def test_everybody_hears_a_broadcast_and_one_hears_the_rest() -> None:
    dispatch = VirtualDispatch(1)
    hub = Hub(dispatch)
    made = ports(dispatch, hub, 3)
    everybody, one = frame(BROADCAST, MACS[0], b"all"), frame(MACS[2], MACS[0], b"one")
    made[0][0].transmit([everybody, one])
    assert not made[1][1].frames  # later, not at once
    before = dispatch.now()
    dispatch.run_for(1.0)
    assert [port.frames for _, port in made] == [[], [everybody], [everybody, one]]
    assert hub.frames == 2
    assert before < dispatch.now()


def test_frames_are_gone_when_deliver_returns() -> None:
    dispatch = VirtualDispatch(1)
    (a, _), (b, port) = ports(dispatch, Hub(dispatch), 2)
    kept: list[Frame] = []
    port.on_frames = kept.extend
    a.transmit([frame(b.mac, a.mac, b"secret")])
    dispatch.run_for(1.0)
    assert port.frames[0].endswith(b"secret")
    assert set(bytes(kept[0])) == {0xDB}


def test_delivery_is_on_the_receivers_dispatch() -> None:
    world = VirtualDispatch(1)
    hub = Hub(world)
    other = world.node("other")
    driver, port = hub.port("en0", MACS[0], dispatch=other), RecordingPort()
    driver.start(port)
    driver.accept(None)
    sender = hub.port("en1", MACS[1])
    sender.start(RecordingPort())
    sender.transmit([frame(BROADCAST, MACS[1], b"x")])
    other.stop()
    world.run_for(1.0)
    assert port.frames == []


def test_carrier_and_overrun() -> None:
    dispatch = VirtualDispatch(1)
    (a, port_a), (b, port_b) = ports(dispatch, Hub(dispatch), 2)
    mark = frame(b.mac, a.mac, b"mark")
    a.transmit([mark])
    b.set_carrier(False)
    assert (b.up, port_b.changes, a.up) == (False, 1, True)
    a.transmit([mark])
    assert port_b.drops == {Drop.LINK_DOWN: 2}, "what was under way, and what came then"
    b.transmit([mark, mark])
    dispatch.run_for(1.0)
    assert port_b.drops == {Drop.LINK_DOWN: 4}
    assert port_b.frames == []
    b.set_carrier(True)
    b.set_carrier(True)
    assert port_b.changes == 2
    a.transmit([mark] * (WAITING_MAX + 7))
    dispatch.run_for(1.0)
    assert len(port_b.frames) == WAITING_MAX
    assert port_b.drops["rx_overrun"] == 7
    assert port_a.drops == {}


def test_two_ports_need_two_addresses() -> None:
    hub = Hub(VirtualDispatch(1))
    hub.port("en0", MACS[0])
    with pytest.raises(Misuse):
        hub.port("en1", MACS[0])
