"""Stacks on hubs under virtual time: machines and the cables between them, for tests of modules that work on frames.

    world = World(2)                                             two cables
    a, bridge, b = world.machine("a", 0), world.machine("bridge", 0, 1), world.machine("b", 1)
    a.send("en0", BROADCAST); world.dispatch.run_for(1); b.seen

Interfaces are called en0, en1, ... in the order of a machine's cables. A machine has a protocol of its own, of ethertype TYPE, which keeps
what it gets.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs

from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.driver import Driver
from stack.core.hooks import Point
from stack.core.ifnet import Interface
from stack.core.module import Context, Kind, Module
from stack.core.specific import plain, specific_driver
from stack.core.stack import Stack
from stack.drivers.hub import Hub, HubPort
from stack.frame import Frame
from stack.testing.driver import TYPE, frame


@attrs.frozen
class _NoOptions:
    pass


class _Nothing:
    def detach(self) -> None:
        pass


class Machine:
    """A stack with interfaces on hubs, and what its protocol got."""

    def __init__(self, world: World, name: str, hubs: dict[str, Hub]) -> None:
        self.stack = Stack(System(world.dispatch, name), random.Random(name).randbytes, name)
        self.seen: list[tuple[str, bytes]] = []
        self.macs: dict[str, bytes] = {}
        for interface, hub in hubs.items():
            world.made += 1
            self.macs[interface] = bytes((2, 0, 0, 0, 9, world.made))
            self.stack.load(hub.module(), f"name={interface},mac={self.macs[interface].hex(':')}")
        self.stack.register_ethertype(TYPE, self.received)

    def received(self, interface: Interface, frames: list[Frame]) -> None:
        self.seen += [(interface.name, bytes(one)) for one in frames]

    def tap(self, interface: str) -> list[bytes]:
        """All that comes in on *interface* from now on, as it lies on the wire."""
        seen: list[bytes] = []

        def look(_: Interface, frames: list[Frame]) -> list[Frame]:
            seen.extend(map(bytes, frames))
            return frames

        self.stack.add_hook(Point.IN, look, name="tap", everything=True, interfaces=(interface,))
        return seen

    def interface(self, name: str) -> Interface:
        found = self.stack.interface(name)
        assert found is not None
        return found

    def send(self, interface: str, to: bytes, mark: bytes = b"hello", ethertype: int = TYPE) -> bytes:
        one = frame(to, self.macs[interface], mark, ethertype)
        self.stack.output(self.interface(interface), [one])
        return one

    def ask(self, bridge: str, command: str, **arguments: object) -> None:
        driver = specific_driver(self.interface(bridge).driver)
        assert driver is not None
        self.interface(bridge).ask("request", driver.set_specific, command, arguments)

    def facts(self, bridge: str) -> dict[str, object]:
        driver = specific_driver(self.interface(bridge).driver)
        assert driver is not None
        found = plain(driver.get_specific())
        assert isinstance(found, dict)
        return found

    def context(self) -> Context:
        """What a module is given: for drivers that are made without being loaded."""
        found: list[Context] = []

        def attach(context: Context, options: _NoOptions) -> _Nothing:
            found.append(context)
            return _Nothing()

        self.stack.load(Module("context", Kind.PROTOCOL, _NoOptions, attach))
        return found[0]

    def carrier(self, interface: str, up: bool) -> None:
        driver = self.interface(interface).driver
        assert isinstance(driver, HubPort)
        driver.set_carrier(up)


class World:
    def __init__(self, cables: int) -> None:
        self.dispatch = VirtualDispatch(1)
        self.hubs = [Hub(self.dispatch) for _ in range(cables)]
        self.made = 0

    def machine(self, name: str, *cables: int) -> Machine:
        return Machine(self, name, {f"en{number}": self.hubs[cable] for number, cable in enumerate(cables)})


class DriverPair:
    """For `stack.testing.driver.check_driver`: two drivers of one world."""

    def __init__(self, world: World, a: Driver, b: Driver) -> None:
        self.a, self.b = a, b
        self._world = world

    async def settle(self, until: Callable[[], bool], seconds: float) -> bool:
        return self._world.dispatch.run_until(until, limit=seconds)
