"""The Stack object: interfaces, dispatching of batches, hooks, events, and that modules come and go without a trace."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping

import attrs
import pytest

from resmgr.errors import Misuse
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.errors import ModuleError, OptionError
from stack.core.hooks import ORDER_FILTER, Hook, Point
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.loaded import Loaded
from stack.core.module import Context, Kind, Module
from stack.core.registry import Registration
from stack.core.stack import Stack
from stack.core.statistics import Drop
from stack.core.wrapper import Around
from stack.drivers.hub import Hub, HubPort
from stack.drivers.wrap.fault import FaultDriver
from stack.frame import Frame
from stack.testing.driver import OTHER_TYPE, TYPE, frame
from stack.wire.ethernet import BROADCAST

MACS = [bytes((2, 0, 0, 0, 0, number)) for number in range(5)]


class World:
    """Stacks on one hub; stack n has an interface en0 with address MACS[n]."""

    def __init__(self, count: int = 2) -> None:
        self.dispatch = VirtualDispatch(1)
        self.hub = Hub(self.dispatch)
        self.stacks = [Stack(System(self.dispatch, "n"), random.Random(n).randbytes, f"io-pkt{n}") for n in range(count)]
        self.loaded = [stack.load(self.hub.module(), f"mac={MACS[n].hex(':')}") for n, stack in enumerate(self.stacks)]
        self.seen: list[tuple[str, list[bytes]]] = []

    def interface(self, number: int) -> Interface:
        (found,) = self.stacks[number].interfaces
        return found

    def handler(self, name: str) -> Callable[[Interface, list[Frame]], None]:
        return lambda interface, frames: self.seen.append((f"{name}:{interface.name}", [bytes(one) for one in frames]))

    def send(self, number: int, *frames: Frame) -> None:
        self.stacks[number].output(self.interface(number), list(frames))
        self.dispatch.run_for(1.0)

    def arrived(self) -> list[tuple[str, list[bytes]]]:
        seen, self.seen = self.seen, []
        return seen


@attrs.frozen
class NoOptions:
    pass


@attrs.frozen
class TypeOptions:
    type: int = TYPE


class Protocol:
    """A protocol module as others write it."""

    def __init__(self, context: Context, ethertype: int, forgetful: bool = False) -> None:
        self.forgetful = forgetful
        self.frames: list[bytes] = []
        self.events: list[str] = []
        self.registrations: list[Registration] = [
            context.stack.register_ethertype(ethertype, self.receive),
            context.stack.on_interface(lambda event, interface: self.events.append(f"{interface.name} {event.value}")),
        ]

    def receive(self, interface: Interface, frames: list[Frame]) -> None:
        self.frames.extend(map(bytes, frames))

    def detach(self) -> None:
        if not self.forgetful:
            for registration in self.registrations:
                registration.revoke()


PROTOCOL = Module("proto", Kind.PROTOCOL, TypeOptions, lambda context, options: Protocol(context, options.type))
FORGETFUL = Module("forgetful", Kind.PROTOCOL, NoOptions, lambda context, options: Protocol(context, OTHER_TYPE, True))


def test_frames_reach_the_module_that_registered_their_type() -> None:
    world = World()
    one, two = (frame(MACS[1], MACS[0], bytes([n]) * 50) for n in range(2))
    other = frame(MACS[1], MACS[0], b"other", OTHER_TYPE)
    tagged = frame(MACS[1], MACS[0], b"tagged", TYPE, ((0x8100, 5),))
    world.stacks[1].register_ethertype(TYPE, world.handler("type"), vlans=True)
    registration = world.stacks[1].register_ethertype(OTHER_TYPE, world.handler("other"))
    world.send(0, one, two)
    assert world.arrived() == [("type:en0", [one, two])]
    world.send(0, one, other, tagged, two, other)
    assert world.arrived() == [("type:en0", [one, two]), ("other:en0", [other, other]), ("type:en0", [tagged])]
    world.send(0, tagged)
    assert world.arrived() == [("type:en0", [tagged])]
    registration.revoke()
    registration.revoke()
    world.send(0, one, other)
    assert world.arrived() == [("type:en0", [one])]
    statistics = world.stacks[1].statistics()
    assert statistics.ethertypes == {TYPE: 7}
    assert statistics.interfaces["en0"].rx_frames == 9
    assert statistics.interfaces["en0"].drops == {}
    assert world.stacks[0].statistics().interfaces["en0"].tx_frames == 10


def test_what_nobody_wants_is_counted() -> None:
    """A driver may deliver more than it was asked for, and anything at all."""
    world = World()
    interface = world.interface(0)
    world.stacks[0].register_ethertype(TYPE, world.handler("type"))
    good = frame(MACS[0], MACS[1], b"good")
    bad: list[Frame] = [
        b"",
        b"x" * 13,
        bytes(12) + b"\x81\0\0\1" * 3 + bytes(9),
        bytes(12) + b"\x81\0\0",
        frame(MACS[0], MACS[1], b"", 0x0800),
    ]
    interface.deliver([*bad, good])
    assert world.arrived() == [("type:en0", [good])]
    assert interface.statistics.drops == {"too_short": 2, "bad_tags": 2, "no_protocol": 1}
    interface.deliver([frame(MACS[0], MACS[1], b"", 0x0800)] * 3)
    assert interface.drops[Drop.NO_PROTOCOL] == 4


@pytest.mark.parametrize("seed", range(200))
def test_random_frames_raise_nothing_and_all_are_accounted_for(seed: int) -> None:
    rng = random.Random(seed)
    world = World(1)
    interface = world.interface(0)
    world.stacks[0].register_ethertype(TYPE, world.handler("type"))
    frames: list[Frame] = []
    for _ in range(50):
        good = bytearray(frame(MACS[0], MACS[1], rng.randbytes(40), TYPE, tuple((0x8100, 1) for _ in range(rng.randrange(4)))))
        good[rng.randrange(len(good))] = rng.randrange(256)
        frames.append(good[: rng.randrange(len(good) + 1)])
    interface.deliver(frames)
    handled = sum(len(batch) for _, batch in world.arrived())
    assert handled + sum(interface.drops.values()) == 50, seed


def test_two_stacks_in_one_process_share_nothing() -> None:
    world = World(3)
    for number in (1, 2):
        world.stacks[number].register_ethertype(TYPE, world.handler(f"stack{number}"))
    crypto = [stack.crypto for stack in world.stacks]
    assert len({id(one) for one in crypto}) == 3
    one = frame(BROADCAST, MACS[0], b"all")
    world.send(0, one)
    assert sorted(world.arrived()) == [("stack1:en0", [one]), ("stack2:en0", [one])]
    world.stacks[1].close()
    world.send(0, one)
    assert world.arrived() == [("stack2:en0", [one])]
    assert [len(stack.interfaces) for stack in world.stacks] == [1, 0, 1]


def test_an_ethertype_has_one_owner() -> None:
    world = World(1)
    stack = world.stacks[0]
    stack.load(PROTOCOL)
    before = stack.statistics()
    with pytest.raises(Misuse, match="0x88b5 is registered already"):
        stack.load(PROTOCOL)
    assert stack.statistics() == before
    stack.load(PROTOCOL, f"type={OTHER_TYPE}")
    for wrong in (0x8100, 46, 0x10000, -1):
        with pytest.raises(Misuse, match="cannot be registered"):
            stack.register_ethertype(wrong, world.handler("x"))


def test_a_failed_attach_leaves_nothing_behind() -> None:
    world = World(1)
    stack = world.stacks[0]

    def attach(context: Context, options: NoOptions) -> Protocol:
        Protocol(context, TYPE)
        context.stack.add_hook(Point.IN, lambda interface, frames: frames, name="left")
        raise ModuleError(5, "the device does not answer")

    with pytest.raises(ModuleError, match="the device does not answer"):
        stack.load(Module("broken", Kind.PROTOCOL, NoOptions, attach))
    stack.load(PROTOCOL)
    assert stack.statistics().modules == ("hub", "proto")
    with pytest.raises(OptionError, match="did you mean type"):
        stack.load(PROTOCOL, "tipe=1")


def test_a_driver_that_cannot_say_what_it_stands_on_leaves_no_interface() -> None:
    class Unsure(HubPort):
        @property
        def below(self) -> tuple[str, ...]:
            raise OSError("who knows")

    world = World(1)
    stack = world.stacks[0]
    unsure = Module("unsure", Kind.DRIVER, NoOptions, lambda context, options: Unsure(world.hub, world.dispatch, "en1", MACS[1], 1500))
    with pytest.raises(OSError, match="who knows"):
        stack.load(unsure)
    assert [one.name for one in stack.interfaces] == ["en0"]
    assert stack.loaded == (world.loaded[0],)
    again = Module("sure", Kind.DRIVER, NoOptions, lambda context, options: HubPort(world.hub, world.dispatch, "en1", MACS[1], 1500))
    assert stack.load(again).interface is stack.interface("en1")


def test_unload_removes_what_a_module_forgot_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    stack = world.stacks[1]
    loaded = stack.load(FORGETFUL)
    stack.unload(loaded)
    assert "module forgetful left ethertype 0x88b6 behind" in caplog.text
    stack.register_ethertype(OTHER_TYPE, world.handler("new"))
    with pytest.raises(Misuse):
        stack.unload(loaded)


def test_unloading_under_traffic_from_within_the_handler() -> None:
    world = World()
    stack = world.stacks[1]
    loaded: list[Loaded] = []

    def receive(interface: Interface, frames: list[Frame]) -> None:
        world.seen.append(("got", [bytes(one) for one in frames]))
        stack.unload(world.loaded[1])

    loaded.append(stack.load(PROTOCOL, f"type={OTHER_TYPE}"))
    stack.register_ethertype(TYPE, receive)
    one = frame(MACS[1], MACS[0], b"one")
    other = frame(MACS[1], MACS[0], b"other", OTHER_TYPE)
    interface = world.interface(1)
    world.send(0, one, other, one)
    world.send(0, one)
    assert world.arrived() == [("got", [one, one])]
    assert stack.interfaces == ()
    assert not interface.up
    proto = loaded[0].attached
    assert isinstance(proto, Protocol)
    assert proto.events == ["en0 detached"]
    assert len(world.hub.ports) == 1
    stack.output(interface, [one])
    assert interface.drops == {Drop.LINK_DOWN: 1}
    interface.deliver([one])  # a driver that breaks its contract
    interface.changed()
    assert world.arrived() == []
    assert proto.events == ["en0 detached"]


def test_an_exception_in_a_handler_is_counted_logged_once_and_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    world = World()

    def broken(interface: Interface, frames: list[Frame]) -> None:
        raise RuntimeError("boom")

    world.stacks[1].register_ethertype(TYPE, broken)
    world.stacks[1].register_ethertype(OTHER_TYPE, world.handler("other"))
    one, other = frame(MACS[1], MACS[0], b"one"), frame(MACS[1], MACS[0], b"other", OTHER_TYPE)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            world.send(0, one, other, one)
    assert [batch for _, batch in world.arrived()] == [[other]] * 3
    statistics = world.stacks[1].statistics()
    assert statistics.interfaces["en0"].drops == {"handler_failed": 6}
    assert statistics.failures == {"handler of 0x88b5": 3}
    assert caplog.text.count("exception in handler of 0x88b5") == 1


def test_hooks_run_in_order_and_out_is_the_mirror_of_in() -> None:
    world = World()
    trace: list[str] = []

    def hook(name: str) -> Callable[[Interface, list[Frame]], list[Frame]]:
        def run(interface: Interface, frames: list[Frame]) -> list[Frame]:
            trace.append(name)
            return frames

        return run

    for stack in world.stacks:
        for name, order in (("filter", ORDER_FILTER), ("tap", 100), ("bridge", 300)):
            for point in Point:
                stack.add_hook(point, hook(f"{point.value} {name}"), order=order, name=name)
    world.stacks[1].register_ethertype(TYPE, world.handler("type"))
    world.send(0, frame(MACS[1], MACS[0], b"one"))
    assert trace == ["out bridge", "out filter", "out tap", "in tap", "in filter", "in bridge"]
    assert len(world.arrived()) == 1


def test_hooks_may_drop_and_replace_and_are_counted() -> None:
    world = World()
    stack = world.stacks[1]
    one, two = frame(MACS[1], MACS[0], b"one"), frame(MACS[1], MACS[0], b"two")
    stack.register_ethertype(TYPE, world.handler("type"))
    registration = stack.add_hook(Point.IN, lambda interface, frames: frames[1:])
    world.send(0, one, two)
    assert world.arrived() == [("type:en0", [two])]
    world.send(0, one)
    assert world.arrived() == []
    registration.revoke()
    stack.add_hook(Point.IN, lambda interface, frames: [two for _ in frames])
    world.send(0, one)
    assert world.arrived() == [("type:en0", [two])]
    assert world.interface(1).drops == {Drop.HOOK_DROPPED: 2}


def test_a_hook_that_fails_lets_nothing_pass(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    stack = world.stacks[1]
    stack.register_ethertype(TYPE, world.handler("type"))

    def broken(interface: Interface, frames: list[Frame]) -> list[Frame]:
        raise RuntimeError("boom")

    registrations = [stack.add_hook(point, broken, name="broken") for point in Point]
    one = frame(MACS[1], MACS[0], b"one")
    world.send(0, one)
    world.send(1, one, one)
    assert world.arrived() == []
    assert world.interface(1).drops == {Drop.HOOK_FAILED: 3}
    assert world.interface(1).tx_frames == 0
    for registration in registrations:
        registration.revoke()
    world.send(0, one)
    assert len(world.arrived()) == 1


def test_a_hook_that_wants_everything_lifts_the_drivers_filter() -> None:
    world = World()
    stack = world.stacks[1]
    seen: list[int] = []

    def tap(interface: Interface, frames: list[Frame]) -> list[Frame]:
        seen.append(len(frames))
        return frames

    registration = stack.add_hook(Point.IN, tap, everything=True)
    ip = frame(MACS[1], MACS[0], b"ip", 0x0800)
    world.send(0, ip)
    assert seen == [1]
    assert world.interface(1).drops == {Drop.NO_PROTOCOL: 1}
    registration.revoke()
    world.send(0, ip)
    assert seen == [1]
    assert world.interface(1).rx_frames == 1


def test_a_hook_on_one_interface_costs_the_others_nothing() -> None:
    world = World()
    stack = world.stacks[1]
    seen: list[str] = []

    def tap(interface: Interface, frames: list[Frame]) -> list[Frame]:
        seen.append(interface.name)
        return frames

    registration = stack.add_hook(Point.IN, tap, everything=True, interfaces=("en7",))
    world.send(0, frame(MACS[1], MACS[0], b"ip", 0x0800))
    assert (seen, world.interface(1).rx_frames) == ([], 0), "the filter of the driver is as it was"
    registration.revoke()
    stack.add_hook(Point.IN, tap, everything=True, interfaces=("en0",))
    world.send(0, frame(MACS[1], MACS[0], b"ip", 0x0800))
    assert (seen, world.interface(1).rx_frames) == (["en0"], 1)


@pytest.mark.parametrize(
    ("tags", "arrives", "counted"),
    [
        ((), True, {}),
        (((0x8100, 0xA000),), True, {}),
        (((0x8100, 7),), False, {"no_vlan": 1}),
        (((0x8100, 0), (0x8100, 7)), False, {"no_vlan": 1}),
        (((0x8100, 0), (0x8100, 0)), False, {"no_vlan": 1}),
        (((0x88A8, 7),), False, {"no_protocol": 1}),
        (((0x88A8, 0),), False, {"no_protocol": 1}),
        (((0x8100, 0), (0x88A8, 0)), False, {"no_protocol": 1}),
    ],
)
def test_a_tag_that_no_vlan_took_is_not_overlooked(tags: tuple[tuple[int, int], ...], arrives: bool, counted: dict[str, int]) -> None:
    world = World()
    world.stacks[1].register_ethertype(TYPE, world.handler("type"))
    world.send(0, frame(MACS[1], MACS[0], b"one", TYPE, tags))
    assert world.arrived() == ([("type:en0", [frame(MACS[1], MACS[0], b"one")])] if arrives else [])
    assert world.interface(1).drops == counted


def test_interface_events() -> None:
    world = World(1)
    stack = world.stacks[0]
    proto = stack.load(PROTOCOL).attached
    assert isinstance(proto, Protocol)
    loaded = stack.load(world.hub.module(), "mac=02:00:00:00:00:99,name=en1,mtu=9000")
    assert loaded.interface is not None
    assert (loaded.interface.index, loaded.interface.mtu, stack.interface("en1")) == (2, 9000, loaded.interface)
    port = loaded.attached
    assert isinstance(port, HubPort)
    port.set_carrier(False)
    port.set_carrier(True)
    port.mtu = 4000
    port._port.changed()
    stack.unload(loaded)
    port.set_carrier(False)
    assert proto.events == ["en1 attached", "en1 down", "en1 up", "en1 changed", "en1 detached"]
    third = stack.load(world.hub.module(), "mac=02:00:00:00:00:98,name=en1")
    assert third.interface is not None
    assert third.interface.index == 3


def test_a_listener_that_fails_hides_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    world = World(1)
    events: list[InterfaceEvent] = []

    def broken(event: InterfaceEvent, interface: Interface) -> None:
        raise RuntimeError("boom")

    world.stacks[0].on_interface(broken)
    registration = world.stacks[0].on_interface(lambda event, interface: events.append(event))
    port = world.loaded[0].attached
    assert isinstance(port, HubPort)
    port.set_carrier(False)
    registration.revoke()
    port.set_carrier(True)
    assert events == [InterfaceEvent.DOWN]
    assert world.stacks[0].statistics().failures == {"interface listener": 2}


def test_output_without_carrier_is_counted() -> None:
    world = World()
    port = world.loaded[0].attached
    assert isinstance(port, HubPort)
    port.set_carrier(False)
    world.send(0, b"x" * 60, b"y" * 60)
    assert world.interface(0).drops == {Drop.LINK_DOWN: 2}
    assert world.interface(0).tx_frames == 0


def test_a_driver_that_raises_does_not_take_the_sender_with_it(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(HubPort):
        def transmit(self, frames: list[Frame]) -> None:
            raise RuntimeError("boom")

    world = World(1)
    stack = world.stacks[0]

    def attach(context: Context, options: NoOptions) -> HubPort:
        return Broken(world.hub, context.dispatch, "en7", MACS[4], 1500)

    loaded = stack.load(Module("broken", Kind.DRIVER, NoOptions, attach))
    assert loaded.interface is not None
    stack.output(loaded.interface, [b"x" * 60])
    assert loaded.interface.drops == {Drop.DRIVER_FAILED: 1}


def test_wrappers_around_a_driver() -> None:
    world = World()
    stack = world.stacks[0]
    loaded = stack.load(world.hub.module(), "mac=02:00:00:00:00:77,name=en1", wrap=[("fault", "delay=20ms"), ("fault", "mtu=100,seed=2")])
    inner, outer = loaded.wrappers
    assert isinstance(outer, FaultDriver)
    assert loaded.attached is outer
    assert outer.inner is inner
    assert loaded.interface is not None
    assert loaded.interface.name == "en1"
    world.stacks[1].register_ethertype(TYPE, world.handler("type"))
    stack.output(loaded.interface, [frame(MACS[1], MACS[0], bytes(50)), frame(MACS[1], MACS[0], bytes(200))])
    world.dispatch.run_for(0.019)
    assert world.arrived() == []
    world.dispatch.run_for(0.01)
    assert [len(batch) for _, batch in world.arrived()] == [1]
    assert loaded.interface.statistics.drops == {"fault_tx_mtu": 1}
    stack.unload(loaded)
    assert len(world.hub.ports) == 2


@pytest.mark.parametrize(
    ("wrap", "sentence"),
    [
        ([("fault", "drop=200%")], "fault: drop=200%: expected a share between 0 and 1"),
        ([("fault", ""), ("fualt", "")], "there is no wrapper called fualt"),
        ([("packet", "ifname=lo")], "there is no wrapper called packet"),
    ],
)
def test_a_wrapper_that_fails_takes_the_driver_with_it(wrap: list[tuple[str, str]], sentence: str) -> None:
    world = World(1)
    with pytest.raises(ModuleError) as raised:
        world.stacks[0].load(world.hub.module(), "mac=02:00:00:00:00:77,name=en1", wrap=wrap)
    assert str(raised.value).startswith(sentence)
    assert len(world.hub.ports) == 1
    assert len(world.stacks[0].interfaces) == 1


def test_what_cannot_be_loaded() -> None:
    world = World(1)
    stack = world.stacks[0]
    with pytest.raises(ModuleError, match="io-pkt0 has an interface en0 already"):
        stack.load(world.hub.module(), "mac=02:00:00:00:00:77")
    assert len(world.hub.ports) == 1
    with pytest.raises(ModuleError, match="proto is no driver: nothing can be wrapped around it"):
        stack.load(PROTOCOL, wrap=[("fault", "")])
    with pytest.raises(ModuleError, match="fault needs a driver to be wrapped around"):
        stack.load("fault")
    with pytest.raises(ModuleError, match="cannot load odd: what its attach returned, Protocol, lacks name, mac"):
        stack.load(Module("odd", Kind.DRIVER, NoOptions, lambda context, options: Protocol(context, TYPE)))
    assert stack.statistics().ethertypes == {}


def test_close_unloads_newest_first() -> None:
    world = World(1)
    stack = world.stacks[0]
    proto = stack.load(PROTOCOL).attached
    assert isinstance(proto, Protocol)
    stack.close()
    stack.close()
    assert proto.events == []
    assert stack.statistics().modules == ()
    assert world.hub.ports == ()
    with pytest.raises(Misuse):
        stack.load(PROTOCOL)


def test_watchers_of_ip_filters_are_listeners_like_others(caplog: pytest.LogCaptureFixture) -> None:
    (stack,) = World(1).stacks
    told: list[str] = []

    def broken() -> None:
        raise LookupError

    class Forgetful:
        def __init__(self, context: Context) -> None:
            context.stack.on_ip_filters(lambda: told.append("module"))

        def detach(self) -> None:
            pass

    loaded = stack.load(Module("forgetful", Kind.PROTOCOL, NoOptions, lambda context, options: Forgetful(context)))
    stack.on_ip_filters(broken)
    last = stack.on_ip_filters(lambda: told.append("program"))
    stack.add_ip_filter(lambda interface, point, packets: [True] * len(packets), "f").revoke()
    assert told == ["module", "program"] * 2
    assert stack.failures() == {"watcher of IP filters": 2}
    stack.unload(loaded)
    assert "module forgetful left a watcher of IP filters behind" in caplog.text
    last.revoke()
    stack.add_ip_filter(lambda interface, point, packets: [True] * len(packets), "f")
    assert len(told) == 4


def test_statistics_are_frozen_copies() -> None:
    world = World()
    before = world.stacks[0].statistics()
    world.send(0, frame(MACS[1], MACS[0], b"x"))
    assert before.interfaces["en0"].tx_frames == 0
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        before.name = "x"  # type: ignore[misc]  # that is the point
    with pytest.raises(TypeError):
        before.interfaces["en0"].drops["x"] = 1  # type: ignore[index]  # that is the point


class Asking(Around):
    """A driver that learns of its losses when somebody asks how it works, as those do whose kernel counts."""

    def info(self) -> Mapping[str, str | int]:
        self.count("rx_overrun", 3)
        return self.inner.info()


def test_what_a_driver_counts_when_it_is_asked_is_in_the_same_answer() -> None:
    world = World(0)
    driver = Asking()
    driver.around(world.hub.port("en0", MACS[0]))
    stack = Stack(System(world.dispatch, "n"), random.Random(1).randbytes)
    stack.load(Module("asking", Kind.DRIVER, NoOptions, lambda context, options: driver))
    (interface,) = stack.interfaces

    assert interface.statistics.drops == {"rx_overrun": 3}


def test_promiscuity_is_for_hooks_and_ends_with_who_asked() -> None:
    world = World(3)
    stack, interface = world.stacks[1], world.interface(1)
    stack.register_ethertype(TYPE, world.handler("up"))
    seen: list[bytes] = []

    def tap(_: Interface, frames: list[Frame]) -> list[Frame]:
        seen.extend(map(bytes, frames))
        return frames

    stack.add_hook(Point.IN, tap, name="tap")
    foreign, ours = frame(MACS[2], MACS[0], b"for another"), frame(MACS[1], MACS[0], b"for us")
    first, second = stack.promiscuous(interface, "a"), stack.promiscuous(interface, "b")
    world.send(0, foreign, ours)
    assert seen == [foreign, ours]
    assert world.arrived() == [("up:en0", [ours])]
    assert interface.drops == {Drop.OTHER_HOST: 1}
    first.revoke()
    world.send(0, foreign)
    assert len(seen) == 3
    second.revoke()
    world.send(0, foreign)
    assert len(seen) == 3
    assert not world.arrived()


def test_what_a_hook_moves_to_another_interface_meets_the_hooks_behind_it_only() -> None:
    world = World()
    stack, interface = world.stacks[1], world.interface(1)
    stack.register_ethertype(TYPE, world.handler("up"))

    def passing(order: int) -> Hook:
        tell = world.handler(str(order))

        def hook(one: Interface, frames: list[Frame]) -> list[Frame]:
            tell(one, frames)
            return frames

        return hook

    for order in (100, 300, 400):
        stack.add_hook(Point.IN, passing(order), order=order)
    moved = frame(MACS[1], MACS[0], b"moved")
    stack.entered(interface, [moved], 300)
    assert world.arrived() == [("400:en0", [moved]), ("up:en0", [moved])]
    assert interface.rx_frames == 0
