"""What layer 2 does with the interfaces of a stack, for the views: what a forwarding engine carried past the stack, which bridge or
aggregate an interface is a port of, and what that counts there.

Read from the facts that a pseudo-interface's driver gives of itself (`stack.core.specific`); nothing here knows a bridge. Of these,
`engine` has `ports` by interface, and `members` or `ports` are tables whose rows name an `interface`.

One is made for an answer. A driver is asked when something of it is looked at for the first time: for an interface only what stands on it,
and of that only the rows about the interface, where its tables are made row by row. What cannot be said, or is no number, is its module's
failure, and its own facts say `does not say`. An engine's frames are those of an interface only if its bridge has the interface
(`Interface.owner`): nobody counts for others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import attrs

from stack.core.isolation import RAISED, Guard
from stack.core.loaded import Loaded
from stack.core.specific import Ask, Named, Rows, sayable_table, specific_driver
from stack.core.stack import Stack
from stack.core.told import counter

T = TypeVar("T")
Facts = dict[str, object]
FIGURES = ("in", "in_bytes", "out", "out_bytes")
"""Of what an engine says of a port, as `Carried` has them."""
SPECIFIC_MAX = 1 << 17
"""Characters that a module tells of itself in one piece, about: 256 ports with counters fit, and leave room for others in an answer."""
DOES_NOT_SAY = "does not say"
"""The key in a module's facts under which is why there are none."""


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
    """What one driver said."""

    of: str
    own: Facts
    tables: Sequence[Rows | Sequence[Mapping[str, object]]] = ()
    """Whose rows are about interfaces."""
    engine: Facts | None = None
    carriers: Mapping[object, object] = attrs.Factory(dict)
    """By interface."""


class Layer2:
    """See the head of this file."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
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
            for name in interface.below:
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
        return [{"of": told.of, **row} for told in self._of_those_above(name) for table in told.tables for row in _about(table, name)]

    def carriers(self, name: str) -> list[Facts]:
        """What engines say of the interface: a row for each, `of` is whose engine."""
        interface = self._stack.interface(name)
        owner = "" if interface is None else interface.owner
        found = [(told, told.carriers.get(name)) for told in self._of_those_above(name) if told.of == owner]
        return [self._carrier(told, row) for told, row in found if isinstance(row, Mapping)]

    def _carrier(self, told: _Told, row: Mapping[object, object]) -> Facts:
        """*row* of *told*, whose figures are figures."""
        whose: Facts = {"of": told.of, "engine": None if told.engine is None else told.engine.get("name")}
        loaded = self._loaded[told.of]
        try:
            return whose | loaded.guard.ask("get_specific", _figures, row)
        except RAISED as error:
            return whose | {**dict.fromkeys(FIGURES, 0), "off": [does_not_say(loaded.module.name, error)]}

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
        if loaded is None or driver is None:
            return None
        guard, module = loaded.guard, loaded.module.name
        try:
            return guard.ask("get_specific", lambda: _told(name, sayable_table(driver.get_specific(), row_by_row(guard, "get_specific"))))
        except RAISED as error:
            return _Told(name, {DOES_NOT_SAY: does_not_say(module, error)})

    def carried(self, name: str) -> Carried:
        """All engines together."""
        return summed(self.carriers(name))


def summed(rows: Iterable[Mapping[str, object]]) -> Carried:
    """Rows of `Layer2.carriers` together."""
    totals: Counter[str] = Counter()
    drops: Counter[str] = Counter()
    for row in rows:
        totals.update({key: number for key in FIGURES if isinstance(number := row.get(key), int)})
        dropped = row.get("dropped")
        drops.update(dict(dropped) if isinstance(dropped, Mapping) else {})
    return Carried(totals["in"], totals["in_bytes"], totals["out"], totals["out_bytes"], drops)


def row_by_row(guard: Guard, what: str) -> Ask:
    """How rows of a module's tables are made: what it raises is counted, and the row is not there."""

    def ask(call: Callable[[], T]) -> T | None:
        try:
            return guard.ask(what, call)
        except RAISED:
            return None

    return ask


def does_not_say(module: str, error: BaseException) -> str:
    """What stands where *module* should have told something."""
    return f"module {module} does not say: {type(error).__name__}: {error}"


def _figures(row: Mapping[object, object]) -> Facts:
    """The row of an interface in an engine's facts; TypeError when what should be a number is none."""
    for key in FIGURES:
        if key in row:
            counter(row[key], key)
    for table in ("up", "dropped"):
        reasons = row.get(table, {})
        if not isinstance(reasons, Mapping):
            raise TypeError(f"{table!r} is {type(reasons).__name__}, not a table")
        for reason, number in reasons.items():
            counter(number, str(reason))
    return {str(key): value for key, value in row.items()}


def _told(name: str, told: Facts) -> _Told:
    tables = [table if isinstance(table, Rows) else _rows(table) for key in ("members", "ports") if (table := told.get(key))]
    own = {key: _short(value) for key, value in told.items()}
    size = _size(own)
    if size > SPECIFIC_MAX:
        raise ValueError(f"facts of {size} characters, and {SPECIFIC_MAX} are the most that are not made row by row")
    engine = told.get("engine")
    if not isinstance(engine, Mapping):
        return _Told(name, own, tables)
    rows = engine.get("ports")
    about = {"interface": name, **{str(key): value for key, value in engine.items() if key != "ports"}}
    return _Told(name, own, tables, about, rows if isinstance(rows, Mapping) else {})


def _rows(table: object) -> Sequence[Mapping[str, object]]:
    return [row for row in table if isinstance(row, Mapping)] if isinstance(table, list) else []


def _size(value: object) -> int:
    """About the characters that *value* is told with; what is made row by row counts nothing."""
    if isinstance(value, Named | Rows):
        return 0
    if isinstance(value, Mapping):
        return sum(len(str(key)) + _size(one) + 6 for key, one in value.items())
    if isinstance(value, list):
        return sum(_size(one) + 2 for one in value)
    return len(value) if isinstance(value, str) else 8


def _short(value: object) -> object:
    return len(value) if isinstance(value, Rows) and not value.of_interfaces else value


def _about(table: Rows | Sequence[Mapping[str, object]], name: str) -> Iterable[Mapping[str, object]]:
    if isinstance(table, Rows):
        return table.named(name)
    return [row for row in table if row.get("interface") == name]
