"""The modules at work in one stack: how they come and go.

    load: prepare (`stack.core.preparation`) -> attach -> wrappers around a driver -> interface -> driver begins, is told what is wanted
          -> in the table -> ATTACHED
    unload: out of the table -> DETACHED -> detach -> what it forgot is taken back, with a warning

Loading does all of it or nothing: whatever fails, what was attached is detached and what was registered is revoked. Unloading goes through
whatever `detach` raises. Both run as the module (`stack.core.isolation`), are synchronous, and may be asked for in any callback, under
traffic. Loading a module again with what it had is for `stack.core.restart`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from resmgr.errors import Misuse
from stack.core.driver import Driver
from stack.core.hooks import Hooks
from stack.core.ifnet import InterfaceEvent
from stack.core.interfaces import Interfaces
from stack.core.isolation import RAISED, Guard, GuardedDispatch, Guards
from stack.core.layers import stands_on
from stack.core.loaded import Loaded, wrapped
from stack.core.module import Attached, Context, Kind, Loadable, Random, can_detach, check_attached
from stack.core.preparation import Preparation, prepare
from stack.core.restart import Restarter, Restarts
from stack.core.underway import UnderWay
from stack.core.wants import Wants

if TYPE_CHECKING:
    from stack.core.stack import Stack

log = logging.getLogger(__name__)


class Modules:
    """See the head of this file. `loaded` is in order of loading."""

    def __init__(self, stack: Stack, random: Random, guards: Guards, interfaces: Interfaces, hooks: Hooks, wants: Wants) -> None:
        self._stack = stack
        self._random = random
        self._guards = guards
        self._interfaces = interfaces
        self._hooks = hooks
        self._wants = wants
        self._next_number = 1
        self._closed = False
        self.loaded: list[Loaded] = []
        self.under_way = UnderWay(stack.dispatch)
        self.restarter = Restarter(stack, self)
        guards.failed = self.restarter.failed

    def load(self, module: Loadable | str, options: str, kind: Kind | None, wrap: Sequence[tuple[str, str]]) -> Loaded:
        """As `stack.core.stack.Stack.load`."""
        if self._closed:
            raise Misuse("the stack is closed")
        return self.load_prepared(prepare(self._stack.system, module, options, kind, wrap))

    def load_prepared(self, made: Preparation) -> Loaded:
        """As `stack.core.stack.Stack.load_prepared`."""
        if self._closed:
            self.discard(made)
            raise Misuse("the stack is closed")
        return self._load(made, Restarts(made.restart, named=made.named) if made.restart else None)

    def discard(self, made: Preparation) -> None:
        """As `stack.core.stack.Stack.discard`."""
        guard = Guard(made.module.name, self._guards)
        guard.run("prepared close", made.close)
        guard.take_back()
        self._count(guard)

    def prepare_again(self, loaded: Loaded) -> Preparation:
        """What `load_again` loads. Blocks, in any thread."""
        prepared = loaded.module.prepare_text(self._stack.system, loaded.options)
        return Preparation(loaded.module, loaded.options, tuple(loaded.wrap), 0, prepared, loaded.named)

    def load_again(self, loaded: Loaded, made: Preparation) -> Loaded:
        """Load a module that was unloaded as it was before. *made*: by `prepare_again`; the module's then, or closed. As `load`."""
        return self._load(made, loaded.restarts)

    def _load(self, made: Preparation, restarts: Restarts | None) -> Loaded:
        stack, found, guard = self._stack, made.module, Guard(made.module.name, self._guards)
        dispatch = GuardedDispatch(stack.dispatch, guard)
        kept = None if restarts is None else restarts.kept
        context = Context(stack, dispatch, stack.kernel, self._random, stack.system, kept, made.prepared)
        outer, self._guards.current = self._guards.current, guard
        attached: Attached | None = None
        try:
            returned = found.attach_text(context, made.options)
            attached = returned if can_detach(returned) else None
            check_attached(returned, found.kind, found.name)
            assert attached is not None
            loaded = Loaded(self._next_number, found, made.options, guard, dispatch, attached, made.wrap, restarts, made.named)
            if found.kind is Kind.DRIVER:
                innermost = attached
                chain: list[Driver] = []
                for driver in wrapped(cast(Driver, innermost), made.wrap, context):
                    loaded.attached = attached = driver
                    chain.append(driver)
                loaded.wrappers = tuple(chain[1:])
                self._begin(loaded, chain[-1], innermost)
        except BaseException:
            if attached is not None:
                self._detach(attached, guard)
            guard.run("prepared close", made.close)
            guard.take_back()
            dispatch.take_back()
            self._count(guard)
            raise
        finally:
            self._guards.current = outer
        self._next_number += 1
        self.loaded.append(loaded)
        if loaded.interface is not None:
            self._interfaces.tell(InterfaceEvent.ATTACHED, loaded.interface)
        return loaded

    def _begin(self, loaded: Loaded, driver: Driver, innermost: Attached) -> None:
        """The interface of a driver."""
        interface = self._interfaces.make(driver, innermost, loaded.guard)
        if loaded.restarts is not None:
            loaded.restarts.give_back(interface)
        driver.start(interface)
        layered = bool(stands_on(driver))
        self._wants.tell(interface)
        # From here on nothing of the module is called whose failure would have to take the interface back.
        self._interfaces.add(interface)
        loaded.interface = interface
        if layered:
            self._wants.tell_all()

    def unload(self, loaded: Loaded) -> None:
        """As `stack.core.stack.Stack.unload`."""
        name = self._stack.name
        if loaded not in self.loaded:
            raise Misuse(f"{loaded.module.name} is not loaded in {name}")
        self.loaded.remove(loaded)
        self.restarter.forget(loaded)
        interface = loaded.interface
        if interface is not None:
            self._interfaces.remove(interface)
            self._wants.forget(interface)
            self._hooks.forget(interface.name)
            self._interfaces.tell(InterfaceEvent.DETACHED, interface)
        self._detach(loaded.attached, loaded.guard)
        for what in [*loaded.guard.take_back(), *loaded.dispatch.take_back()]:
            log.warning("%s: module %s left %s behind", name, loaded.module.name, what)
        if loaded.restarts is not None:
            loaded.restarts.remember(loaded.guard)
        self._count(loaded.guard)

    def _count(self, guard: Guard) -> None:
        """What was raised under *guard*, whose module is not loaded any more."""
        for what, number in guard.failures.items():
            self._guards.failures.count(what, number)

    def _detach(self, attached: Attached, guard: Guard) -> None:
        """Not measured: the kernel takes its time to give a ring back."""
        outer, self._guards.current = self._guards.current, guard
        try:
            attached.detach()
        except RAISED:
            guard.failure("detach", attached.detach)
        finally:
            self._guards.current = outer

    def close(self) -> None:
        """Unload everything, newest first. Idempotent."""
        self._closed = True
        self.restarter.close()
        self.under_way.close()
        while self.loaded:
            self.unload(self.loaded[-1])
