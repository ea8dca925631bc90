"""Who gets which ethertype. An object of one stack; every protocol is equal here, IP or Qnet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from resmgr.errors import Misuse
from stack.frame import Frame
from stack.wire.ethernet import ETHERTYPE_MIN, TPIDS

if TYPE_CHECKING:
    from stack.core.ifnet import Interface
    from stack.core.isolation import Guard

Handler = Callable[["Interface", list[Frame]], None]
"""Gets whole frames of its ethertype from one interface, tagged or not, in order; they are valid until it returns."""


class Registration:
    """Something that a module put into the stack. `revoke` takes it out; idempotent."""

    __slots__ = ("_revoke", "what")

    def __init__(self, what: str, revoke: Callable[[], None]) -> None:
        self.what = what
        self._revoke: Callable[[], None] | None = revoke

    @property
    def live(self) -> bool:
        return self._revoke is not None

    def revoke(self) -> None:
        revoke, self._revoke = self._revoke, None
        if revoke is not None:
            revoke()


class Ethertypes:
    """The table of handlers. `handled` counts frames per ethertype."""

    def __init__(self) -> None:
        self.handlers: dict[int, Handler] = {}
        self.handled: dict[int, int] = {}
        self.guards: dict[int, Guard | None] = {}
        """Of the modules that registered; None: registered from outside of any."""

    def add(self, ethertype: int, handler: Handler, guard: Guard | None = None) -> None:
        """Misuse when it is taken, is a VLAN tag's, or is no ethertype at all."""
        if not ETHERTYPE_MIN <= ethertype <= 0xFFFF or ethertype in TPIDS:
            raise Misuse(f"{ethertype:#06x} cannot be registered as an ethertype")
        if ethertype in self.handlers:
            raise Misuse(f"ethertype {ethertype:#06x} is registered already")
        self.handlers[ethertype] = handler
        self.handled.setdefault(ethertype, 0)
        self.guards[ethertype] = guard

    def remove(self, ethertype: int) -> None:
        del self.handlers[ethertype]
        del self.handled[ethertype]
        del self.guards[ethertype]

    def wanted(self) -> frozenset[int]:
        return frozenset(self.handlers)
