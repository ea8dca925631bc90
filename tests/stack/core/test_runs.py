"""Runs in the stack: nobody meets one who did not say so, and order is kept wherever they are cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import attrs
import pytest

from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.driver import BATCH_MAX, Port
from stack.core.hooks import ORDER_BRIDGE, ORDER_FILTER, ORDER_TAP, ORDER_VLAN, Hook, Point
from stack.core.ifnet import Interface
from stack.core.module import Context, Kind, Module
from stack.core.registry import Registration
from stack.core.stack import Stack
from stack.frame import Frame
from stack.testing.runs import MACS, tcp_run
from stack.wire.run import Run

IPV4 = 0x0800


class Plain:
    """A driver that knows nothing of runs, and notes what it is asked to send."""

    mac, mtu, up = MACS[:6], 1500, True

    def __init__(self, name: str) -> None:
        self.name = name
        self.whole: list[bool] = []
        self.sent: list[Frame] = []
        self.calls: list[str] = []
        self.port: Port | None = None

    def start(self, port: Port) -> None:
        self.port = port

    def accept(self, ethertypes: frozenset[int] | None) -> None: ...

    def transmit(self, frames: list[Frame]) -> None:
        self.calls.append("transmit")
        self.sent += frames

    def detach(self) -> None: ...

    def info(self) -> Mapping[str, str | int]:
        return {}

    def deliver(self, *frames: Frame) -> None:
        assert self.port is not None
        self.port.deliver(list(frames))


class Card(Plain):
    """One that has them."""

    def transmit_runs(self, frames: list[Frame]) -> None:
        self.calls.append("transmit_runs")
        self.sent += frames

    def whole_runs(self, on: bool) -> None:
        self.whole.append(on)


@attrs.frozen
class NoOptions:
    pass


class Place:
    """A stack with two cards; `carry` moves what comes in on the first to the second, as a bridge does."""

    def __init__(self) -> None:
        self.dispatch = VirtualDispatch(1)
        self.stack = Stack(System(self.dispatch, "n"), random.Random(1).randbytes)
        self.cards = [Card("en0"), Card("en1")]
        self.ports = [self.load(card) for card in self.cards]
        self.handled: list[list[Frame]] = []
        self.stack.register_ethertype(IPV4, lambda interface, frames: self.handled.append(list(frames)))

    def load(self, card: Plain) -> Interface:
        def attach(context: Context, options: NoOptions) -> Plain:
            return card

        interface = self.stack.load(Module(card.name, Kind.DRIVER, NoOptions, attach)).interface
        assert interface is not None
        return interface

    def carry(self, interface: Interface, frames: list[Frame]) -> list[Frame]:
        if interface is self.ports[0]:
            self.stack.output(self.ports[1], frames, ORDER_BRIDGE)
            return []
        return frames

    def add(self, point: Point, order: int, hook: Hook, runs: bool) -> Registration:
        return self.stack.add_hook(point, hook, order=order, runs=runs)


@pytest.fixture
def place() -> Place:
    return Place()


def run(mark: int = 0, segments: int = 3) -> Run:
    return Run.make(*tcp_run(bytes([mark]) * (1000 * segments), 1000))


def single(mark: int) -> bytes:
    return bytes(run(mark, 1).segments()[0])


def noting(seen: list[Frame]) -> Callable[[Interface, list[Frame]], list[Frame]]:
    def hook(interface: Interface, frames: list[Frame]) -> list[Frame]:
        seen.extend(frames)
        return frames

    return hook


def test_drivers_are_asked_while_a_hook_wants_runs(place: Place) -> None:
    first = place.add(Point.IN, ORDER_BRIDGE, place.carry, True)
    second = place.add(Point.IN, ORDER_BRIDGE, place.carry, True)
    later = Card("en2")
    place.load(later)
    first.revoke()
    assert place.cards[0].whole == later.whole == [True]
    second.revoke()
    assert place.cards[0].whole == later.whole == [True, False]


def test_who_carries_gets_it_whole_and_in_order(place: Place) -> None:
    place.add(Point.IN, ORDER_BRIDGE, place.carry, True)
    batch: list[Frame] = [single(1), run(2), single(3), run(4)]
    place.cards[0].deliver(*batch)
    assert place.cards[1].sent == batch
    assert place.cards[1].calls == ["transmit_runs"]
    place.cards[0].deliver(single(5))
    assert place.cards[1].calls == ["transmit_runs", "transmit"]


@pytest.mark.parametrize("point", [Point.IN, Point.OUT])
@pytest.mark.parametrize("order", [ORDER_TAP, ORDER_FILTER])
def test_who_does_not_carry_it_sees_segments(place: Place, point: Point, order: int) -> None:
    place.add(Point.IN, ORDER_BRIDGE, place.carry, True)
    seen: list[Frame] = []
    whole: list[Frame] = []
    place.add(point, order, noting(seen), False)
    place.add(point, order - 1 if point is Point.IN else order + 1, noting(whole), True)
    batch: list[Frame] = [single(1), run(2), single(3)]
    place.cards[0].deliver(*batch)
    wire = [single(1), *run(2).segments(), single(3)]
    assert seen == place.cards[1].sent == wire
    assert whole == batch
    assert not any(isinstance(one, Run) for one in place.cards[1].sent)


def test_protocols_and_hooks_behind_the_bridge_see_segments(place: Place) -> None:
    place.add(Point.IN, ORDER_BRIDGE, place.carry, True)
    seen: list[Frame] = []
    place.add(Point.IN, ORDER_VLAN, noting(seen), False)
    place.cards[1].deliver(run(2), single(3))
    wire = [*run(2).segments(), single(3)]
    assert seen == wire
    assert place.handled == [wire]
    place.stack.entered(place.ports[1], [run(4)], ORDER_BRIDGE)
    assert place.handled[1] == seen[4:] == run(4).segments()


def test_what_a_run_becomes_is_no_longer_than_a_batch(place: Place) -> None:
    place.add(Point.IN, ORDER_BRIDGE, place.carry, True)
    lengths: list[int] = []
    data = bytes(range(250)) * 50
    whole = Run.make(*tcp_run(data, 100))

    def hook(interface: Interface, frames: list[Frame]) -> list[Frame]:
        lengths.append(len(frames))
        return frames

    place.add(Point.IN, ORDER_VLAN, hook, False)
    place.cards[1].deliver(whole, whole, whole)
    assert lengths == [BATCH_MAX, 375 - BATCH_MAX]
    assert b"".join(bytes(one[54:]) for batch in place.handled for one in batch) == 3 * data


def test_a_driver_that_cannot_send_runs_gets_segments(place: Place) -> None:
    place.add(Point.IN, ORDER_BRIDGE, place.carry, True)
    old = place.load(Plain("en2"))
    place.stack.output(old, [run(2), single(3)])
    assert isinstance(old.driver, Plain)
    assert old.driver.sent == [*run(2).segments(), single(3)]
    assert (old.tx_frames, old.tx_bytes) == (4, sum(map(len, [*run(2).segments(), single(3)])))
