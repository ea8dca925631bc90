"""Who is told of something: callbacks of modules and of the program around the stack, in the order in which they came.

Each is called as its module's (`stack.core.isolation`), so one that fails keeps no other from being told. Who comes or goes while they are
told is told, or not any more, from the next time on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVarTuple

import attrs

from stack.core.isolation import Guard, Guards

Ts = TypeVarTuple("Ts")


@attrs.frozen(eq=False)
class Entry(Generic[*Ts]):
    listener: Callable[[*Ts], None]
    guard: Guard | None
    """Of the module that put it there."""


class Listeners(Generic[*Ts]):
    """Those of one kind of news; *what* is what each is called in counters and logs."""

    def __init__(self, guards: Guards, what: str) -> None:
        self._guards = guards
        self._what = what
        self._entries: tuple[Entry[*Ts], ...] = ()
        """Replaced, never changed."""

    def add(self, listener: Callable[[*Ts], None]) -> Callable[[], None]:
        """From now on, until what is returned is called."""
        entry = Entry(listener, self._guards.current)
        self._entries = (*self._entries, entry)

        def end() -> None:
            self._entries = tuple(one for one in self._entries if one is not entry)

        return end

    def tell(self, *news: *Ts) -> None:
        for entry in self._entries:
            self._guards.call(entry.guard, self._what, entry.listener, *news)
