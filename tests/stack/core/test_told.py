"""What a driver tells that is none: refused with its module's name, or said to be missing, and nobody else's facts are spoiled."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Mapping

import attrs
import pytest

from qnetpy.cli.ifconfig import shown as ifconfig
from qnetpy.cli.netstat import _protocols
from qnetpy.cli.nicinfo import described
from stack.core.driver import Port
from stack.core.errors import ModuleError
from stack.core.hooks import Point
from stack.core.ifnet import Interface
from stack.core.ipfilters import Packet
from stack.core.loaded import Loaded
from stack.core.module import Kind, Module
from stack.core.specific import DEPTH_MAX, Named, Rows, plain, sayable_table
from stack.frame import Frame
from stack.managers.facts import facts, interface_of, module
from stack.managers.slices import pieces
from stack.testing.driver import TYPE, frame
from stack.testing.machines import Machine, World
from stack.wire.ip import parse_ip

MAC = bytes.fromhex("020000000033")
CIRCLE: dict[str, object] = {}
CIRCLE["circle"] = CIRCLE
HUGE = 10**5000
"""More digits than the interpreter writes."""


@attrs.frozen
class Options:
    pass


class Liar:
    """A driver that tells what it was made with."""

    def __init__(self, **told: object) -> None:
        self.told: dict[str, object] = {
            "name": "bad0",
            "mac": MAC,
            "mtu": 1500,
            "up": True,
            "info": {},
            "specific": {},
            "counters": {},
            "below": (),
        }
        self.told |= told
        self.port: Port | None = None

    def __getattr__(self, name: str) -> object:
        if name in ("name", "mac", "mtu", "up", "below"):
            return self.told[name]
        raise AttributeError(name)

    def start(self, port: Port) -> None:
        self.port = port

    def accept(self, ethertypes: object) -> None: ...

    def transmit(self, frames: object) -> None: ...

    def detach(self) -> None: ...

    def info(self) -> object:
        return self.told["info"]

    def get_specific(self) -> object:
        return self.told["specific"]

    def set_specific(self, command: str, arguments: Mapping[str, object]) -> None: ...

    def module_counters(self) -> object:
        return self.told["counters"]


def load(machine: Machine, **told: object) -> tuple[Liar, Loaded]:
    liar = Liar(**told)
    # It has what a driver must have, but not of the right types.
    return liar, machine.stack.load(Module("liar", Kind.DRIVER, Options, lambda context, options: liar))


def told(machine: Machine) -> dict[str, object]:
    found = json.loads("".join(pieces(facts(machine.stack))))
    assert isinstance(found, dict)
    return found


def shown(machine: Machine) -> dict[str, dict[str, object]]:
    """By interface, and every view can show it."""
    found = told(machine)
    interfaces = found["interfaces"]
    assert isinstance(interfaces, list)
    for one in interfaces:
        assert described(one)
        assert ifconfig(one)
    assert _protocols(found)
    return {one["name"]: one for one in interfaces}


@pytest.mark.parametrize("info", [None, {b"key": "x"}, {("t",): 1}, 7, {"x": HUGE}])
def test_labels_that_are_none_are_the_drivers_failure_and_nobody_elses(info: object) -> None:
    machine = World(1).machine("a", 0)
    _, loaded = load(machine, info=info)
    found = shown(machine)
    problem = found["bad0"]["info"]
    assert isinstance(problem, dict)
    assert re.match("module liar: (TypeError|ValueError): ", problem["does not say"])
    assert re.search("module liar: (TypeError|ValueError)", described(found["bad0"]))
    assert loaded.guard.failures == {"info": 1}


def test_labels_with_something_else_behind_them_are_shown_as_text() -> None:
    machine = World(1).machine("a", 0)
    load(machine, info={"a": CIRCLE, "b": {("t",): 1}, "c": 3, "d": 1.5})
    assert shown(machine)["bad0"]["info"] == {"a": str(CIRCLE), "b": "{('t',): 1}", "c": 3, "d": "1.5"}


@pytest.mark.parametrize("specific", [None, 7, CIRCLE, {("t",): 1}, {"a": [{b"x": 1}]}, {"x": HUGE}, {HUGE: 1}, {"x": [-HUGE]}])
def test_facts_that_cannot_be_said(specific: object) -> None:
    machine = World(1).machine("a", 0)
    _, loaded = load(machine, specific=specific)
    problem = shown(machine)["bad0"]["specific"]
    assert isinstance(problem, dict)
    assert list(problem) == ["does not say"]
    assert problem["does not say"].startswith("module liar does not say: ")
    assert loaded.guard.failures == {"get_specific": 1}
    assert "module liar does not say: " in described(shown(machine)["bad0"])


@pytest.mark.parametrize("counters", [None, {"a": "x"}, {b"a": 1}, {"a": True}, {"a": -1}, {"a": 1 << 64}, {"a": HUGE}])
def test_counters_that_are_none(counters: object) -> None:
    machine = World(1).machine("a", 0)
    _, loaded = load(machine, counters=counters)
    shown(machine)
    assert loaded.guard.failures == {"module_counters": 1}


LONG: dict[str, object] = {f"k{number}": number for number in range(200_000)}
WIDE = {"k": "x" * (1 << 20)}


@pytest.mark.parametrize("table", [LONG, {"k" * 20_000: 1}, WIDE])
def test_nobody_takes_the_room_of_others_in_an_answer(table: Mapping[str, object]) -> None:
    machine = World(1).machine("a", 0)
    counters = table if table is not WIDE else {}
    _, loaded = load(machine, counters=counters, info=table, specific={"rows": table} if table is not LONG else LONG)
    found = told(machine)
    assert len(json.dumps(found)) < 60_000
    assert loaded.guard.failures["info"] == 1
    assert loaded.guard.failures.get("module_counters", 0) == (table is not WIDE)
    assert loaded.guard.failures.get("get_specific", 0) == (table in (LONG, WIDE))
    assert shown(machine)["bad0"]["info"]
    assert len(json.dumps(module(loaded))) < 4096


def test_registrations_beyond_number_are_counted_together() -> None:
    machine = World(1).machine("a", 0)
    _, loaded = load(machine)

    def register() -> None:
        for number in range(300):
            machine.stack.add_hook(Point.IN, lambda interface, frames: frames, name=f"hook{number}")

    loaded.guard.run("register", register)
    names = module(loaded)["registrations"]
    assert isinstance(names, list)
    assert (len(names), names[-1]) == (257, "and 44 more")


def test_rows_that_cannot_be_made_or_said_are_left_out() -> None:
    machine = World(1).machine("a", 0)

    def row(number: int) -> Mapping[str, object]:
        if number == 1:
            raise RuntimeError("no")
        return {"interface": f"x{number}", "odd": {("t",): 1}} if number == 2 else {"interface": f"x{number}"}

    def named(name: str) -> Mapping[str, object]:
        raise RuntimeError("no")

    table = Rows(range(4), row, [f"x{number}" for number in range(4)])
    _, loaded = load(machine, specific={"members": table, "by name": Named(["x"], named)})
    specific = shown(machine)["bad0"]["specific"]
    assert specific == {"members": [{"interface": "x0"}, {"interface": "x3"}], "by name": {"x": {}}}
    assert loaded.guard.failures == {"get_specific": 3}


@pytest.mark.parametrize(
    "figure", [{"in": "x"}, {"out": -1}, {"in": 1 << 64}, {"in": 1 << 70}, {"dropped": {"x": "y"}}, {"up": 7}, {"in_bytes": True}]
)
def test_an_engines_figures_that_are_none(figure: Mapping[str, object]) -> None:
    machine = World(1).machine("a", 0)
    _, loaded = load(machine, specific={"engine": {"name": "mine", "ports": {"en0": figure}}}, below=("en0",))
    claim = machine.stack.own(machine.interface("en0"), "bad0")
    rows = shown(machine)["en0"]["carried"]
    assert isinstance(rows, list)
    (row,) = rows
    assert row["off"][0].startswith("module liar does not say: TypeError: ")
    assert row["in"] == 0
    assert loaded.guard.failures["get_specific"] == 1
    claim.revoke()


def test_nobody_counts_for_an_interface_that_is_not_his() -> None:
    machine = World(1).machine("a", 0)
    figures = {"in": 1000, "in_bytes": 64000, "out": 7, "out_bytes": 7, "dropped": {"looped": 3}}
    load(machine, specific={"engine": {"name": "mine", "ports": {"en0": figures}}}, below=("en0",))
    assert (shown(machine)["en0"]["rx_frames"], shown(machine)["en0"]["carried"]) == (0, [])
    machine.stack.own(machine.interface("en0"), "bad0")
    found = interface_of(machine.stack, "en0")
    assert found is not None
    assert (found["rx_frames"], found["tx_frames"], found["drops"]) == (1003, 7, {"looped": 3})


def test_how_deep_facts_may_be() -> None:
    deep: object = 1
    for _ in range(DEPTH_MAX):
        deep = [deep]
    assert plain(sayable_table({"x": deep}))
    with pytest.raises(ValueError, match="tables in tables"):
        sayable_table({"x": [deep]})


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ({"name": 7}, "its name is 7, not text"),
        ({"mac": b"\2"}, "the address of bad0 is b'\\x02', not 6 bytes"),
        ({"mac": None}, "the address of bad0 is None, not 6 bytes"),
        ({"mac": bytes.fromhex("010000000001")}, "01:00:00:00:00:01 of bad0 is the address of a group, not of a station"),
        ({"mtu": "1500"}, "the MTU of bad0 is '1500', not a number from 68 to 16777216"),
        ({"mtu": 0}, "the MTU of bad0 is 0, not a number from 68 to 16777216"),
        ({"mtu": True}, "the MTU of bad0 is True, not a number from 68 to 16777216"),
        ({"up": "yes"}, "bad0 is neither up nor down, but 'yes'"),
    ],
)
def test_a_driver_without_a_link_is_not_loaded_and_one_that_loses_it_keeps_what_it_said(link: Mapping[str, object], why: str) -> None:
    machine = World(1).machine("a", 0)
    with pytest.raises(ModuleError) as refused:
        load(machine, **link)
    assert (refused.value.errno, str(refused.value)) == (errno.EINVAL, f"module liar brings no link: {why}")
    assert machine.stack.interface("bad0") is None
    liar, loaded = load(machine)
    interface = machine.interface("bad0")
    liar.told |= link
    assert not loaded.guard.run("link changed", interface.changed)
    assert (interface.mac, interface.mtu, interface.up, interface.driver_mtu, interface.carrier) == (MAC, 1500, True, 1500, True)
    assert loaded.guard.failures == {"link changed": 1}


@attrs.frozen
class Wrong:
    """A protocol whose hook and filter return what they should not."""

    hook: Callable[[Interface, list[Frame]], object]

    def detach(self) -> None: ...


@pytest.mark.parametrize("returned", [None, {}, {0: b"x"}, "frames", (), 7])
@pytest.mark.parametrize("point", list(Point))
def test_a_hook_that_returns_no_list_is_its_modules_failure(point: Point, returned: object) -> None:
    world = World(1)
    a, b = world.machine("a", 0), world.machine("b", 0)

    def attach(context: object, options: Options) -> Wrong:
        made = Wrong(lambda interface, frames: returned)
        b.stack.add_hook(point, made.hook, name="wrong")  # type: ignore[arg-type]  # that is what is wrong
        return made

    loaded = b.stack.load(Module("wrong", Kind.PROTOCOL, Options, attach))
    if point is Point.IN:
        a.send("en0", b.macs["en0"])
    else:
        b.send("en0", a.macs["en0"])
    world.dispatch.run_for(0.1)
    assert (a.seen, b.seen) == ([], [])
    assert loaded.guard.failures == {"hook wrong": 1}
    assert b.interface("en0").drops == {"hook_failed": 1}


@pytest.mark.parametrize("returned", [None, {}, "yes", [], [True, True], (True,)])
def test_an_ip_filter_without_a_verdict_for_each_lets_nothing_through(returned: object) -> None:
    machine = World(1).machine("a", 0)

    def attach(context: object, options: Options) -> Wrong:
        machine.stack.add_ip_filter(lambda interface, point, packets: returned, "wrong")  # type: ignore[arg-type,return-value]  # as above
        return Wrong(lambda interface, frames: frames)

    loaded = machine.stack.load(Module("wrong", Kind.PROTOCOL, Options, attach))
    packet = frame(MAC, MAC, bytes.fromhex("4500001400000000401166d70a0000010a000002"), TYPE)
    asked = {0: Packet(packet, 14, parse_ip(memoryview(packet)[14:]))}
    assert not machine.stack.ip_filters.passing(machine.interface("en0"), Point.IN, asked)
    assert loaded.guard.failures == {"IP filter wrong": 1}


class Picky(Liar):
    """A driver that drops some of what it is to send, and says so."""

    def __init__(self, drop: int, raises: bool = False) -> None:
        super().__init__()
        self.drop = drop
        self.raises = raises

    def transmit(self, frames: object) -> None:
        assert self.port is not None
        if self.drop:
            self.port.count("too_long", self.drop)
        if self.raises:
            raise RuntimeError("no")


@pytest.mark.parametrize(
    ("sizes", "drop", "raises", "sent"),
    [
        ((60, 60), 0, False, (2, 120)),
        ((60, 1600, 100), 1, False, (2, 160)),
        ((1600,), 1, False, (0, 0)),
        ((60, 100, 200), 2, False, (1, 60)),
        ((60, 60), 9, False, (0, 0)),
        ((60, 60), 0, True, (0, 0)),
    ],
)
def test_only_what_the_driver_took_was_sent(sizes: tuple[int, ...], drop: int, raises: bool, sent: tuple[int, int]) -> None:
    machine = World(1).machine("a", 0)
    picky = Picky(drop, raises)
    machine.stack.load(Module("picky", Kind.DRIVER, Options, lambda context, options: picky))
    interface = machine.interface("bad0")
    interface.count("rx_overrun", 5)
    machine.stack.output(interface, [bytes(size) for size in sizes])
    assert (interface.tx_frames, interface.tx_bytes) == sent
