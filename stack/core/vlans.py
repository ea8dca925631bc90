"""Who gets the frames of which VLAN: one look at a batch, however many VLANs a link has.

    IN hooks of en0, at the height of VLANs:  Trunk ─┬─ id 5 ─> handler of vlan5
                                                     ├─ id 6 ─> handler of vlan6
                                                     └─ without a tag, of other VLANs: they go on

The outermost 802.1Q tag counts. A handler gets the frames of its VLAN with the tag. The hook belongs to nobody and is there while one of
the VLANs is; each handler runs under the guard of its own module, so that one that fails drops its own batch only.
"""

from __future__ import annotations

import errno
import struct

import attrs

from stack.core.errors import ModuleError
from stack.core.ifnet import Interface
from stack.core.isolation import RAISED, Guard, Guards
from stack.core.registry import Handler
from stack.core.statistics import Drop
from stack.frame import Frame
from stack.wire.ethernet import TPID_8021Q, unpack_type
from stack.wire.vlan import vlan_of

_TAGGED = (TPID_8021Q,)


@attrs.frozen(eq=False)
class _Taker:
    name: str
    handler: Handler
    guard: Guard | None


class Trunk:
    """The VLANs of the interface *name*, whether it is there or not."""

    def __init__(self, name: str, guards: Guards) -> None:
        self.name = name
        self._guards = guards
        self._takers: dict[int, _Taker] = {}

    def __bool__(self) -> bool:
        return bool(self._takers)

    def add(self, vlan: int, handler: Handler, name: str) -> None:
        """*name*: whose it is. ModuleError (EEXIST) when somebody has it."""
        known = self._takers.get(vlan)
        if known is not None:
            raise ModuleError(errno.EEXIST, f"VLAN {vlan} of {self.name} is {known.name} already")
        self._takers[vlan] = _Taker(name, handler, self._guards.current)

    def remove(self, vlan: int) -> None:
        del self._takers[vlan]

    def incoming(self, interface: Interface, frames: list[Frame]) -> list[Frame]:
        """The hook (`stack.core.hooks.Hook`)."""
        try:
            if _TAGGED not in map(unpack_type, frames):
                return frames
        except struct.error:
            pass  # One is shorter than a header.
        left: list[Frame] = []
        taken: dict[int, list[Frame]] = {}
        for frame in frames:
            vlan = vlan_of(frame)
            if vlan in self._takers:
                taken.setdefault(vlan, []).append(frame)
            else:
                left.append(frame)
        for vlan, batch in taken.items():
            self._give(vlan, interface, batch)
        return left if taken else frames

    def _give(self, vlan: int, interface: Interface, frames: list[Frame]) -> None:
        taker = self._takers.get(vlan)
        if taker is None:
            # It went within the call of one before it.
            interface.drops.count(Drop.NO_VLAN, len(frames))
            return
        try:
            self._guards.run(taker.guard, taker.name, taker.handler, interface, frames)
        except RAISED:
            interface.drops.count(Drop.HANDLER_FAILED, len(frames))
            self._guards.failure(f"handler of {taker.name}", taker.handler, taker.guard)
