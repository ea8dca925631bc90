"""What the views tell of layer 2: ports, the spanning tree, LACP, groups, what an engine carried past the stack; and how they show it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

import attrs
import pytest

from qnetpy.cli.ifconfig import shown as ifconfig
from qnetpy.cli.iopkt import listed
from qnetpy.cli.netstat import _protocols
from qnetpy.cli.nicinfo import described
from qnetpy.cli.status import carried_by
from resmgr.errors import Misuse
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.hooks import Point
from stack.core.ifnet import Interface
from stack.core.module import Context, Kind, Module
from stack.core.stack import Stack
from stack.l2.bridge_driver import BridgeDriver
from stack.l2.bridge_options import BridgeOptions
from stack.l2.engine import EngineStatistics, FlowStatistics, PortStatistics, RoutedFlow
from stack.managers.facts import facts, interface_of
from stack.managers.layer2 import Layer2
from stack.managers.slices import pieces
from stack.testing.machines import Machine, World

Fact = dict[str, object]
GROUP = bytes.fromhex("01005e000042")


class Carrier:
    """An engine whose figures are known."""

    name = "known"

    def __init__(self) -> None:
        self.ports: dict[str, Interface] = {}
        self.why_off: dict[str, str] = {}

    def add(self, interface: Interface) -> None:
        self.ports[interface.name] = interface

    def remove(self, interface: Interface) -> None:
        self.ports.pop(interface.name, None)

    def off(self, interface: Interface, why: str) -> None:
        self.why_off[interface.name] = why

    def on(self, interface: Interface, why: str) -> None:
        self.why_off.pop(interface.name, None)

    def learned(self, station: bytes, interface: Interface) -> None: ...

    def forget(self, station: bytes) -> None: ...

    def flush(self, interface: Interface | None = None) -> None: ...

    def idle(self, station: bytes) -> float | None:
        return None

    def route(self, flow: RoutedFlow) -> bool:
        return False

    def unroute(self, interface: Interface, source: bytes | None = None, destination: bytes | None = None) -> None: ...

    def flows(self) -> list[FlowStatistics]:
        return []

    def statistics(self) -> EngineStatistics:
        ports = {
            name: PortStatistics(
                tuple(filter(None, [self.why_off.get(name)])), "by hand", 10 * n, 1000 * n, 5 * n, 500 * n, {"group": n}, {"looped": n}
            )
            for n, name in enumerate(self.ports, 1)
        }
        return EngineStatistics(self.name, "a test wants it", 3, 0, ports)

    @property
    def frames(self) -> int:
        return self.statistics().frames

    def close(self) -> None:
        self.ports.clear()


def told(machine: Machine) -> Fact:
    found = json.loads("".join(pieces(facts(machine.stack))))
    assert isinstance(found, dict)
    return found


def interfaces(found: Fact) -> dict[str, Fact]:
    return {str(one["name"]): one for one in listed(found["interfaces"])}


def bridged() -> tuple[World, Machine]:
    world = World(2)
    machine = world.machine("a", 0, 1)

    def attach(context: Context, options: BridgeOptions) -> BridgeDriver:
        return BridgeDriver(context, options, Carrier())

    machine.stack.load(Module("bridge", Kind.DRIVER, BridgeOptions, attach), "name=bridge0")
    for name in ("en0", "en1"):
        machine.ask("bridge0", "add", interface=name)
    machine.ask("bridge0", "stp", interface="en0", on=True)
    world.dispatch.run_for(40.0)
    return world, machine


def test_what_an_engine_carried_is_among_what_came_and_went() -> None:
    world, machine = bridged()
    world.machine("b", 0).send("en0", b"\xff" * 6)
    world.dispatch.run_for(1.0)
    machine.ask("bridge0", "flush")
    found = told(machine)
    one = interfaces(found)["en0"]
    counted = machine.interface("en0").statistics
    assert one["rx_frames"] == counted.rx_frames + 10 + 1
    assert (one["rx_bytes"], one["tx_frames"]) == (counted.rx_bytes + 1000, counted.tx_frames + 5)
    assert one["drops"] == {**counted.drops, "looped": 1}
    assert found["engines"] == [
        {"interface": "bridge0", "name": "known", "why": "a test wants it", "frames": 30, "stations": 3, "stations_refused": 0}
    ]
    text = described(one)
    for line in (
        "Engine known of bridge0 ............ by hand",
        "Carried In 10 frames, 1000 bytes",
        "Handed Up: group 1",
        "Dropped: looped",
    ):
        assert line in text, text
    text = _protocols(found)
    assert any(line.split()[:5] == ["known", "bridge0", "en1", "20", "10"] for line in text.splitlines()), text
    lines = carried_by(found["engines"], list(interfaces(found).values())).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["bridge0", "known", "30"], ["en0", "10", "5"], ["en1", "20", "10"]]
    # Switched off, it says why.
    driver = machine.interface("bridge0").driver
    assert isinstance(driver, BridgeDriver)
    assert isinstance(driver.engine, Carrier)
    driver.engine.off(machine.interface("en1"), "a tap")
    assert "off: a tap" in described(interfaces(told(machine))["en1"])


def test_ports_of_a_bridge_and_its_spanning_tree() -> None:
    world, machine = bridged()
    world.machine("b", 0).send("en0", b"\xff" * 6)
    world.dispatch.run_for(1.0)
    found = told(machine)
    one = interfaces(found)["en0"]
    (port,) = listed(one["port"])
    assert (port["of"], port["received"], port["flags"]) == ("bridge0", 1, ["learn", "discover", "stp"])
    text = described(one)
    assert "Port of bridge0 .................... designated forwarding, learn, discover, stp" in text
    assert "bridge0: BPDUs Received, Sent ...... 0, " in text
    assert "Spanning Tree ...................... rstp, root 8000." in described(interfaces(found)["bridge0"])
    assert "\n\tmember: en0 designated forwarding learn discover stp" in ifconfig(interfaces(found)["bridge0"])
    text = _protocols(found)
    assert "SPANNING TREE  PORT  STATE" in text
    assert any(line.split()[:3] == ["bridge0", "en0", "1"] for line in text.splitlines()), text


def test_ports_of_an_aggregate_with_lacp() -> None:
    world = World(2)
    both = [world.machine(name, 0, 1) for name in "ab"]
    for machine in both:
        machine.stack.load("agr", "name=agr0,agrport=en0,agrport=en1,timeout=fast")
        machine.stack.load("vlan", "name=vlan5,vlan=5,vlanif=agr0")
    world.dispatch.run_for(20.0)
    found = told(both[0])
    (port,) = listed(interfaces(found)["en0"]["port"])
    assert (port["receive"], port["of"]) == ("current", "agr0")
    assert isinstance(port["received"], int)
    assert port["received"] > 5
    text = described(interfaces(found)["en1"])
    assert "Port of agr0 ....................... current, " in text
    assert "agr0: LACP partner ................. 0x8000." in text
    text = ifconfig(interfaces(found)["agr0"])
    assert "\n\tlacp: active fast key 1 partner 02:00:" in text
    assert text.count("\n\tport: en") == 2
    assert ifconfig(interfaces(found)["vlan5"]).endswith("\n\tvlan: 5 priority: 0 parent: agr0")
    assert "AGGREGATE  PORT  RECEIVE" in _protocols(found)


def test_groups_are_shown_with_how_many_want_them() -> None:
    machine = World(1).machine("a", 0)
    joined = [machine.stack.join(machine.interface("en0"), GROUP, name) for name in ("one", "two")]
    one = interfaces(told(machine))["en0"]
    assert one["groups"] == {"01:00:5e:00:00:42": 2}
    assert "Multicast Group .................... 01:00:5e:00:00:42, for 2" in described(one)
    for registration in joined:
        registration.revoke()
    assert interfaces(told(machine))["en0"]["groups"] == {}
    assert interface_of(machine.stack, "en0") == interfaces(told(machine))["en0"]
    assert interface_of(machine.stack, "en9") is None


@attrs.frozen
class NoOptions:
    pass


class Odd:
    """A driver whose facts raise, or are of no form that is known."""

    name, mac, mtu, up = "odd0", b"\2\0\0\0\0\7", 1500, True
    below = ("odd0",)

    def __init__(self, facts: object) -> None:
        self.facts = facts

    def start(self, port: object) -> None: ...

    def accept(self, ethertypes: object) -> None: ...

    def transmit(self, frames: object) -> None: ...

    def detach(self) -> None: ...

    def info(self) -> dict[str, str | int]:
        return {}

    def set_specific(self, command: str, arguments: Mapping[str, object]) -> None: ...

    def get_specific(self) -> Mapping[str, object]:
        if isinstance(self.facts, Exception):
            raise self.facts
        assert isinstance(self.facts, dict)
        return self.facts


@pytest.mark.parametrize(
    "value",
    [
        Misuse("no"),
        RuntimeError("no"),
        {"engine": 7, "ports": 3, "members": {"a": 1}},
        {"engine": {"ports": 5}, "ports": [1, None]},
        {"engine": {"ports": {"odd0": {"in": "x", "dropped": 3}, "odd1": 7}}, "stp": 1, "drops": 7, "vlanif": None, "partner": 0},
    ],
)
def test_a_driver_with_odd_facts_spoils_nobodys(value: object) -> None:
    stack = Stack(System(VirtualDispatch(1), "n"), random.Random(1).randbytes)
    loaded = stack.load(Module("odd", Kind.DRIVER, NoOptions, lambda context, options: Odd(value)), "")
    found = json.loads("".join(pieces(facts(stack))))
    assert [one["name"] for one in found["interfaces"]] == ["odd0"]
    assert bool(loaded.guard.failures) == isinstance(value, RuntimeError), "to refuse is no failure"
    for one in found["interfaces"]:
        assert described(one)
        assert ifconfig(one)
    assert _protocols(found)
    assert carried_by(found["engines"], found["interfaces"]) is not None
    assert Layer2(stack).carried("odd0").rx_frames == 0


def test_only_who_stands_on_an_interface_is_asked_of_it_and_once_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = World(4).machine("a", 0, 1, 2, 3)
    for bridge, ports in (("bridge0", ("en0", "en1")), ("bridge1", ("en2", "en3"))):
        machine.stack.load("bridge", f"name={bridge},add={ports[0]},add={ports[1]}")
    asked: list[str] = []
    get_specific = BridgeDriver.get_specific

    def told_by(driver: BridgeDriver) -> Mapping[str, object]:
        asked.append(driver.name)
        return get_specific(driver)

    monkeypatch.setattr(BridgeDriver, "get_specific", told_by)
    layer2 = Layer2(machine.stack)
    assert asked == []
    for name in ("en0", "en1", "bridge0"):
        interface_of(machine.stack, name)
        assert [one["of"] for one in layer2.ports(name)] == ["bridge0"] * (name != "bridge0")
    assert asked == ["bridge0"] * 4, "three answers of one interface each, and one of two"
    asked.clear()
    assert [one["name"] for one in json.loads("".join(pieces(facts(machine.stack))))["engines"]] == ["auto", "auto"]
    assert asked == ["bridge0", "bridge1"]


def test_hooks_are_shown_with_their_interfaces() -> None:
    machine = World(1).machine("a", 0)
    for point, everything, on in ((Point.IN, True, ("en0", "en1")), (Point.IN, False, None), (Point.OUT, False, ("en0",))):
        machine.stack.add_hook(point, lambda interface, frames: frames, name="mine", everything=everything, interfaces=on)
    rows = [line.split()[2:] for line in _protocols(told(machine)).splitlines() if line.startswith("mine")]
    assert rows == [["in", "100", "all", "en0", "en1"], ["in", "100", "registered", "all"], ["out", "100", "all", "en0"]]
