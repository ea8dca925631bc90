"""The network manager: QNX's io-pkt stack, without any protocol of its own. This is what modules and programs see of it; the parts are

    stack.core.datapath     the way of a batch between drivers, hooks and protocols
    stack.core.modules      how modules come and go
    stack.core.interfaces   the interfaces that drivers bring, and who is told of them
    stack.core.wants        what drivers are told of what is wanted from them
    stack.core.isolation    whose callback runs, and what it cannot break

What a module puts into the stack is a `Registration`: it is revoked by whoever has it, or goes when the module goes.

A stack is an object; a process may have several. It runs on a `Dispatch` and does no I/O itself; all calls happen in dispatch context.

Unlike QNX: every module can be unloaded, under traffic. An exception in a module's callback ends that callback, not the manager: it is
counted, logged once per callback, and the stack goes on. (In QNX a fault in a driver kills io-pkt.)
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from resmgr.system import System
from stack.core.datapath import Datapath
from stack.core.errors import ModuleError
from stack.core.groups import join_group
from stack.core.hooks import ORDER_TAP, ORDER_VLAN, Hook, HookEntry, Point
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.interfaces import Interfaces
from stack.core.ipfilters import IpFilter, IpFilters
from stack.core.isolation import SLOW_DEFAULT, Guards
from stack.core.listeners import Listeners
from stack.core.loaded import Loaded
from stack.core.module import Kind, Loadable, Random
from stack.core.modules import Modules
from stack.core.preparation import Preparation
from stack.core.promiscuity import hear_everybody
from stack.core.registry import Handler, Registration, module_of
from stack.core.screen import Screen
from stack.core.statistics import Counters, StackStatistics
from stack.core.underway import P
from stack.core.vlans import Trunk
from stack.core.wants import Wants
from stack.crypto.registry import Crypto, standard_crypto

Listener = Callable[[InterfaceEvent, Interface], None]
Watcher = Callable[[], None]


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
        super().__init__(Guards(name, clock, slow_after))
        self.name = name
        self.system = system
        self.dispatch = system.dispatch
        self.kernel = system.kernel
        self.crypto = standard_crypto() if crypto is None else crypto
        self._own_crypto = crypto is None
        self.crypto.belong_to(self._guards, self.dispatch.call_soon)
        self.prefix = prefix
        self.workers = workers
        guards = self._guards
        self._who_runs = Registration("who runs", system.kernel.running.ask(lambda: guards.current))
        self._interfaces = Interfaces(self, self._guards)
        self._wants = Wants(self._guards, self._interfaces, self._hooks, self._ethertypes)
        self._modules = Modules(self, random, self._guards, self._interfaces, self._hooks, self._wants)
        self.restarter = self._modules.restarter
        self.ip_filters = IpFilters(self._guards)
        self._watchers: Listeners[()] = Listeners(self._guards, "watcher of hooks")
        self._trunks: dict[str, tuple[Trunk, HookEntry]] = {}

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
        return self._modules.load(module, options, kind, wrap)

    def load_prepared(self, made: Preparation) -> Loaded:
        """The rest of `load` after `stack.core.preparation.prepare`, which takes the longer part of it and may be called in another thread.
        *made* is the module's then, or closed."""
        return self._modules.load_prepared(made)

    def prepare_in_thread(self, work: Callable[[], P], done: Callable[[P | BaseException], None]) -> None:
        """Run *work*, which calls `prepare`, in a thread; then *done* with what it returned or raised. What is ready when the stack is
        closed is closed, and *done* has Misuse."""
        self._modules.under_way.begin(work, done)

    def discard(self, made: Preparation) -> None:
        """*made* will not be loaded. What its module raises is counted as the module's."""
        self._modules.discard(made)

    def unload(self, loaded: Loaded) -> None:
        """Detach a module and all that it put into the stack and on its dispatch. Synchronous; may be called from its own callbacks."""
        self._modules.unload(loaded)

    def close(self) -> None:
        """Unload everything, newest first, and end the crypto providers unless they were given. Idempotent."""
        self._modules.close()
        if self._own_crypto:
            self.crypto.close()
        self._who_runs.revoke()

    @property
    def loaded(self) -> tuple[Loaded, ...]:
        """In order of loading."""
        return tuple(self._modules.loaded)

    # Interfaces

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        return tuple(self._interfaces.by_name.values())

    def interface(self, name: str) -> Interface | None:
        return self._interfaces.by_name.get(name)

    def below(self, name: str) -> tuple[str, ...]:
        """Names of what the interface of that name stands on; nothing when there is none."""
        return self._interfaces.below(name)

    def on_interface(self, listener: Listener) -> Registration:
        """Tell *listener* of interfaces that come, go and change from now on. Those that are there: `interfaces`."""
        return self._guards.registered("an interface listener", self._interfaces.listeners.add(listener))

    def tell(self, event: InterfaceEvent, interface: Interface) -> None:
        """For interfaces: pass an event to the listeners."""
        self._interfaces.tell(event, interface)

    # Protocols and hooks

    def register_ethertype(self, ethertype: int, handler: Handler, *, vlans: bool = False) -> Registration:
        """From now on *handler* gets received frames of *ethertype*, as batches. Misuse when somebody has it already.

        Frames may be padded, and are valid until the handler returns. *vlans*: it gets those of VLANs that have no interface here, too,
        with their tags (`stack.wire.ethernet.payload_offset`); others do not (`stack.core.tags`).
        """
        self._ethertypes.add(ethertype, handler, self._guards.current, vlans)
        self._wants.tell_all()

        def revoke() -> None:
            self._ethertypes.remove(ethertype)
            self._wants.tell_all()
            self.screen(ethertype, None)

        return self._guards.registered(f"ethertype {ethertype:#06x}", revoke)

    def register_vlan(self, interface: str, vlan: int, handler: Handler, name: str) -> Registration:
        """From now on *handler* alone gets received frames of *vlan* (an 802.1Q id) of the interface of that name, with their tag; whether
        there is such an interface or not. *name*: whose it is. ModuleError (EEXIST) when somebody has that VLAN of it."""
        trunk, entry = self._trunks.get(interface) or self._new_trunk(interface)
        trunk.add(vlan, handler, name)
        if interface not in self._trunks:
            self._trunks[interface] = trunk, entry
            self._hook(entry, True)

        def revoke() -> None:
            trunk.remove(vlan)
            if not trunk:
                del self._trunks[interface]
                self._hook(entry, False)

        return self._guards.registered(f"VLAN {vlan} of {interface}", revoke)

    def _new_trunk(self, interface: str) -> tuple[Trunk, HookEntry]:
        trunk = Trunk(interface, self._guards)
        on = frozenset((interface,))
        return trunk, HookEntry(Point.IN, ORDER_VLAN, trunk.incoming, f"VLANs of {interface}", False, True, interfaces=on)

    def register_ip_protocol(self, protocol: int, handler: Handler) -> Registration:
        """From now on *handler* gets IP packets of *protocol* that are for this machine, whole, from the header to the payload's end.

        They come while a module for IP is loaded (`stack.inet.ip`). Misuse when somebody has it already.
        """
        self._ip_protocols.add(protocol, handler, self._guards.current)
        return self._guards.registered(f"IP protocol {protocol}", lambda: self._ip_protocols.remove(protocol))

    def screen(self, ethertype: int, screen: Screen | None) -> None:
        """From now on drivers that can screen *ethertype* so (`stack.core.screen`); None: not any more. Costs a system call per driver."""
        self._wants.screen(ethertype, screen)

    def shed(self) -> int:
        """Frames that drivers have shed by screens, as far as samples tell."""
        return self._wants.shed()

    def promiscuous(self, interface: Interface, name: str) -> Registration:
        """From now on hooks get what *interface* hears for other stations too. *name*: who asks. ModuleError when its driver cannot."""
        return self._guards.registered(f"promiscuity of {interface.name} for {name}", hear_everybody(interface, name))

    def own(self, interface: Interface, name: str) -> Registration:
        """From now on *name* alone takes what *interface* receives. ModuleError (EBUSY) while another does."""
        if interface.owner:
            raise ModuleError(errno.EBUSY, f"{interface.name} is in {interface.owner} already, and can be in one only")
        interface.owner = name

        def revoke() -> None:
            interface.owner = ""

        return self._guards.registered(f"input of {interface.name} for {name}", revoke)

    def carry(self, interface: Interface, engine: str) -> Registration:
        """From now on one forwarding engine, *engine* by kind, carries frames of *interface*. ModuleError (EBUSY) while another does."""
        if interface.engine:
            raise ModuleError(errno.EBUSY, f"{interface.name} is a port of another forwarding engine ({interface.engine}) already")
        interface.engine = engine

        def revoke() -> None:
            interface.engine = ""
            self._watchers.tell()

        return self._guards.registered(f"engine {engine} of {interface.name}", revoke)

    def join(self, interface: Interface, group: bytes, name: str) -> Registration:
        """From now on *interface* hears *group*, also where its card must be told. *name*: who joins. ModuleError when that is refused."""
        return self._guards.registered(f"group {group.hex(':')} of {interface.name} for {name}", join_group(interface, group))

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
        self._hook(entry, True)
        return self._guards.registered(f"hook {name}", lambda: self._hook(entry, False))

    def _hook(self, entry: HookEntry, there: bool) -> None:
        """It comes or goes."""
        if there:
            self._put_hook(entry)
        else:
            self._take_hook(entry)
        if entry.everything or entry.runs:
            self._wants.tell_all()
        self._watchers.tell()

    def add_ip_filter(self, wanted: IpFilter, name: str) -> Registration:
        """From now on *wanted* says which IP packets pass (`stack.core.ipfilters`)."""
        return self._guards.registered(f"IP filter {name}", self.ip_filters.add(wanted, name))

    def on_ip_filters(self, watcher: Watcher) -> Registration:
        """Call *watcher* whenever an IP filter has come or gone, from now on. What is there: `ip_filters.entries`."""
        return self._guards.registered("a watcher of IP filters", self.ip_filters.watchers.add(watcher))

    def on_hooks(self, watcher: Watcher) -> Registration:
        """Call *watcher* whenever a hook has come or gone, or an engine has let go of an interface, from now on: for who takes frames past
        the hooks. What is there: `hooks`."""
        return self._guards.registered("a watcher of hooks", self._watchers.add(watcher))

    # For people

    def statistics(self) -> StackStatistics:
        """Frozen copies of all counters."""
        return StackStatistics(
            self.name,
            MappingProxyType({interface.name: interface.statistics for interface in self.interfaces}),
            tuple(loaded.module.name for loaded in self._modules.loaded),
            MappingProxyType(dict(self._ethertypes.handled)),
            self.failures(),
        )

    def failures(self) -> Mapping[str, int]:
        """Exceptions that left callbacks, by callback; those of modules that are not loaded any more and the node's own included."""
        counted = Counters(self._guards.failures)
        for what, number in self.system.shield.failures.items():
            counted.count(what, number)
        for loaded in self._modules.loaded:
            for what, number in loaded.guard.failures.items():
                counted.count(what, number)
        return counted.copy_frozen()

    def ethertypes(self) -> list[tuple[int, int, str]]:
        """(ethertype, frames handed on, module or "") of those that are registered."""
        return self._ethertypes.listed()

    def ip_protocols(self) -> list[tuple[int, int, str]]:
        """The same of IP protocols."""
        return self._ip_protocols.listed()

    def hooks(self) -> list[tuple[HookEntry, str]]:
        """All hooks in the order in which a received, then a sent batch meets them, with the module that put them there."""
        return [(entry, module_of(entry.guard)) for entry in (*self._hooks.incoming, *self._hooks.outgoing)]
