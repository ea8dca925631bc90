"""What layer 2 does with the interfaces of a stack, for the views: what a forwarding engine carried past the stack, which bridge or
aggregate an interface is a port of, and what that counts there.

Read from the facts that a pseudo-interface's driver gives of itself (`stack.core.specific`); nothing here knows a bridge. Of these,
`engine` has `ports` by interface, and `members` or `ports` are tables whose rows name an `interface`. Taken once for an answer.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from stack.core.isolation import RAISED
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


class Layer2:
    """See the head of this file."""

    def __init__(self, stack: Stack) -> None:
        self.own: dict[str, Facts] = {}
        """By interface, what its driver alone has; long tables as their length."""
        self.engines: list[Facts] = []
        """Of each bridge that has one: `interface`, `name`, `why`, `frames`, `stations`."""
        self._ports: dict[str, list[Facts]] = {}
        self._carriers: dict[str, list[Facts]] = {}
        for loaded in stack.loaded:
            if loaded.interface is None:
                continue
            driver = specific_driver(loaded.interface.driver)
            if driver is None:
                continue
            try:
                told = loaded.guard.ask("get_specific", _asked, driver)
            except RAISED:
                continue  # counted; its own facts are missing
            self._take(loaded.interface.name, told)

    def _take(self, name: str, told: Mapping[str, object]) -> None:
        self.own[name] = {key: len(value) if isinstance(value, Rows) else value for key, value in told.items()}
        for table in ("members", "ports"):
            for row in _tables(told.get(table)):
                self._ports.setdefault(str(row.get("interface")), []).append({"of": name, **row})
        engine = told.get("engine")
        if not isinstance(engine, Mapping):
            return
        self.engines.append({"interface": name, **{key: value for key, value in engine.items() if key != "ports"}})
        ports = engine.get("ports")
        for port, row in ports.items() if isinstance(ports, Mapping) else ():
            if not isinstance(row, Mapping):
                continue
            self._carriers.setdefault(port, []).append({"of": name, "engine": engine.get("name"), **row})

    def ports(self, name: str) -> list[Facts]:
        """What the interface is as a port of others: a row for each, `of` is whose."""
        return self._ports.get(name, [])

    def carriers(self, name: str) -> list[Facts]:
        """What engines say of the interface: a row for each, `of` is whose engine."""
        return self._carriers.get(name, [])

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


def _asked(driver: Specific) -> Facts:
    return dict(driver.get_specific())


def _tables(value: object) -> list[Mapping[str, object]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
