"""Stacks on hubs under virtual time: machines and the cables between them, for tests of modules that work on frames.

    world = World(2)                                             two cables
    a, bridge, b = world.machine("a", 0), world.machine("bridge", 0, 1), world.machine("b", 1)
    a.send("en0", BROADCAST); world.dispatch.run_for(1); b.seen

Interfaces are called en0, en1, ... in the order of a machine's cables. A machine has a protocol of its own, of ethertype TYPE, which keeps
what it gets.

With `with World(2) as world:` the end of the block unloads everything, and fails when a module of yours left something behind or raised
(but for `Machine.crash`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Self

import attrs

from resmgr.channel import Credentials
from resmgr.pathspace import Attached
from resmgr.system import System
from resmgr.testing.ioclient import IoClient
from resmgr.testing.virtual import VirtualDispatch
from stack.core import modules
from stack.core.counting import counters_of
from stack.core.driver import Driver
from stack.core.hooks import Point
from stack.core.ifnet import Interface
from stack.core.loaded import Loaded
from stack.core.module import Context, Kind, Module
from stack.core.specific import SpecificModule, plain, specific_module
from stack.core.stack import Stack
from stack.drivers.hub import Hub, HubPort
from stack.frame import Frame
from stack.testing.driver import TYPE, frame
from stack.testing.virtualpair import VirtualPair


@attrs.frozen
class _NoOptions:
    pass


class _Nothing:
    def detach(self) -> None:
        pass


class Machine:
    """A stack with interfaces on hubs, and what its protocol got. *wrap*: wrappers around the driver of each interface."""

    def __init__(self, world: World, name: str, hubs: dict[str, Hub], wrap: Sequence[tuple[str, str]] = ()) -> None:
        self.stack = Stack(System(world.dispatch, name), random.Random(name).randbytes, name)
        self.seen: list[tuple[str, bytes]] = []
        self.macs: dict[str, bytes] = {}
        self.crashes = 0
        self._paths = self._attachments()
        for interface, hub in hubs.items():
            world.made += 1
            self.macs[interface] = bytes((2, 0, 0, 0, 9, world.made))
            self.stack.load(hub.module(), f"name={interface},mac={self.macs[interface].hex(':')}", wrap=wrap)
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

    def ask(self, what: str, command: str, **arguments: object) -> None:
        """A request to the driver of the interface *what*, or to the module that is called so (`stack.core.specific`)."""
        loaded, specific = self._specific(what)
        loaded.guard.ask("request", specific.set_specific, command, arguments)

    def facts(self, what: str) -> dict[str, object]:
        """What such a module answers."""
        found = plain(self._specific(what)[1].get_specific())
        assert isinstance(found, dict)
        return found

    def counted(self, what: str) -> dict[str, int]:
        """What its `module_counters` says."""
        return counters_of(self._loaded(what))

    def read(self, path: str) -> str:
        """A file of the machine's pathname space, as an ordinary user reads it."""
        return IoClient(self.stack.kernel, Credentials(1000, 1000)).get(path.encode()).decode()

    def crash(self, what: str) -> None:
        """Have a callback of a module raise in the next turn: with `restart=N` among its options it is loaded again."""
        self.crashes += 1
        self._loaded(what).dispatch.call_soon(_crashed)

    def left(self) -> list[str]:
        """Prefixes that modules attached to the pathname space and did not take away."""
        left = [b"/".join(one.prefix).decode() for one in self._attachments() if one not in self._paths]
        return [f"{self.stack.name}: a module left the path /{path} attached" for path in left]

    def _attachments(self) -> list[Attached]:
        return self.stack.system.paths.space.attachments()

    def _loaded(self, what: str) -> Loaded:
        there = {loaded.module.name if loaded.interface is None else loaded.interface.name: loaded for loaded in self.stack.loaded}
        assert what in there, f"{self.stack.name} has no module or interface {what}; there is: {', '.join(there)}"
        return there[what]

    def _specific(self, what: str) -> tuple[Loaded, SpecificModule]:
        loaded = self._loaded(what)
        found = specific_module(loaded.attached)
        assert found is not None, f"{what} takes no requests: it has no set_specific and get_specific"
        return loaded, found

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


def _crashed() -> None:
    raise RuntimeError("stack.testing: a callback of this module was asked to raise")


class _Complaints(logging.Handler):
    """What the stack says of modules that left something behind."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class World:
    """Machines, and *cables* between them. The same *seed* is the same run."""

    def __init__(self, cables: int, seed: int = 1) -> None:
        self.dispatch = VirtualDispatch(seed)
        self.hubs = [Hub(self.dispatch) for _ in range(cables)]
        self.machines: list[Machine] = []
        self.made = 0

    def machine(self, name: str, *cables: int, wrap: Sequence[tuple[str, str]] = ()) -> Machine:
        made = Machine(self, name, {f"en{number}": self.hubs[cable] for number, cable in enumerate(cables)}, wrap)
        self.machines.append(made)
        return made

    def close(self) -> None:
        """Unload everything. AssertionError when a module left something behind, or raised otherwise than by `Machine.crash`."""
        complaints = _Complaints()
        log = logging.getLogger(modules.__name__)
        log.addHandler(complaints)
        try:
            for machine in self.machines:
                machine.stack.close()
        finally:
            log.removeHandler(complaints)
        left = [*complaints.lines, *(line for machine in self.machines for line in machine.left())]
        assert not left, "; ".join(left)
        for machine in self.machines:
            raised = dict(machine.stack.failures())
            assert raised.pop(_crashed.__qualname__, 0) <= machine.crashes
            assert not raised, f"{machine.stack.name}: exceptions left callbacks: {raised}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()


class DriverPair(VirtualPair):
    """For `stack.testing.driver.check_driver`: two drivers of one world."""

    def __init__(self, world: World, a: Driver, b: Driver) -> None:
        super().__init__(world.dispatch, a, b)
