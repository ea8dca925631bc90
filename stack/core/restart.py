"""Restarts of modules that raised: `io-pkt -p tunnel peer=a,restart=5`.

A module whose callback raised may be in no state to go on. With `restart=N` it is unloaded and loaded again, with the same options and
wrappers, at once the first time, then after 1, 2, 4, ... `WAIT_MAX` seconds, at most N times in a row; `QUIET` seconds without an exception
end a row. A module that cannot be loaded again now (its device is gone) is tried again in the same way. After N the module stays as it is:
what it does raise is counted, as for one without restarts.

One that prepares itself (`Module.prepare`) does that in a thread, while frames go on, and is among the absent for that long.

What was set at run time is not lost: before it is unloaded the module is asked for it (`stack.core.module.Keeping`), and it is held until
a load succeeds, over however many tries. An interface is switched off, and has its MTU's limit, as before. One whose `keep` raises begins
with its options, which the log says.

An interface that comes back this way has its name and another index; modules see it go and come.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from resmgr.dispatch import Timer
from stack.core.isolation import RAISED, Guard, within
from stack.core.loaded import is_called
from stack.core.module import Kind, keeping_module
from stack.core.preparation import Preparation
from stack.core.statistics import Counters

if TYPE_CHECKING:
    from stack.core.ifnet import Interface
    from stack.core.loaded import Loaded
    from stack.core.modules import Modules
    from stack.core.stack import Stack

log = logging.getLogger(__name__)

WAIT_FIRST = 1.0
WAIT_MAX = 60.0
QUIET = 600.0


@attrs.define(eq=False)
class Restarts:
    """The restarts of one module, carried over from load to load. `most` in a row are allowed; `done` in this row, `total` ever."""

    most: int
    named: str = attrs.field(default="", kw_only=True)
    """As of `Loaded`."""
    done: int = 0
    total: int = 0
    last: float = 0.0
    """When the last one was, in monotonic seconds."""
    waiting: Timer | None = None
    why: str = ""
    """Why the module is not loaded just now."""
    kept: object = None
    """What the module shall have of its former load; None once it has it."""
    kind: Kind | None = None
    """Of the module, once it was restarted."""
    interface: str = ""
    """The name that its interface had, if it had one."""
    enabled: bool = True
    mtu_limit: int | None = None
    """Of its interface."""
    failures: Counters = attrs.Factory(Counters)
    slow: Counters = attrs.Factory(Counters)
    """Of all former loads, as `Guard` counts them."""
    longest: float = 0.0

    def remember(self, guard: Guard) -> None:
        """A load has ended, which *guard* was of."""
        for counted, before in ((guard.failures, self.failures), (guard.slow, self.slow)):
            for what, number in counted.items():
                before.count(within(before, what), number)
        self.longest = max(self.longest, guard.longest)

    def keep(self, interface: Interface) -> None:
        self.interface, self.enabled, self.mtu_limit = interface.name, interface.enabled, interface.mtu_limit

    def give_back(self, interface: Interface) -> None:
        """To *interface*, of which nobody knows yet."""
        interface.enabled, interface.mtu_limit = self.enabled, self.mtu_limit
        interface.changed()


class Restarter:
    """Restarts the modules of one stack."""

    def __init__(self, stack: Stack, modules: Modules) -> None:
        self._stack = stack
        self._modules = modules
        self._absent: dict[str, Restarts] = {}
        """Modules that are to be loaded again and could not be yet."""

    def failed(self, guard: Guard) -> None:
        """A callback under *guard* raised. It may still be running above us."""
        for loaded in self._stack.loaded:
            if loaded.guard is guard and loaded.restarts is not None:
                self._plan(loaded, loaded.restarts)

    def absent(self) -> dict[str, str]:
        """Modules that wait to be loaded again, and why they are not."""
        return {name: restarts.why for name, restarts in self._absent.items()}

    def forget(self, loaded: Loaded) -> None:
        """*loaded* is unloaded by somebody who wants it so."""
        if loaded.restarts is not None and loaded.restarts.waiting is not None:
            loaded.restarts.waiting.cancel()
            loaded.restarts.waiting = None

    def waiting(self, name: str, interface: str = "", kind: Kind | None = None) -> list[str]:
        """The labels (`hub #3`, as in `absent`) of modules that wait for a restart and are named by *name*: label, number, or, of *kind*,
        module or what it was found by; and of those that had the interface called *interface*."""
        found = []
        for label, restarts in self._absent.items():
            own, _, number = label.partition(" ")
            called = is_called(name, own, restarts.named) and kind in (None, restarts.kind)
            if called or name in (label, number) or (interface and interface == restarts.interface):
                found.append(label)
        return found

    def give_up(self, label: str) -> Restarts:
        """Do not load the module of that label again. What it had."""
        restarts = self._absent.pop(label)
        if restarts.waiting is not None:
            restarts.waiting.cancel()
        return restarts

    def close(self) -> None:
        for restarts in self._absent.values():
            if restarts.waiting is not None:
                restarts.waiting.cancel()
        self._absent.clear()

    def _plan(self, loaded: Loaded, restarts: Restarts) -> None:
        if restarts.waiting is not None:
            return
        now = self._stack.dispatch.now()
        if now - restarts.last > QUIET:
            restarts.done = 0
        name = loaded.module.name
        if restarts.done >= restarts.most:
            if restarts.done == restarts.most:
                restarts.done += 1
                log.error("%s: module %s failed again after %d restarts: it is left as it is", self._stack.name, name, restarts.most)
            return
        wait = 0.0 if restarts.done == 0 else min(WAIT_FIRST * 2.0 ** (restarts.done - 1), WAIT_MAX)
        restarts.waiting = self._stack.dispatch.call_at(now + wait, lambda: self._restart(loaded, restarts))

    def _restart(self, loaded: Loaded, restarts: Restarts) -> None:
        stack = self._stack
        if loaded in stack.loaded:
            self._keep(loaded, restarts)
        restarts.kind = loaded.module.kind
        restarts.waiting = None
        restarts.last = stack.dispatch.now()
        restarts.done += 1
        restarts.total += 1
        name = loaded.module.name
        label = f"{name} #{loaded.number}"
        self._absent.pop(label, None)
        if loaded in stack.loaded:
            log.warning("%s: module %s is restarted (%d of %d)", stack.name, name, restarts.done, restarts.most)
            stack.unload(loaded)
        if not loaded.module.prepares:
            self._load(loaded, restarts, label, self._modules.prepare_again)
            return
        restarts.why = "it gets ready"
        self._absent[label] = restarts

        def ready(made: Preparation | BaseException) -> None:
            if self._absent.get(label) is restarts:
                del self._absent[label]
                self._load(loaded, restarts, label, lambda _: _made(made))
            elif isinstance(made, Preparation):
                self._modules.discard(made)  # given up meanwhile

        self._modules.under_way.begin(lambda: self._modules.prepare_again(loaded), ready)

    def _load(self, loaded: Loaded, restarts: Restarts, label: str, prepared: Callable[[Loaded], Preparation]) -> None:
        stack, name = self._stack, loaded.module.name
        try:
            self._modules.load_again(loaded, prepared(loaded))
        except RAISED as error:
            restarts.why = str(error) or type(error).__name__
            if restarts.done >= restarts.most:
                log.error("%s: module %s cannot be loaded again and is given up: %s", stack.name, name, restarts.why)
                return
            log.warning("%s: module %s cannot be loaded again yet: %s", stack.name, name, restarts.why)
            self._absent[label] = restarts
            self._plan(loaded, restarts)
        else:
            restarts.kept = None

    def _keep(self, loaded: Loaded, restarts: Restarts) -> None:
        """What was set at run time. A restart is under way: what raises here asks for no other."""
        if loaded.interface is not None:
            restarts.keep(loaded.interface)
        restarts.kept = None
        keeping = keeping_module(loaded.attached)
        if keeping is not None:
            try:
                restarts.kept = loaded.guard.ask("keep", keeping.keep)
            except RAISED as error:
                name = loaded.module.name
                log.warning("%s: module %s does not say what was set, and begins with its options: %s", self._stack.name, name, error)


def _made(made: Preparation | BaseException) -> Preparation:
    if isinstance(made, BaseException):
        raise made
    return made
