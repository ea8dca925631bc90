"""Members of a bridge, or ports of an aggregate, that have no interface just now: known by name, with what is kept of them.

member ── its interface goes ──> absent ── one of that name is attached ──> member again, as it was; absent, and why, if it cannot be
                                   └─ taken out ──> forgotten
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import attrs

from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.stack import Stack
from stack.l2.arguments import refused

log = logging.getLogger(__name__)

GONE = "there is no such interface just now"

K = TypeVar("K")
"""What is kept of one."""


@attrs.define(eq=False)
class Absent(Generic[K]):
    """One without an interface. `why`, in a sentence."""

    kept: K
    why: str = GONE


class AbsentMembers(dict[str, Absent[K]], Generic[K]):
    """Of the interface *owner*, by name. *noun* says what they are, *ended* what can be done with an absent one. *take(name, kept)* makes a
    member of an interface that is there, OSError when it cannot be; it takes the name out of here."""

    def __init__(self, owner: str, noun: str, ended: str, take: Callable[[str, K], None]) -> None:
        super().__init__()
        self._owner, self._noun, self._ended = owner, noun, ended
        self._take = take

    def begin(self, members: Iterable[tuple[str, K]], stack: Stack) -> None:
        """As it was before a restart: those whose interface is there are members at once."""
        self.update((name, Absent(kept)) for name, kept in members)
        for name in list(self):
            if stack.interface(name) is not None:
                self._take_again(name)

    def lose(self, name: str, kept: K) -> None:
        """Its interface is gone, and it is no member any more."""
        log.warning("%s: %s %s is gone; it is a %s again when it is back", self._owner, self._noun, name, self._noun)
        self[name] = Absent(kept)

    def event(self, event: InterfaceEvent, interface: Interface) -> bool:
        """Something happened to an interface. Whether it was that an absent one came back."""
        if interface.name not in self:
            return False
        if event is InterfaceEvent.DETACHED:
            self[interface.name].why = GONE
        if event is InterfaceEvent.ATTACHED:
            self._take_again(interface.name)
        return event is InterfaceEvent.ATTACHED

    def refuse(self, name: str) -> None:
        """ModuleError for who asks something of an absent one."""
        if name in self:
            raise refused(
                f"{name} is an absent {self._noun} of {self._owner}, which can only be {self._ended}: {self[name].why}", errno.ENXIO
            )

    def _take_again(self, name: str) -> None:
        absent = self[name]
        try:
            self._take(name, absent.kept)
        except OSError as error:
            absent.why = str(error)
            log.warning("%s: %s is back and cannot be a %s as it was: %s", self._owner, name, self._noun, absent.why)
        else:
            log.info("%s: %s %s is back", self._owner, self._noun, name)
