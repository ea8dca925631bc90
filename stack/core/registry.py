"""Who gets which ethertype, and which IP protocol. Objects of one stack; every protocol is equal here, IP or Qnet."""

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
"""Gets whole frames of its ethertype from one interface, in order, or whole packets of its IP protocol; they are valid until
it returns."""


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


class Handlers:
    """A table of handlers by number. `handled` counts what each got."""

    def __init__(self) -> None:
        self.handlers: dict[int, Handler] = {}
        self.handled: dict[int, int] = {}
        self.guards: dict[int, Guard | None] = {}
        """Of the modules that registered; None: registered from outside of any."""

    def add(self, number: int, handler: Handler, guard: Guard | None = None) -> None:
        self.handlers[number] = handler
        self.handled.setdefault(number, 0)
        self.guards[number] = guard

    def remove(self, number: int) -> None:
        del self.handlers[number]
        del self.handled[number]
        del self.guards[number]

    def listed(self) -> list[tuple[int, int, str]]:
        """(number, frames handed on, module or "" when it is nobody's) of each."""
        return [(number, self.handled[number], module_of(self.guards[number])) for number in sorted(self.handlers)]


def module_of(guard: Guard | None) -> str:
    """For people: the module whose guard it is, "" for nobody's."""
    return "" if guard is None else guard.module


class Ethertypes(Handlers):
    """Who gets which ethertype. `any_vlan`: those that frames of foreign VLANs are given to as well."""

    def __init__(self) -> None:
        super().__init__()
        self.any_vlan: set[int] = set()

    def add(self, number: int, handler: Handler, guard: Guard | None = None, vlans: bool = False) -> None:
        """Misuse when it is taken, is a VLAN tag's, or is no ethertype at all."""
        if not ETHERTYPE_MIN <= number <= 0xFFFF or number in TPIDS:
            raise Misuse(f"{number:#06x} cannot be registered as an ethertype")
        if number in self.handlers:
            raise Misuse(f"ethertype {number:#06x} is registered already")
        super().add(number, handler, guard)
        if vlans:
            self.any_vlan.add(number)

    def remove(self, number: int) -> None:
        super().remove(number)
        self.any_vlan.discard(number)

    def wanted(self) -> frozenset[int]:
        return frozenset(self.handlers)


class IpProtocols(Handlers):
    """Who gets which IP protocol."""

    def add(self, number: int, handler: Handler, guard: Guard | None = None) -> None:
        """Misuse when it is taken or is no protocol's number."""
        if not 0 <= number <= 0xFF:
            raise Misuse(f"{number} cannot be registered as an IP protocol")
        if number in self.handlers:
            raise Misuse(f"IP protocol {number} is registered already")
        super().add(number, handler, guard)
