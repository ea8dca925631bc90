"""What layer 2 does with the interfaces of a stack, for the views: what a forwarding engine carried past the stack, which bridge or
aggregate an interface is a port of, and what that counts there.

Read from the facts that a pseudo-interface's driver gives of itself (`stack.core.specific`); nothing here knows a bridge. Of these,
`engine` has `ports` by interface, and `members` or `ports` are tables whose rows name an `interface`.

One is made for an answer. A driver is asked when something of it is looked at for the first time: for an interface only what stands on it.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from stack.core.isolation import RAISED
from stack.core.layers import stands_on
from stack.core.loaded import Loaded
from stack.core.specific import Rows, Specific, specific_driver
from stack.core.stack import Stack

Facts = dict[str, object]


@attrs.frozen
class Carried:
    """What engines did for one interface, in frames and bytes: `rx` came in here, `tx` went out here, neither seen by the stack. `drops`:
    of what came in, by reason."""

    rx_frames: int = 0
    rx_bytes: int = 0
    tx_frames: int = 0
    tx_bytes: int = 0
    drops: Mapping[str, int] = attrs.Factory(dict)

    @property
    def received(self) -> int:
        """Frames in all that came in and did not come to the stack."""
        return self.rx_frames + sum(self.drops.values())


@attrs.frozen
class _Told:
    """What one driver said, by interface where it said it of others."""

    own: Facts
    ports: Mapping[str, list[Facts]]
    engine: Facts | None
    carriers: Mapping[str, Facts]


class Layer2:
    """See the head of this file."""

    def __init__(self, stack: Stack) -> None:
        self._loaded: dict[str, Loaded] = {}
        """Those that can be asked, by interface."""
        self._above: dict[str, list[str]] = {}
        """By interface, who stands on it."""
        self._told: dict[str, _Told | None] = {}
        for loaded in stack.loaded:
            interface = loaded.interface
            if interface is None or specific_driver(interface.driver) is None:
                continue
            self._loaded[interface.name] = loaded
            for name in stands_on(interface.driver):
                self._above.setdefault(name, []).append(interface.name)

    def own(self, name: str) -> Facts | None:
        """What the interface's driver alone has; long tables as their length."""
        told = self._ask(name)
        return None if told is None else told.own

    @property
    def engines(self) -> Rows:
        """Of each bridge: `interface`, `name`, `why`, `frames`, `stations`."""
        return Rows(tuple(self._loaded), self._engine)

    def ports(self, name: str) -> list[Facts]:
        """What the interface is as a port of others: a row for each, `of` is whose."""
        return [row for told in self._of_those_above(name) for row in told.ports.get(name, ())]

    def carriers(self, name: str) -> list[Facts]:
        """What engines say of the interface: a row for each, `of` is whose engine."""
        return [told.carriers[name] for told in self._of_those_above(name) if name in told.carriers]

    def _engine(self, name: str) -> Facts | None:
        told = self._ask(name)
        return None if told is None else told.engine

    def _of_those_above(self, name: str) -> list[_Told]:
        return [told for upper in self._above.get(name, ()) if (told := self._ask(upper)) is not None]

    def _ask(self, name: str) -> _Told | None:
        if name not in self._told:
            self._told[name] = self._asked(name)
        return self._told[name]

    def _asked(self, name: str) -> _Told | None:
        loaded = self._loaded.get(name)
        interface = None if loaded is None else loaded.interface
        driver = None if interface is None or not interface.attached else specific_driver(interface.driver)
        if interface is None or driver is None:
            return None
        try:
            return _told(name, interface.ask("get_specific", _specific, driver))
        except RAISED:
            return None  # counted; its own facts are missing

    def carried(self, name: str) -> Carried:
        """All engines together."""
        rows = self.carriers(name)
        drops: dict[str, int] = {}
        for row in rows:
            dropped = row.get("dropped")
            for reason, number in dropped.items() if isinstance(dropped, Mapping) else ():
                drops[reason] = drops.get(reason, 0) + number
        frames, octets, out_frames, out_octets = (
            sum(number for row in rows if isinstance(number := row.get(key), int)) for key in ("in", "in_bytes", "out", "out_bytes")
        )
        return Carried(frames, octets, out_frames, out_octets, drops)


def _specific(driver: Specific) -> Facts:
    return dict(driver.get_specific())


def _told(name: str, told: Mapping[str, object]) -> _Told:
    ports: dict[str, list[Facts]] = {}
    for table in ("members", "ports"):
        for row in _tables(told.get(table)):
            ports.setdefault(str(row.get("interface")), []).append({"of": name, **row})
    own = {key: len(value) if isinstance(value, Rows) else value for key, value in told.items()}
    engine = told.get("engine")
    if not isinstance(engine, Mapping):
        return _Told(own, ports, None, {})
    rows = engine.get("ports")
    carriers = {
        port: {"of": name, "engine": engine.get("name"), **row}
        for port, row in (rows.items() if isinstance(rows, Mapping) else ())
        if isinstance(row, Mapping)
    }
    return _Told(own, ports, {"interface": name, **{key: value for key, value in engine.items() if key != "ports"}}, carriers)


def _tables(value: object) -> list[Mapping[str, object]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
