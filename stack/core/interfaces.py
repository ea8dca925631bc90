"""The interfaces of one stack, by name: which may come, and who is told of what happens to them.

An interface is made before its driver begins, since that delivers to it, and is in the table once the driver has begun: until then
no module knows of it. A name is used by one interface at a time, an index by one ever.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from stack.core.driver import Driver
from stack.core.endpoints import has_endpoints
from stack.core.errors import ModuleError
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.isolation import Guard, Guards
from stack.core.listeners import Listeners
from stack.core.names import check_name
from stack.core.told import link_of

if TYPE_CHECKING:
    from stack.core.module import Attached
    from stack.core.stack import Stack

log = logging.getLogger(__name__)

INTERFACES_MAX = 256
"""More are refused: mount requests must not fill the node."""


class Interfaces:
    """See the head of this file. `by_name` is in the order in which they came; others read it only."""

    def __init__(self, stack: Stack, guards: Guards) -> None:
        self._stack = stack
        self._next_index = 1
        self.by_name: dict[str, Interface] = {}
        self.listeners: Listeners[InterfaceEvent, Interface] = Listeners(guards, "interface listener")

    def make(self, driver: Driver, innermost: Attached, guard: Guard) -> Interface:
        """One for *driver*, which is around *innermost* and of the module of *guard*. ModuleError when there can be none."""
        if len(self.by_name) >= INTERFACES_MAX:
            raise ModuleError(errno.ENOSPC, f"{self._stack.name} has {INTERFACES_MAX} interfaces already")
        link_of(driver, f"module {guard.module}")
        check_name(driver.name)
        if driver.name in self.by_name:
            raise ModuleError(errno.EEXIST, f"{self._stack.name} has an interface {driver.name} already")
        endpoints = innermost if has_endpoints(innermost) else None
        interface = Interface(self._stack, driver.name, self._next_index, driver, endpoints, guard)
        self._next_index += 1
        return interface

    def add(self, interface: Interface) -> None:
        """Its driver has begun. Nobody is told yet."""
        self.by_name[interface.name] = interface

    def remove(self, interface: Interface) -> None:
        """It is gone: nothing goes up or down there any more. Nobody is told yet."""
        del self.by_name[interface.name]
        interface.attached = False
        interface.up = False

    def tell(self, event: InterfaceEvent, interface: Interface) -> None:
        log.info("%s: interface %s %s", self._stack.name, interface.name, event.value)
        self.listeners.tell(event, interface)

    def below(self, name: str) -> tuple[str, ...]:
        """What the interface of that name stands on; nothing where there is none."""
        interface = self.by_name.get(name)
        return () if interface is None else interface.below
