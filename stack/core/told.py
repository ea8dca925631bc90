"""What a module tells of itself, checked where it is told: a driver's link and labels, a module's counters. What is none is refused by a
sentence that names the module, before it becomes a puzzle elsewhere. Facts of one kind of module: `stack.core.specific`.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TypeVar

from stack.core.driver import Driver
from stack.core.errors import ModuleError
from stack.wire.ethernet import MAC_SIZE, MTU_MIN, is_group, mac_text

T = TypeVar("T")
MTU_MAX = 1 << 24
"""More than any link has."""
COUNTER_END = 1 << 64
NUMBER_END = 1 << 128
"""Numbers that are told are less: no address is longer, and of thousands of digits the interpreter writes none."""
ENTRIES_MAX = 1024
"""Of a table that a module tells."""
TEXT_MAX = 16384
"""Characters in such a table, all together: the answer about all modules has room for each."""


def link_of(driver: Driver, whose: str) -> tuple[bytes, int, bool]:
    """Address, MTU and carrier, as *driver* has them just now. *whose*: `module packet`. ModuleError (EINVAL) when they are none."""
    name, mac, mtu, up = map(_same, (driver.name, driver.mac, driver.mtu, driver.up))
    if not isinstance(name, str):
        problem = f"its name is {name!r:.40}, not text"
    elif not isinstance(mac, bytes) or len(mac) != MAC_SIZE:
        problem = f"the address of {name} is {mac!r:.40}, not {MAC_SIZE} bytes"
    elif is_group(mac):
        problem = f"{mac_text(mac)} of {name} is the address of a group, not of a station"
    elif not isinstance(mtu, int) or isinstance(mtu, bool) or not MTU_MIN <= mtu <= MTU_MAX:
        problem = f"the MTU of {name} is {mtu!r:.40}, not a number from {MTU_MIN} to {MTU_MAX}"
    elif not isinstance(up, bool):
        problem = f"{name} is neither up nor down, but {up!r:.40}"
    else:
        return mac, mtu, up
    raise ModuleError(errno.EINVAL, f"{whose} brings no link: {problem}")


def _same(value: object) -> object:
    """A driver may have anything there, whatever its types promise."""
    return value


def labels(told: object) -> dict[str, str | int]:
    """What `Driver.info` returned. TypeError or ValueError when that is no table with texts as labels."""
    return {_text(label): _label(one) for label, one in _table(told).items()}


def counters(told: object) -> dict[str, int]:
    """What `Counting.module_counters` returned, likewise."""
    return {_text(name): counter(one, _text(name)) for name, one in _table(told).items()}


def bounded(told: Mapping[str, T]) -> Mapping[str, T]:
    """*told*, which is a module's. ValueError when it would take the room of others in an answer."""
    if len(told) > ENTRIES_MAX:
        raise ValueError(f"a table of {len(told)} entries, and {ENTRIES_MAX} are the most")
    size = sum(len(name) + (len(one) if isinstance(one, str) else 0) for name, one in told.items())
    if size > TEXT_MAX:
        raise ValueError(f"a table of {size} characters, and {TEXT_MAX} are the most")
    return told


def _table(told: object) -> Mapping[object, object]:
    if not isinstance(told, Mapping):
        raise TypeError(f"a table is told as {type(told).__name__}")
    return told


def _text(label: object) -> str:
    if not isinstance(label, str):
        raise TypeError(f"a label is {type(label).__name__}, not text")
    return label


def counter(value: object, name: str) -> int:
    """*value*, which stands under *name*. TypeError when it is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name!r:.40} is {type(value).__name__}, not a counter")
    if not 0 <= value < COUNTER_END:
        raise TypeError(f"{name!r:.40} is {'negative' if value < 0 else 'of more than 64 bits'}, not a counter")
    return value


def number(value: int) -> int:
    """*value*, which is told. ValueError when it is longer than anybody's numbers."""
    if not -NUMBER_END < value < NUMBER_END:
        raise ValueError(f"a number of {value.bit_length()} bits, and 128 are the most")
    return value


def _label(value: object) -> str | int:
    return number(value) if isinstance(value, int) else str(value)
