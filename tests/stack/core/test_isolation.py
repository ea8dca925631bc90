"""What a module's callbacks may not do to others: exceptions, slowness, what is left on the dispatch; and restarts."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable

import attrs
import pytest
import trio

from qnetpy.cli import mount
from resmgr.runner import open_dispatch
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.errors import ModuleError, OptionError
from stack.core.hooks import Hook, Point
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.ipfilters import IpFilter, Packet
from stack.core.isolation import NAMES_MAX, Guard, Guards
from stack.core.module import Context, Kind, Module
from stack.core.options import take_common
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.frame import Frame
from stack.managers.facts import facts
from stack.testing.driver import TYPE, frame
from stack.wire.ip import parse_ip

MAC = bytes.fromhex("020000000001")


@attrs.frozen
class Options:
    name: str = "x"


class Trouble:
    """A protocol that does what a test tells it, whenever it is called."""

    def __init__(self, context: Context, options: Options) -> None:
        self.context = context
        self.options = options
        self.do: Callable[[], None] = lambda: None
        self.calls = 0
        context.stack.register_ethertype(TYPE, self.receive)

    def receive(self, interface: Interface, frames: list[Frame]) -> None:
        self.calls += 1
        self.do()

    def call(self) -> None:
        self.calls += 1
        self.do()

    def detach(self) -> None:
        pass


def boom() -> None:
    raise RuntimeError("boom")


class World:
    """A stack with an interface and the module; `attached` counts its loads."""

    def __init__(self, options: str = "", clock: Callable[[], float] | None = None) -> None:
        self.dispatch = VirtualDispatch(1)
        self.stack = Stack(System(self.dispatch, "n"), random.Random(1).randbytes, clock=clock)
        self.attached: list[Trouble] = []
        self.refuse = ""
        self.stack.load(Hub(self.dispatch).module(), f"mac={MAC.hex(':')}")
        self.loaded = self.stack.load(Module("trouble", Kind.PROTOCOL, Options, self._attach), options)
        (self.interface,) = self.stack.interfaces

    def _attach(self, context: Context, options: Options) -> Trouble:
        if self.refuse:
            raise ModuleError(19, self.refuse)
        self.attached.append(Trouble(context, options))
        return self.attached[-1]

    @property
    def module(self) -> Trouble:
        return self.attached[-1]

    def traffic(self) -> None:
        self.interface.deliver([frame(MAC, MAC, b"x")])


def test_an_exception_in_a_timer_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.module.do = boom
    dispatch = world.module.context.dispatch

    for defer in (dispatch.call_soon, dispatch.at_turn_end, dispatch.call_from_thread, lambda call: dispatch.call_at(1001.0, call)):
        defer(world.module.call)
    dispatch.call_blocking(lambda: 1, lambda result: boom())
    world.dispatch.run_for(5.0)

    assert world.loaded.guard.failures == {"Trouble.call": 4, "test_an_exception_in_a_timer_goes_no_further.<locals>.<lambda>": 1}
    assert world.stack.failures()["Trouble.call"] == 4
    assert caplog.text.count("module trouble: exception in Trouble.call") == 1


@pytest.mark.host
async def test_an_exception_in_a_descriptors_callback_or_a_task_does_not_end_the_node() -> None:
    async with open_dispatch() as dispatch:
        stack = Stack(System(dispatch, "n"), os.urandom)
        made: list[Trouble] = []

        def attach(context: Context, options: Options) -> Trouble:
            made.append(Trouble(context, options))
            return made[-1]

        loaded = stack.load(Module("trouble", Kind.PROTOCOL, Options, attach))
        (trouble,) = made
        reader, writer = os.pipe()

        def readable() -> None:
            os.read(reader, 1)
            boom()

        async def task() -> None:
            boom()

        trouble.context.dispatch.attach_fd(reader, readable)
        trouble.context.dispatch.start_task(task)
        os.write(writer, b"x")
        with trio.fail_after(5):
            while sum(loaded.guard.failures.values()) < 2:  # noqa: ASYNC110  # what is awaited is in the dispatch: no event tells
                await trio.sleep(0.001)
        assert loaded.dispatch.sizes() == {"descriptors": 1, "timers": 0, "tasks": 0}
        stack.unload(loaded)
        assert dispatch.statistics().descriptors == 0
        os.close(reader)
        os.close(writer)
        stack.close()


def test_what_a_module_registered_later_goes_with_it(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    stack = world.stack
    registered = stack.add_hook(Point.IN, lambda interface, frames: frames, name="mine")
    world.module.do = lambda: (stack.add_hook(Point.OUT, lambda interface, frames: frames, name="late"), None)[1]
    world.traffic()
    world.module.do = lambda: None
    timer = world.module.context.dispatch.call_at(5000.0, boom)
    assert [name for _, name in stack.hooks()] == ["", "trouble"]

    stack.unload(world.loaded)

    assert [entry.name for entry, _ in stack.hooks()] == ["mine"]
    assert "left hook late behind" in caplog.text
    assert "left a timer behind" in caplog.text
    timer.cancel()
    world.dispatch.run_for(5000.0)
    assert stack.failures() == {}
    registered.revoke()


def test_what_is_revoked_is_not_kept() -> None:
    world = World()
    stack = world.stack

    def come_and_go() -> None:
        stack.add_hook(Point.IN, lambda interface, frames: frames, name="short").revoke()

    world.module.do = come_and_go
    for _ in range(10):
        world.traffic()
    assert [one.what for one in world.loaded.guard.registrations] == [f"ethertype {TYPE:#06x}"]


def test_a_slow_callback_is_named_and_not_whoever_called_it(caplog: pytest.LogCaptureFixture) -> None:
    time = [100.0]

    def sleep(seconds: float) -> None:
        time[0] += seconds

    world = World(clock=lambda: time[0])
    caplog.set_level(logging.INFO)
    hub = world.stack.loaded[0]
    world.module.do = lambda: sleep(0.2)
    hub.guard.run("HubPort.deliver", world.traffic)
    assert hub.guard.slow == {}
    assert world.loaded.guard.slow == {"handler": 1}
    assert world.loaded.guard.longest == pytest.approx(0.2)
    world.module.do = lambda: sleep(0.01)
    world.traffic()
    world.module.context.dispatch.call_soon(lambda: sleep(0.3))
    world.dispatch.run_for(1.0)
    assert sum(world.loaded.guard.slow.values()) == 2
    assert "module trouble: handler took 200 ms" in caplog.text


def test_names_of_callbacks_have_a_bound() -> None:
    guard = Guard("many", Guards("s", None))
    for number in range(200):
        guard.run(f"call {number}", boom)
    assert len(guard.failures) == NAMES_MAX + 1
    assert guard.failures["other"] == 200 - NAMES_MAX


def test_a_module_is_restarted_with_back_off_and_a_cap(caplog: pytest.LogCaptureFixture) -> None:
    world = World("restart=3,name=y")
    began = world.dispatch.now()
    times = [began]

    for _ in range(6):
        before = len(world.attached)
        world.module.do = boom
        world.traffic()
        world.dispatch.run_for(100.0)
        if len(world.attached) > before:
            times.append(world.dispatch.now())

    assert len(world.attached) == 4, "three restarts, and then none"
    assert [one.options.name for one in world.attached] == ["y"] * 4
    assert "failed again after 3 restarts: it is left as it is" in caplog.text
    assert [one.module.name for one in world.stack.loaded] == ["hub", "trouble"]
    assert world.stack.failures() == {f"handler of {TYPE:#06x}": 6}
    assert world.stack.loaded[1].number == 5


def test_waits_between_restarts_grow_and_a_quiet_time_forgives() -> None:
    world = World("restart=9")
    waits = []
    for _ in range(4):
        count, now = len(world.attached), world.dispatch.now()
        world.module.do = boom
        world.traffic()
        assert world.dispatch.run_until(lambda count=count: len(world.attached) > count, limit=100.0)  # type: ignore[misc]  # bound now
        waits.append(world.dispatch.now() - now)
    assert waits == pytest.approx([0.0, 1.0, 2.0, 4.0], abs=0.01)
    world.dispatch.run_for(601.0)
    now = world.dispatch.now()
    world.module.do = boom
    world.traffic()
    assert world.dispatch.run_until(lambda: len(world.attached) == 6, limit=1.0)
    assert world.dispatch.now() - now < 0.01


def test_a_module_that_cannot_be_loaded_again_now_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    world = World("restart=4")
    world.refuse = "the device is gone"
    world.module.do = boom
    world.traffic()
    world.dispatch.run_for(0.5)
    assert world.stack.restarter.absent() == {"trouble #2": "the device is gone"}
    assert [one.module.name for one in world.stack.loaded] == ["hub"]
    world.refuse = ""
    world.dispatch.run_for(2.0)
    assert world.stack.restarter.absent() == {}
    assert [one.module.name for one in world.stack.loaded] == ["hub", "trouble"]
    world.refuse = "gone for good"
    world.module.do = boom
    world.traffic()
    world.dispatch.run_for(1000.0)
    assert "is given up: gone for good" in caplog.text


def test_what_it_raised_before_a_restart_and_how_often_it_was_restarted_are_told() -> None:
    world = World("restart=3")
    told = []
    for _ in range(2):
        world.module.do = boom
        world.traffic()
        world.dispatch.run_for(1.1)
        (facts_of,) = (one for one in facts(world.stack)["modules"] if one["name"] == "trouble")  # type: ignore[attr-defined]
        told.append(mount.shown({"modules": [facts_of]}).splitlines()[1].split(maxsplit=5))
        assert facts_of["failures"] == world.stack.failures() == {f"handler of {TYPE:#06x}": len(told)}
    assert [row[4:] for row in told] == [
        ["restart=3", "raised: handler of 0x88b5 1  restarted once"],
        ["restart=3", "raised: handler of 0x88b5 2  restarted 2 times"],
    ]


def test_nobody_restarts_what_was_unloaded() -> None:
    world = World("restart=4")
    world.module.do = boom
    world.traffic()
    world.stack.unload(world.loaded)
    world.dispatch.run_for(100.0)
    assert len(world.attached) == 1
    other = World("restart=4")
    other.refuse = "gone"
    other.module.do = boom
    other.traffic()
    other.dispatch.run_for(0.5)
    assert other.stack.restarter.waiting("hub") == []
    assert other.stack.restarter.waiting("trouble") == ["trouble #2"]
    other.stack.restarter.give_up("trouble #2")
    other.refuse = ""
    other.dispatch.run_for(100.0)
    assert len(other.attached) == 1


def test_without_the_option_a_module_goes_on() -> None:
    world = World()
    world.module.do = boom
    for _ in range(5):
        world.traffic()
    world.dispatch.run_for(100.0)
    assert (len(world.attached), world.module.calls) == (1, 5)


@pytest.mark.parametrize(
    ("text", "restart", "rest"),
    [
        ("", 0, ""),
        ("a=1,b", 0, "a=1,b"),
        ("restart=2", 2, ""),
        ("a=1,restart=2,b", 2, "a=1,b"),
        ('a="x,restart=9",restart=2', 2, 'a="x,restart=9"'),
    ],
)
def test_what_is_io_pkts_among_the_options(text: str, restart: int, rest: str) -> None:
    common, own = take_common(text, "m")
    assert (common.restart, own) == (restart, rest)


@pytest.mark.parametrize("text", ["restart=x", "restart=-1", "restart=1001", "restart=1,restart=2", "restart"])
def test_wrong_restarts(text: str) -> None:
    with pytest.raises(OptionError, match="m: "):
        take_common(text, "m")


def test_an_interface_that_is_switched_off() -> None:
    world = World()
    events: list[str] = []
    world.stack.on_interface(lambda event, interface: events.append(event.value))
    world.interface.switch(False)
    world.traffic()
    world.stack.output(world.interface, [bytes(60)])
    assert world.module.calls == 0
    assert world.interface.drops == {"switched_off": 1, "link_down": 1}
    world.interface.switch(True)
    world.traffic()
    assert world.module.calls == 1
    world.interface.limit_mtu(1000)
    assert world.interface.mtu == 1000
    world.interface.limit_mtu(1500)
    for wrong in (67, 1501):
        with pytest.raises(ModuleError, match=f"an MTU of {wrong} is not between 68 and 1500"):
            world.interface.limit_mtu(wrong)
    world.interface.set_addresses(("10.0.0.1",))
    world.interface.set_addresses(("10.0.0.1",))
    assert (world.interface.addresses, world.interface.mtu_limit) == (("10.0.0.1",), None)
    assert events == ["down", "up", "changed", "changed", InterfaceEvent.ADDRESSES.value]


@pytest.mark.parametrize("point", list(Point))
def test_a_hook_that_returns_nothing_is_its_modules_failure(point: Point) -> None:
    world = World()
    stack = world.stack
    forgets: Hook = lambda interface, frames: None  # type: ignore[assignment,return-value]  # noqa: E731  # the fault
    world.module.do = lambda: (stack.add_hook(point, forgets, name="forgets"), None)[1]
    world.traffic()
    world.module.do = lambda: None

    if point is Point.IN:
        world.traffic()
    else:
        stack.output(world.interface, [frame(MAC, MAC, b"x")])

    assert world.loaded.guard.failures == {"hook forgets": 1}
    assert world.interface.drops == {"hook_failed": 1}
    assert world.module.calls == 1


def test_an_ip_filter_that_returns_nothing_is_its_modules_failure() -> None:
    world = World()
    stack = world.stack
    forgets: IpFilter = lambda interface, point, packets: None  # type: ignore[assignment,return-value]  # noqa: E731  # the fault
    world.module.do = lambda: (stack.add_ip_filter(forgets, "forgets"), None)[1]
    world.traffic()
    packet = frame(MAC, MAC, bytes.fromhex("4500001400000000401166d70a0000010a000002"), 0x0800)

    passed = stack.ip_filters.passing(world.interface, Point.IN, {0: Packet(packet, 14, parse_ip(memoryview(packet)[14:]))})

    assert not passed
    assert world.loaded.guard.failures == {"IP filter forgets": 1}


@pytest.mark.host
async def test_a_task_that_is_cancelled_did_not_fail_and_one_that_says_so_itself_did() -> None:
    async with open_dispatch() as dispatch:
        stack = Stack(System(dispatch, "n"), os.urandom)
        made: list[Trouble] = []

        def attach(context: Context, options: Options) -> Trouble:
            made.append(Trouble(context, options))
            return made[-1]

        loaded = stack.load(Module("trouble", Kind.PROTOCOL, Options, attach))
        ended: list[str] = []

        async def waits() -> None:
            try:
                await trio.sleep_forever()
            finally:
                ended.append("cancelled")

        async def nurses() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)

        async def raises() -> None:
            raise asyncio.CancelledError

        for task in (waits, nurses, raises):
            made[0].context.dispatch.start_task(task)
        with trio.fail_after(5):
            while not loaded.guard.failures:  # noqa: ASYNC110  # what is awaited is in the dispatch: no event tells
                await trio.sleep(0.001)
    assert ended == ["cancelled"]
    assert list(loaded.guard.failures.values()) == [1]
