"""Both engines between real namespaces: what is carried, what comes up, and what happens when things change under traffic."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from stack.core.errors import ModuleError
from stack.core.hooks import ORDER_TAP, Point
from stack.l2.forward import kernel
from stack.l2.forward.fastpath import FastPath
from stack.l2.forward.kinds import kinds
from tests.stack.l2.forward.conftest import Bridged, frame, settle, station

pytestmark = pytest.mark.priv


def numbered(destination: int, source: int, count: int, size: int = 100, start: int = 0) -> list[bytes]:
    return [frame(destination, source, number.to_bytes(4, "big") * (size // 4)) for number in range(start, start + count)]


async def test_known_frames_are_carried_in_order_and_whole(bridged: Bridged, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bridged.bridge.seen
    sent = [*numbered(1, 0, 300), *numbered(1, 0, 30, 1480, 300), frame(1, 0, b"short")]
    for start in range(0, len(sent), 30):
        bridged.hosts[0].send(*sent[start : start + 30])
        await bridged.heard(1, min(len(sent), start + 30))
    assert bridged.hosts[1].hear() == sent
    assert bridged.hosts[2].hear() == []
    assert bridged.bridge.seen == before, "the stack saw frames that an engine should carry"
    seen = bridged.engine.statistics()
    assert seen.frames == seen.ports["p0"].in_frames == seen.ports["p1"].out_frames == len(sent)
    assert seen.ports["p0"].in_bytes == seen.ports["p1"].out_bytes == sum(map(len, sent))
    assert seen.ports["p1"].in_frames == seen.ports["p0"].out_frames == 0
    assert seen.stations == 3
    assert bridged.engine.frames == len(sent)
    # As it is counted where there are many ports.
    monkeypatch.setattr(kernel, "PAIRS_MANY", 0)
    assert bridged.engine.statistics() == seen
    assert bridged.engine.frames == len(sent)
    assert all(port.off == () and port.how for port in seen.ports.values())


async def test_groups_unknown_stations_and_strangers_go_up(bridged: Bridged) -> None:
    before = bridged.bridge.seen
    up = bridged.engine.statistics().ports["p0"].up
    bridged.hosts[0].send(b"\xff" * 6 + frame(0, 0, b"all")[6:])
    bridged.hosts[0].send(frame(0x77, 0, b"nobody"))
    bridged.hosts[0].send(frame(1, 0x55, b"a stranger"))
    assert await settle(lambda: bridged.bridge.seen == before + 3)
    assert len(await bridged.heard(1, 3)) == 3
    after = bridged.engine.statistics().ports["p0"].up
    assert {name: after.get(name, 0) - up.get(name, 0) for name in ("group", "destination", "source")} == {
        "group": 1,
        "destination": 1,
        "source": 1,
    }


async def test_what_is_for_a_port_itself_goes_up(bridged: Bridged) -> None:
    got: list[bytes] = []
    registration = bridged.stack.register_ethertype(0x88B5, lambda interface, frames: got.extend(map(bytes, frames)))
    own = bridged.ports[0].mac
    bridged.hosts[0].send(own + frame(0, 0, b"for the bridge's machine")[6:])
    assert await settle(lambda: len(got) == 1)
    registration.revoke()


async def test_a_station_that_moves_is_seen_and_followed(bridged: Bridged) -> None:
    bridged.hosts[0].send(*numbered(1, 0, 5))
    await bridged.heard(1, 5)
    bridged.hosts[2].send(frame(1, 0, b"now I am here"))
    await bridged.heard(1, 6)
    assert await settle(lambda: bridged.bridge.known[station(0)] is bridged.ports[2])
    bridged.hosts[0].frames.clear()
    bridged.hosts[1].send(*numbered(0, 1, 5))
    assert await bridged.heard(2, 5) == numbered(0, 1, 5)
    assert bridged.hosts[0].hear() == []


async def test_a_frame_for_the_segment_that_it_came_from_ends(bridged: Bridged) -> None:
    bridged.hosts[0].send(frame(0x77, 0x44, b"another station on the same cable"))
    assert await settle(lambda: station(0x44) in bridged.bridge.known)
    before = bridged.bridge.seen
    bridged.hosts[0].send(frame(0x44, 0, b"stays"), frame(1, 0, b"goes"))
    assert frame(1, 0, b"goes") in await bridged.heard(1, 2)
    statistics = bridged.engine.statistics().ports["p0"]
    assert statistics.dropped == {"same_port": 1}
    assert bridged.bridge.seen == before


async def test_tagged_frames_are_carried_as_they_are(bridged: Bridged) -> None:
    sent = [frame(1, 0, b"tagged", tag=b"\x81\0\x60\x05"), frame(1, 0, b"plain"), frame(1, 0, bytes(1500), tag=b"\x81\0\0\x07")]
    bridged.hosts[0].send(*sent)
    assert await bridged.heard(1, 3) == sent
    assert await settle(lambda: bridged.engine.frames == 3), "a worker counts after it has sent"


async def test_what_another_port_cannot_take_goes_up(bridged: Bridged) -> None:
    for namespace, link in ((bridged.town.middle, "p0"), (bridged.hosts[0].namespace, "h0")):
        namespace.ip("link", "set", link, "mtu", "3000")
    assert await settle(lambda: bridged.ports[0].mtu == 3000)
    bridged.hosts[0].send(frame(1, 0, bytes(2000)), frame(1, 0, bytes(1500)))
    assert await bridged.heard(1, 1) == [frame(1, 0, bytes(1500))]
    assert bridged.engine.statistics().ports["p0"].up.get("long") == 1


async def test_what_linux_does_not_send_is_counted(bridged: Bridged) -> None:
    """The far end of a cable has a smaller MTU, which no program and no worker knows of."""
    bridged.hosts[1].namespace.ip("link", "set", "h1", "mtu", "600")
    for _ in range(20):
        bridged.hosts[0].send(frame(1, 0, bytes(1000)))
    where = "p0" if bridged.engine.name == "threads" else "p1"

    def dropped() -> object:
        return bridged.engine.statistics().ports[where].dropped

    assert await settle(lambda: dropped() == {"not_sent": 20}), bridged.engine.statistics()
    port = bridged.ports[int(where[1])]
    bridged.engine.remove(port)
    assert port.drops["not_sent"] == 20
    assert bridged.hosts[1].hear() == []


async def test_a_port_is_off_for_reasons(bridged: Bridged) -> None:
    engine, port = bridged.engine, bridged.ports[1]
    engine.off(port, "spanning tree")
    engine.off(port, "guard")
    before = bridged.bridge.seen
    for _ in range(2):
        bridged.hosts[0].send(frame(1, 0, b"into it"))
        bridged.hosts[1].send(frame(0, 1, b"out of it"))
        bridged.hosts[0].send(frame(2, 0, b"elsewhere"))
        engine.on(port, "guard")
    assert await settle(lambda: bridged.bridge.seen == before + 4)
    assert engine.statistics().ports["p1"].off == ("spanning tree",)
    assert await settle(lambda: len(bridged.hosts[2].hear()) == 2)
    if engine.name == "threads":
        assert engine.statistics().ports["p0"].up["destination"] >= 2, "the ring of p1 is the driver's again"
        assert not engine.statistics().ports["p1"].how
    else:
        assert engine.statistics().ports["p0"].up["output_off"] == 2
        assert engine.statistics().ports["p1"].up["off"] >= 2
    engine.on(port, "spanning tree")
    bridged.hosts[0].send(frame(1, 0, b"again"))
    await bridged.heard(1, 3)
    assert bridged.bridge.seen == before + 4


async def test_a_tap_turns_it_off_while_it_is_there(bridged: Bridged) -> None:
    tapped: list[bytes] = []

    def tap(interface: object, frames: list[bytes]) -> list[bytes]:
        tapped.extend(map(bytes, frames))
        return frames

    registration = bridged.stack.add_hook(Point.IN, tap, order=ORDER_TAP, name="tcpdump", everything=True)  # type: ignore[arg-type]  # frames only read
    assert all(port.off == ("hook tcpdump sees its frames",) for port in bridged.engine.statistics().ports.values())
    sent = numbered(1, 0, 20)
    bridged.hosts[0].send(*sent)
    assert await bridged.heard(1, 20) == sent
    assert [one for one in tapped if one[:12] == sent[0][:12]] == sent
    registration.revoke()
    assert all(port.off == () for port in bridged.engine.statistics().ports.values())
    tapped.clear()
    bridged.hosts[0].send(*sent)
    assert await bridged.heard(1, 40) == sent * 2
    assert tapped == []


async def test_forgetting(bridged: Bridged) -> None:
    before = bridged.bridge.seen
    bridged.engine.forget(station(1))
    bridged.hosts[0].send(frame(1, 0, b"unknown"))
    assert await settle(lambda: bridged.bridge.seen == before + 1)
    bridged.engine.flush(bridged.ports[0])
    bridged.hosts[2].send(frame(0, 2, b"unknown too"))
    assert await settle(lambda: bridged.bridge.seen == before + 2)
    assert bridged.engine.statistics().stations == 1
    bridged.engine.flush()
    assert bridged.engine.statistics().stations == 0


async def test_what_is_carried_keeps_a_station_from_ageing(bridged: Bridged) -> None:
    assert bridged.engine.idle(station(0)) is None
    bridged.hosts[0].send(frame(1, 0, b"alive"))
    await bridged.heard(1, 1)
    idle = bridged.engine.idle(station(0))
    assert idle is not None
    assert 0 <= idle < 3
    assert bridged.engine.idle(station(1)) is None, "it was only sent to"
    assert bridged.engine.idle(station(0x66)) is None


async def test_a_port_is_taken_away_under_traffic_and_comes_back(bridged: Bridged) -> None:
    engine, port = bridged.engine, bridged.ports[1]
    sent = numbered(1, 0, 400)
    for start in range(0, 400, 20):
        bridged.hosts[0].send(*sent[start : start + 20])
        if start == 100:
            engine.remove(port)
        if start == 200:
            engine.add(port)
            engine.learned(station(1), port)
        await bridged.heard(1, start + 20)
    assert bridged.hosts[1].hear() == sent
    assert set(engine.statistics().ports) == {"p0", "p1", "p2"}


async def test_a_link_that_goes_and_comes_back(bridged: Bridged) -> None:
    town = bridged.town
    town.middle.ip("link", "del", "p2")
    assert await settle(lambda: bridged.engine.statistics().ports["p2"].off == ("its link is down",))
    bridged.hosts[0].send(*numbered(1, 0, 5))
    await bridged.heard(1, 5)
    town.middle.ip("link", "add", "p2", "type", "veth", "peer", "name", "h2")
    town.middle.move("h2", bridged.hosts[2].namespace)
    town.middle.ip("link", "set", "p2", "up")
    bridged.hosts[2].namespace.ip("link", "set", "h2", "up")
    assert await settle(lambda: bridged.engine.statistics().ports["p2"].off == ())
    assert bridged.engine.statistics().ports["p2"].how


async def test_nothing_is_left(bridged: Bridged) -> None:
    bridged.engine.close()
    before = bridged.bridge.seen
    bridged.hosts[0].send(*numbered(1, 0, 5))
    assert await bridged.heard(1, 5) == numbered(1, 0, 5)
    assert bridged.bridge.seen == before + 5
    assert "xdp" not in bridged.town.middle.output("link", "show")
    bridged.engine.close()


CYCLES = 60


async def test_ports_come_and_go_under_traffic_and_nothing_is_left(bridged: Bridged) -> None:
    """CYCLES times a port leaves the engine and comes back while frames flow; every frame arrives once, in order."""
    engine, port = bridged.engine, bridged.ports[1]
    await _cycle(bridged, 0)
    before = _held(bridged)
    for number in range(1, CYCLES):
        await _cycle(bridged, number)
    assert await settle(lambda: all(one.how for one in engine.statistics().ports.values()))
    # A worker closes the ring of a port that left when it has served what was in it.
    # The first one may not be closed when we look for the first time.
    assert await settle(lambda: all(now <= then for now, then in zip(_held(bridged), before, strict=True))), (_held(bridged), before)
    assert port.attached
    assert engine.statistics().ports["p0"].in_frames > 0


def _held(bridged: Bridged) -> tuple[int, int, int]:
    """Descriptors of the process, threads, descriptors of the dispatch."""
    return len(os.listdir("/proc/self/fd")), threading.active_count(), bridged.town.dispatch.statistics().descriptors


async def _cycle(bridged: Bridged, number: int) -> None:
    engine, port = bridged.engine, bridged.ports[1]
    bridged.hosts[1].frames.clear()
    sent = numbered(1, 0, 12, start=number * 12)
    bridged.hosts[0].send(*sent[:4])
    await bridged.heard(1, 4)
    engine.remove(port)
    bridged.hosts[0].send(*sent[4:8])
    await bridged.heard(1, 8)
    engine.add(port)
    engine.learned(station(1), port)
    bridged.hosts[0].send(*sent[8:])
    assert await bridged.heard(1, 12) == sent


async def test_a_tap_on_one_port_leaves_the_others_their_fast_path(bridged: Bridged) -> None:
    def tap(interface: object, frames: list[bytes]) -> list[bytes]:
        return frames

    point = Point.OUT
    registration = bridged.stack.add_hook(point, tap, order=ORDER_TAP, name="tcpdump", interfaces=("p2",))  # type: ignore[arg-type]  # frames only read
    ports = bridged.engine.statistics().ports
    assert [ports[name].off for name in ("p0", "p1", "p2")] == [(), (), ("hook tcpdump sees its frames",)]
    before = bridged.bridge.seen
    sent = numbered(1, 0, 20)
    bridged.hosts[0].send(*sent)
    assert await bridged.heard(1, 20) == sent
    assert bridged.bridge.seen == before
    registration.revoke()
    assert bridged.engine.statistics().ports["p2"].off == ()
    assert bridged.engine.statistics().ports["p2"].how


async def test_hooks_below_the_bridge_see_what_is_carried_without_asking_for_everything(bridged: Bridged) -> None:
    seen: list[bytes] = []

    def look(interface: object, frames: list[bytes]) -> list[bytes]:
        seen.extend(map(bytes, frames))
        return frames

    for point in Point:
        seen.clear()
        registration = bridged.stack.add_hook(point, look, order=ORDER_TAP, name="look")  # type: ignore[arg-type]  # frames only read
        bridged.hosts[0].send(frame(1, 0, b"seen"))
        assert await settle(lambda: frame(1, 0, b"seen") in seen)
        registration.revoke()


async def test_an_interface_is_carried_by_one_engine(bridged: Bridged) -> None:
    stack, (first, *_) = bridged.stack, bridged.ports
    kind = bridged.engine.name
    with pytest.raises(ModuleError, match=rf"^p0 is a port of another forwarding engine \({kind}\) already$") as refused:
        stack.carry(first, "threads")
    assert refused.value.errno == errno.EBUSY
    for name in ("threads", "kernel"):
        second = FastPath(stack, name, kinds(bridged.town.dispatch))
        second.add(first)
        assert second.statistics().ports["p0"].off == (str(refused.value),)
        sent = numbered(1, 0, 20)
        bridged.hosts[0].send(*sent)
        assert (await bridged.heard(1, 20))[-20:] == sent, "the first engine carries as before"
        bridged.hosts[1].frames.clear()
        second.close()
    second = FastPath(stack, "threads", kinds(bridged.town.dispatch))
    second.add(first)
    bridged.engine.remove(first)
    assert second.statistics().ports["p0"].how == "thread 0", "what the first has let go of is the second's"
    assert first.engine == "threads"
    second.close()
    assert first.engine == ""
    bridged.engine.add(first)
    assert bridged.engine.statistics().ports["p0"].off == ()


async def test_what_was_carried_stays_in_the_counters(bridged: Bridged) -> None:
    """A port that is detached and comes back, and one that goes for good, take nothing from the others' counts nor from their own."""
    engine, ports = bridged.engine, bridged.ports

    def counted() -> dict[str, tuple[int, int, int, int]]:
        carried = engine.statistics().ports
        told = {}
        for port in ports:
            own = (port.rx_frames, port.rx_bytes, port.tx_frames, port.tx_bytes)
            one = carried.get(port.name)
            more = (0, 0, 0, 0) if one is None else (one.in_frames, one.in_bytes, one.out_frames, one.out_bytes)
            told[port.name] = (own[0] + more[0], own[1] + more[1], own[2] + more[2], own[3] + more[3])
        return told

    bridged.hosts[0].send(*numbered(1, 0, 30))
    bridged.hosts[1].send(*numbered(0, 1, 20))
    await bridged.heard(1, 30)
    await bridged.heard(0, 20)
    assert await settle(lambda: engine.frames == 50), "a worker counts after it has sent"
    before, frames = counted(), engine.frames
    for number in (1, 0):
        ports[number].switch(False)
        assert counted() == before
        ports[number].switch(True)
        assert counted() == before
        assert engine.frames == frames
    engine.remove(ports[0])
    assert counted() == before
    engine.remove(ports[1])
    assert counted() == before
