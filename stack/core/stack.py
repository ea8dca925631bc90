"""The network manager: interfaces, modules, and what they register. QNX's io-pkt stack, without any protocol of its own.

The way of a batch is `stack.core.datapath`; here is how modules and interfaces come and go, and what modules put into that way.

A stack is an object; a process may have several. It runs on a `Dispatch` and does no I/O itself; all calls happen in dispatch context.

Unlike QNX: every module can be unloaded, under traffic. An exception in a module's callback ends that callback, not the manager: it is
counted, logged once per callback, and the stack goes on. (In QNX a fault in a driver kills io-pkt.)
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVarTuple

import attrs

from resmgr.errors import Misuse
from resmgr.system import System
from stack.core.datapath import Datapath
from stack.core.driver import Driver
from stack.core.endpoints import has_endpoints
from stack.core.errors import ModuleError, refusal
from stack.core.groups import join_group
from stack.core.hooks import ORDER_TAP, Hook, HookEntry, Point
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.ipfilters import IpFilter, IpFilters
from stack.core.isolation import RAISED, SLOW_DEFAULT, Guard, GuardedDispatch, Guards
from stack.core.layers import all_below, stands_on
from stack.core.loaded import Loaded, wrapped
from stack.core.loader import find_module
from stack.core.module import Attached, Context, Kind, Loadable, Random
from stack.core.names import check_name, check_station
from stack.core.options import take_common
from stack.core.promiscuity import promiscuous_driver
from stack.core.registry import Handler, Handlers, Registration
from stack.core.restart import Restarter, Restarts
from stack.core.runs import carries_runs
from stack.core.screen import Screen, can_screen
from stack.core.statistics import Counters, StackStatistics
from stack.crypto.registry import Crypto, standard_crypto

log = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")
Listener = Callable[[InterfaceEvent, Interface], None]
Watcher = Callable[[], None]
INTERFACES_MAX = 256
"""More are refused: mount requests must not fill the node."""


@attrs.define(eq=False)
class Listening:
    """A listener, and the guard of the module whose it is."""

    listener: Listener
    guard: Guard | None


@attrs.define(eq=False)
class Watching:
    """A watcher of hooks, and the guard of the module whose it is."""

    watcher: Watcher
    guard: Guard | None


class Stack(Datapath):
    """See the head of this file. *random(n)* yields n bytes for modules; *name* is for logs and statistics."""

    def __init__(
        self,
        system: System,
        random: Random,
        name: str = "io-pkt0",
        crypto: Crypto | None = None,
        *,
        prefix: str = "",
        clock: Callable[[], float] | None = None,
        slow_after: float = SLOW_DEFAULT,
        workers: int = 1,
    ) -> None:
        """*prefix*: where the stack's managers attach in the pathname space, for a second stack beside another: `/alt`. *clock* and
        *slow_after*: as for `stack.core.isolation.Guards`. *workers*: threads that a forwarding engine may use."""
        super().__init__(name, Guards(name, clock, slow_after))
        self.system = system
        self.dispatch = system.dispatch
        self.kernel = system.kernel
        self.crypto = standard_crypto() if crypto is None else crypto
        self.prefix = prefix
        self.workers = workers
        self._random = random
        self.restarter = Restarter(self)
        self._guards.failed = self.restarter.failed
        around = system.kernel.running
        system.kernel.running = lambda: self._guards.current or around()
        self._interfaces: dict[str, Interface] = {}
        self._loaded: list[Loaded] = []
        self._screens: dict[int, Screen] = {}
        self._told: dict[Interface, tuple[frozenset[int] | None, dict[int, Screen], bool]] = {}
        """Ethertypes and screens that drivers have, and whether they hand up runs in one piece."""
        self.ip_filters = IpFilters(self._guards, self._failed)
        self._listeners: list[Listening] = []
        self._watchers: list[Watching] = []
        self._next_index = 1
        self._next_number = 1
        self._closed = False

    # Modules

    def load(
        self,
        module: Loadable | str,
        options: str = "",
        *,
        kind: Kind | None = None,
        wrap: Sequence[tuple[str, str]] = (),
    ) -> Loaded:
        """Find, attach and list a module; a driver gets its interface. *wrap*: wrappers around a driver, innermost first, with options.

        `restart=` among the options is the stack's (`stack.core.restart`), the rest is the module's. ModuleError in one sentence when that
        does not work; then nothing is left behind. Misuse when the module breaks a rule (two modules want one ethertype).
        """
        if self._closed:
            raise Misuse("the stack is closed")
        found = find_module(module, kind) if isinstance(module, str) else module
        if wrap and found.kind is not Kind.DRIVER:
            raise ModuleError(errno.EINVAL, f"{found.name} is no driver: nothing can be wrapped around it")
        if found.kind is Kind.WRAPPER:
            raise ModuleError(errno.EINVAL, f"{found.name} needs a driver to be wrapped around")
        common, own = take_common(options, found.name)
        return self._load(found, own, wrap, Restarts(common.restart) if common.restart else None)

    def load_again(self, loaded: Loaded) -> Loaded:
        """Load a module that was unloaded as it was before. As `load`."""
        return self._load(loaded.module, loaded.options, loaded.wrap, loaded.restarts)

    def _load(self, found: Loadable, options: str, wrap: Sequence[tuple[str, str]], restarts: Restarts | None) -> Loaded:
        guard = Guard(found.name, self._guards)
        dispatch = GuardedDispatch(self.dispatch, guard)
        context = Context(self, dispatch, self.kernel, self._random, self.system, None if restarts is None else restarts.kept)
        outer, self._guards.current = self._guards.current, guard
        attached: Attached | None = None
        try:
            attached = found.attach_text(context, options)
            loaded = Loaded(self._next_number, found, options, guard, dispatch, attached, tuple(wrap), restarts)
            if found.kind is Kind.DRIVER:
                innermost = attached
                chain: list[Driver] = []
                for driver in wrapped(found, innermost, wrap, context):
                    loaded.attached = attached = driver
                    chain.append(driver)
                loaded.wrappers = tuple(chain[1:])
                self._attach_interface(loaded, chain[-1], innermost)
        except BaseException:
            if attached is not None:
                self._detach(attached, guard)
            guard.take_back()
            dispatch.take_back()
            raise
        finally:
            self._guards.current = outer
        self._next_number += 1
        self._loaded.append(loaded)
        if loaded.interface is not None:
            self.tell(InterfaceEvent.ATTACHED, loaded.interface)
        return loaded

    def unload(self, loaded: Loaded) -> None:
        """Detach a module and all that it put into the stack and on its dispatch. Synchronous; may be called from its own callbacks."""
        if loaded not in self._loaded:
            raise Misuse(f"{loaded.module.name} is not loaded in {self.name}")
        self._loaded.remove(loaded)
        self.restarter.forget(loaded)
        interface = loaded.interface
        if interface is not None:
            del self._interfaces[interface.name]
            self._told.pop(interface, None)
            self._hooks.forget(interface.name)
            interface.attached = False
            interface.up = False
            self.tell(InterfaceEvent.DETACHED, interface)
        self._detach(loaded.attached, loaded.guard)
        for what in [*loaded.guard.take_back(), *loaded.dispatch.take_back()]:
            log.warning("%s: module %s left %s behind", self.name, loaded.module.name, what)
        for what, number in loaded.guard.failures.items():
            self._failures.count(what, number)

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
        while self._loaded:
            self.unload(self._loaded[-1])

    @property
    def loaded(self) -> tuple[Loaded, ...]:
        """In order of loading."""
        return tuple(self._loaded)

    # Interfaces

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        return tuple(self._interfaces.values())

    def interface(self, name: str) -> Interface | None:
        return self._interfaces.get(name)

    def on_interface(self, listener: Listener) -> Registration:
        """Tell *listener* of interfaces that come, go and change from now on. Those that are there: `interfaces`."""
        entry = Listening(listener, self._guards.current)
        self._listeners = [*self._listeners, entry]

        def revoke() -> None:
            self._listeners = [one for one in self._listeners if one is not entry]

        return self._registered("an interface listener", revoke)

    def tell(self, event: InterfaceEvent, interface: Interface) -> None:
        """For interfaces: pass an event to the listeners."""
        log.info("%s: interface %s %s", self.name, interface.name, event.value)
        for entry in self._listeners:
            self._call(entry.guard, "interface listener", entry.listener, event, interface)

    def _call(self, guard: Guard | None, what: str, call: Callable[[*Ts], None], *args: *Ts) -> None:
        """A callback of a module, or of a program around the stack."""
        if guard is not None:
            guard.run(what, call, *args)
            return
        outer, self._guards.current = self._guards.current, None
        try:
            call(*args)
        except RAISED:
            self._failed(what, call, None)
        finally:
            self._guards.current = outer

    def _attach_interface(self, loaded: Loaded, driver: Driver, innermost: Attached) -> None:
        if len(self._interfaces) >= INTERFACES_MAX:
            raise ModuleError(errno.ENOSPC, f"{self.name} has {INTERFACES_MAX} interfaces already")
        check_name(driver.name)
        check_station(driver.mac, driver.name)
        if driver.name in self._interfaces:
            raise ModuleError(errno.EEXIST, f"{self.name} has an interface {driver.name} already")
        endpoints = innermost if has_endpoints(innermost) else None
        interface = Interface(self, driver.name, self._next_index, driver, endpoints, loaded.guard)
        self._next_index += 1
        if loaded.restarts is not None:
            loaded.restarts.give_back(interface)
        driver.start(interface)
        self._tell_driver(interface)
        self._interfaces[interface.name] = interface
        loaded.interface = interface
        if stands_on(driver):
            self._tell_drivers()

    # Protocols and hooks

    def register_ethertype(self, ethertype: int, handler: Handler, *, vlans: bool = False) -> Registration:
        """From now on *handler* gets received frames of *ethertype*, as batches. Misuse when somebody has it already.

        Frames may be padded, and are valid until the handler returns. *vlans*: it gets those of VLANs that have no interface here, too,
        with their tags (`stack.wire.ethernet.payload_offset`); others do not (`stack.core.tags`).
        """
        self._ethertypes.add(ethertype, handler, self._guards.current, vlans)
        self._tell_drivers()

        def revoke() -> None:
            self._ethertypes.remove(ethertype)
            self._tell_drivers()
            self.screen(ethertype, None)

        return self._registered(f"ethertype {ethertype:#06x}", revoke)

    def register_ip_protocol(self, protocol: int, handler: Handler) -> Registration:
        """From now on *handler* gets IP packets of *protocol* that are for this machine, whole, from the header to the payload's end.

        They come while a module for IP is loaded (`stack.inet.ip`). Misuse when somebody has it already.
        """
        self._ip_protocols.add(protocol, handler, self._guards.current)
        return self._registered(f"IP protocol {protocol}", lambda: self._ip_protocols.remove(protocol))

    def screen(self, ethertype: int, screen: Screen | None) -> None:
        """From now on drivers that can screen *ethertype* so (`stack.core.screen`); None: not any more. Costs a system call per driver."""
        if screen is None:
            if self._screens.pop(ethertype, None) is None:
                return
        else:
            guard, pressed = self._guards.current, screen.pressed
            if guard is not None:
                # Drivers call it, and it is not theirs.
                screen = Screen(screen.main, screen.side, screen.sample_of, lambda: _run(guard, "screen pressed", pressed))
            self._screens[ethertype] = screen
        self._tell_drivers()

    def shed(self) -> int:
        """Frames that drivers have shed by screens, as far as samples tell."""
        return sum(map(_shed, self._interfaces.values()))

    def promiscuous(self, interface: Interface, name: str) -> Registration:
        """From now on hooks get what *interface* hears for other stations too. *name*: who asks. ModuleError when its driver cannot."""
        driver = promiscuous_driver(interface.driver)
        if driver is None:
            raise ModuleError(errno.EOPNOTSUPP, f"{interface.name} cannot receive frames for other stations, which {name} needs")
        if not interface.promiscuous:
            try:
                interface.ask("promiscuous", driver.promiscuous, True)
            except RAISED as error:
                raise refusal(f"{interface.name} does not become promiscuous", error) from error
        interface.promiscuous += 1

        def revoke() -> None:
            interface.promiscuous -= 1
            if not interface.promiscuous and interface.attached:
                interface.let_go("promiscuous", driver.promiscuous, False)

        return self._registered(f"promiscuity of {interface.name} for {name}", revoke)

    def own(self, interface: Interface, name: str) -> Registration:
        """From now on *name* alone takes what *interface* receives. ModuleError (EBUSY) while another does."""
        if interface.owner:
            raise ModuleError(errno.EBUSY, f"{interface.name} is in {interface.owner} already, and can be in one only")
        interface.owner = name

        def revoke() -> None:
            interface.owner = ""

        return self._registered(f"input of {interface.name} for {name}", revoke)

    def join(self, interface: Interface, group: bytes, name: str) -> Registration:
        """From now on *interface* hears *group*, also where its card must be told. *name*: who joins. ModuleError when that is refused."""
        return self._registered(f"group {group.hex(':')} of {interface.name} for {name}", join_group(interface, group))

    def add_hook(
        self,
        point: Point,
        hook: Hook,
        *,
        order: int = ORDER_TAP,
        name: str = "hook",
        everything: bool = False,
        counts: bool = False,
        runs: bool = False,
        interfaces: Iterable[str] | None = None,
    ) -> Registration:
        """Put *hook* at *point*; see `stack.core.hooks`. *everything*: drivers stop filtering by ethertype while it is there. *runs*: it
        carries runs of segments. *interfaces*: names of those that it is on; None: all."""
        on = None if interfaces is None else frozenset(interfaces)
        entry = HookEntry(point, order, hook, name, everything, counts, self._guards.current, runs, on)
        self._hooks.add(entry)
        self._tell_drivers()
        self._tell_watchers()

        def revoke() -> None:
            self._hooks.remove(entry)
            self._tell_drivers()
            self._tell_watchers()

        return self._registered(f"hook {name}", revoke)

    def add_ip_filter(self, wanted: IpFilter, name: str) -> Registration:
        """From now on *wanted* says which IP packets pass (`stack.core.ipfilters`)."""
        return self._registered(f"IP filter {name}", self.ip_filters.add(wanted, name))

    def on_hooks(self, watcher: Watcher) -> Registration:
        """Call *watcher* whenever a hook has come or gone, from now on: for who takes frames past the hooks. What is there: `hooks`."""
        entry = Watching(watcher, self._guards.current)
        self._watchers = [*self._watchers, entry]

        def revoke() -> None:
            self._watchers = [one for one in self._watchers if one is not entry]

        return self._registered("a watcher of hooks", revoke)

    def _tell_watchers(self) -> None:
        for entry in self._watchers:
            self._call(entry.guard, "watcher of hooks", entry.watcher)

    def _registered(self, what: str, revoke: Callable[[], None]) -> Registration:
        """Whose callback is running owns it."""
        guard = self._guards.current
        if guard is None:
            return Registration(what, revoke)
        owned = guard.registrations

        def gone() -> None:
            owned.pop(registration, None)
            revoke()

        registration = Registration(what, gone)
        owned[registration] = None
        return registration

    def _wants_everything(self, interface: Interface) -> bool:
        """Some module wants every frame that comes in there, or on an interface that stands on it."""
        name = interface.name
        return self._hooks.want_everything(name) or any(
            self._hooks.want_everything(one.name) for one in self.interfaces if name in all_below(one.name, self.driver_of)
        )

    def driver_of(self, name: str) -> Driver | None:
        """Of the interface of that name; None when there is none."""
        interface = self._interfaces.get(name)
        return None if interface is None else interface.driver

    def _tell_drivers(self) -> None:
        self._runs = any(entry.runs for entry in self._hooks.incoming)
        for interface in self.interfaces:
            self._call(interface.guard, "accept", self._tell_driver, interface)

    def _tell_driver(self, interface: Interface) -> None:
        """What is wanted of it, if that is news. No screens while a module wants every frame: what a protocol sheds, a bridge forwards."""
        driver = interface.driver
        if self._wants_everything(interface):
            wanted: frozenset[int] | None = None
            screens: dict[int, Screen] = {}
        else:
            wanted, screens = self._ethertypes.wanted(), dict(self._screens)
        runs = self._hooks.want_runs(interface.name)
        told = self._told.get(interface)
        if told is not None and told == (wanted, screens, runs):
            return
        if can_screen(driver) and (screens if told is None else screens != told[1]):
            driver.screen(screens)
        driver.accept(wanted)
        if carries_runs(driver) and (runs if told is None else runs != told[2]):
            driver.whole_runs(runs)
        self._told[interface] = wanted, screens, runs

    def statistics(self) -> StackStatistics:
        """Frozen copies of all counters."""
        return StackStatistics(
            self.name,
            MappingProxyType({interface.name: interface.statistics for interface in self.interfaces}),
            tuple(loaded.module.name for loaded in self._loaded),
            MappingProxyType(dict(self._ethertypes.handled)),
            self.failures(),
        )

    def failures(self) -> Mapping[str, int]:
        """Exceptions that left callbacks, by callback; those of modules that are not loaded any more included."""
        counted = Counters(self._failures)
        for loaded in self._loaded:
            for what, number in loaded.guard.failures.items():
                counted.count(what, number)
        return counted.copy_frozen()

    def ethertypes(self) -> list[tuple[int, int, str]]:
        """(ethertype, frames handed on, module or "") of those that are registered."""
        return _listed(self._ethertypes)

    def ip_protocols(self) -> list[tuple[int, int, str]]:
        """The same of IP protocols."""
        return _listed(self._ip_protocols)

    def hooks(self) -> list[tuple[HookEntry, str]]:
        """All hooks in the order in which a received, then a sent batch meets them, with the module that put them there."""
        return [(entry, _module(entry.guard)) for entry in (*self._hooks.incoming, *self._hooks.outgoing)]


def _run(guard: Guard, what: str, call: Callable[[], None]) -> None:
    guard.run(what, call)


def _shed(interface: Interface) -> int:
    driver = interface.driver
    if not can_screen(driver):
        return 0
    try:
        return interface.ask("shed", lambda: driver.shed)
    except RAISED:
        return 0


def _listed(table: Handlers) -> list[tuple[int, int, str]]:
    return [(number, table.handled[number], _module(table.guards[number])) for number in sorted(table.handlers)]


def _module(guard: Guard | None) -> str:
    return "" if guard is None else guard.module
