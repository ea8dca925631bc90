"""Nothing goes missing without a name: over loading and unloading of all that frames go through, while they do, what was sent is what has
arrived and what counters say was dropped.

h0 --- p0 [ bridge0 ] p1 --- h1: bursts from h0, and in the turn in which a burst arrives, before anybody has looked at it, the change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from resmgr.system import System
from stack.core.hooks import ORDER_TAP, Point
from stack.core.ifnet import Interface
from stack.core.loaded import Loaded
from stack.core.specific import specific_driver
from stack.core.stack import Stack
from tests.stack.l2.forward.conftest import Town, frame, settle

pytestmark = pytest.mark.priv

BURST, CYCLES = 40, 4
NO_DROPS = frozenset(("unlearned", "displaced"))


class Path:
    """What frames go through, and all interfaces that have been part of it."""

    def __init__(self, town: Town, engine: str) -> None:
        self.town, self.engine = town, engine
        self.stack = Stack(System(town.dispatch, "n"), bytes)
        self.interfaces: list[Interface] = []
        self.loaded: dict[str, Loaded] = {}
        self.bridges: Counter[str] = Counter()
        self.sent = 0
        for name in ("p0", "p1", "bridge0"):
            self.load(name)

    def load(self, name: str) -> None:
        with self.town.middle.entered():
            if name == "bridge0":
                self.loaded[name] = self.stack.load("bridge", f"add=p0,add=p1,engine={self.engine}")
            else:
                self.loaded[name] = self.stack.load("packet", f"ifname={name}")
        interface = self.loaded[name].interface
        assert interface is not None
        self.interfaces.append(interface)

    def unload(self, name: str) -> None:
        self.look()
        before = self.bridge_drops()
        self.stack.unload(self.loaded.pop(name))
        if name == "bridge0":
            self.bridges += before
        elif "bridge0" in self.loaded:
            # The member that has gone takes its counters with it.
            self.bridges += before - self.bridge_drops()

    def look(self) -> None:
        for interface in self.interfaces:
            interface.driver.info()

    def facts(self) -> dict[str, object]:
        interface = self.stack.interface("bridge0")
        driver = None if interface is None else specific_driver(interface.driver)
        return {} if driver is None else dict(driver.get_specific())

    def bridge_drops(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for drops in [self.facts().get("drops", {}), *(member["drops"] for member in self.facts().get("members", []))]:  # type: ignore[attr-defined]  # facts are for JSON
            found += Counter({name: number for name, number in drops.items() if name not in NO_DROPS})
        return found

    def dropped(self) -> Counter[str]:
        self.look()
        found = self.bridges + self.bridge_drops()
        for interface in self.interfaces:
            found += Counter(dict(interface.drops))
        engine = self.facts().get("engine")
        if isinstance(engine, dict):
            for port in engine["ports"].values():
                found += Counter(port["dropped"])
        return found

    def burst(self) -> None:
        for number in range(self.sent, self.sent + BURST):
            self.town.hosts[0].send(frame(1, 0, number.to_bytes(4, "big") * 15))
        self.sent += BURST

    @property
    def got(self) -> int:
        return sum(one[:12] == frame(1, 0)[:12] for one in self.town.hosts[1].hear())

    async def settled(self) -> None:
        assert await settle(lambda: self.got + sum(self.dropped().values()) >= self.sent), self.told()
        assert self.got + sum(self.dropped().values()) == self.sent, self.told()

    def told(self) -> str:
        return f"{self.sent} sent, {self.got} have arrived, dropped: {dict(self.dropped())}"

    async def meet(self) -> None:
        """The bridge knows h1, and its engine carries."""
        assert await settle(lambda: bool(self.facts())), "no bridge"

        def known() -> bool:
            self.town.hosts[1].send(frame(0, 1, b"here"))
            engine = self.facts()["engine"]
            assert isinstance(engine, dict)
            return engine["stations"] >= 1 or self.engine == "none"

        assert await settle(known)


def another_mtu(path: Path) -> None:
    """A link of another MTU needs a ring of other slots."""
    before = path.interfaces[0].mtu
    path.town.middle.ip("link", "set", "p0", "mtu", str(1400 + (before + 50) % 100))


CHANGES: dict[str, Callable[[Path], None]] = {
    "bridge": lambda path: path.unload("bridge0"),
    "output": lambda path: path.unload("p1"),
    "input": lambda path: path.unload("p0"),
    "mtu": another_mtu,
}


@pytest.mark.parametrize("engine", ["kernel", "threads", "none"])
@pytest.mark.parametrize("what", CHANGES)
async def test_what_goes_leaves_no_hole(town: Town, engine: str, what: str) -> None:
    path = Path(town, engine)
    names = {"bridge": "bridge0", "output": "p1", "input": "p0"}
    for _ in range(CYCLES):
        await path.meet()
        path.burst()
        await path.settled()
        path.burst()
        CHANGES[what](path)
        await path.settled()
        if what in names:
            path.load(names[what])
    await path.meet()
    path.burst()
    await path.settled()
    assert path.got > path.sent / 3
    path.stack.close()


@pytest.mark.parametrize("engine", ["kernel", "threads", "none"])
async def test_an_engine_that_stands_aside_and_comes_back_leaves_no_hole(town: Town, engine: str) -> None:
    path = Path(town, engine)
    await path.meet()
    for _ in range(CYCLES):
        path.burst()
        tap = path.stack.add_hook(Point.IN, lambda _, frames: frames, order=ORDER_TAP, name="tap", everything=True)
        path.burst()
        await path.settled()
        path.burst()
        tap.revoke()
        path.burst()
        await path.settled()
    assert path.got == path.sent
    path.stack.close()
