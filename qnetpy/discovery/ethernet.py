"""Discovery on an Ethernet itself, for machines with no IP address: the runner of the solicitor, and a `Discovery` like the others.

    stack (carrier, group, frames out) <-> Solicitor -> hints        LinkMachine (frames of that type) -> heard

Nothing is sent on an interface without an Ethernet bearer, and nothing is said when it ends: links say goodbye for themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qnetpy.discovery.hint import TOKEN_LENGTH, Announcement, Hint, Interface, OnHint
from qnetpy.discovery.solicitor import LIFETIME, Solicitor
from qnetpy.link.constants import GROUP
from qnetpy.link.ethernet import header
from qnetpy.link.solicitation import Solicitations
from qnetpy.link.wire import Address
from resmgr.dispatch import Buffer, Dispatch, Timer
from resmgr.errors import Misuse
from stack.core.ifnet import Interface as StackInterface
from stack.core.ifnet import InterfaceEvent
from stack.core.module import Random
from stack.core.registry import Registration
from stack.core.stack import Stack


class EthernetDiscovery:
    """See the head of this file. *secret*: the cluster's. *boot_id*: ours now. *boot_at*: of the node at an address that we have a link to,
    b"" for nobody."""

    def __init__(
        self, stack: Stack, secret: bytes, boot_id: Callable[[], bytes], boot_at: Callable[[Address], bytes], random: Random
    ) -> None:
        self._stack = stack
        self._solicitor = Solicitor(Solicitations(secret), boot_id, random)
        self._boot_at = boot_at
        self._ethertype = 0
        self._looked_on: set[str] = set()
        self._dispatch: Dispatch | None = None
        self._on_hint: OnHint | None = None
        self._on_gone: OnHint | None = None
        self._registrations: list[Registration] = []
        self._timer: Timer | None = None
        self._timer_at = 0.0

    def facts(self) -> dict[str, int]:
        """Solicitations that were sent, stations of which some count now, and by reason those that led to nothing."""
        told = {"solicitations_sent": self._solicitor.sent, "soliciting": len(self._solicitor)}
        return told | {f"solicitation_{reason}": count for reason, count in sorted(self._solicitor.counters.items())}

    def sizes(self) -> dict[str, int]:
        """How much is remembered."""
        return self._solicitor.sizes()

    def start(self, dispatch: Dispatch, interfaces: Sequence[Interface], announce: Announcement, on_hint: OnHint, on_gone: OnHint) -> None:
        """`Discovery`: the first frames go within SPREAD seconds. `on_hint` comes each time that a station asks, within bounds."""
        if self._dispatch is not None:
            raise Misuse("discovery started twice")
        self._dispatch, self._on_hint, self._on_gone = dispatch, on_hint, on_gone
        self._ethertype = announce.ethertype
        self._registrations = [self._stack.join_group(GROUP), self._stack.on_interface(self._interface_event)]
        for interface in interfaces:
            self.interface_added(interface)

    def interface_added(self, interface: Interface) -> None:
        if self._dispatch is None:
            raise Misuse("discovery not started")
        own = self._stack.interface(interface.name)
        if interface.mac and own is not None:
            self._looked_on.add(interface.name)
            self._solicitor.interface(interface.name, interface.mac, own.up, self._dispatch.now())
        else:
            self._drop(interface.name)
        self._work()

    def interface_removed(self, name: str) -> None:
        self._drop(name)
        self._work()

    def seek(self) -> None:
        """Somebody asked for a node that is not known."""
        if self._dispatch is not None and self._on_hint is not None:
            self._solicitor.seek(self._dispatch.now())
            self._work()

    def heard(self, source: Address, frame: Buffer) -> None:
        """A SOLICITATION, without Ethernet header; not kept."""
        if self._dispatch is not None and self._on_hint is not None:
            self._solicitor.heard(source, frame, self._boot_at(source), self._dispatch.now())
            self._work()

    def close(self) -> None:
        self._on_hint = self._on_gone = None
        for registration in self._registrations:
            registration.revoke()
        self._registrations = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _interface_event(self, event: InterfaceEvent, interface: StackInterface) -> None:
        if interface.name in self._looked_on and event is not InterfaceEvent.DETACHED and self._dispatch is not None:
            self._solicitor.interface(interface.name, interface.mac, interface.up, self._dispatch.now())
            self._work()

    def _drop(self, name: str) -> None:
        self._looked_on.discard(name)
        self._solicitor.interface_gone(name)

    def _work(self) -> None:
        """Send and tell what there is, and see to the next time."""
        dispatch = self._dispatch
        if dispatch is None or self._on_hint is None:
            return
        for (name, station), frame in self._solicitor.transmit():
            interface = self._stack.interface(name)
            if interface is not None:
                self._stack.output(interface, [header(station, interface.mac, self._ethertype) + frame])
        fresh, gone = self._solicitor.hints()
        for tell, addresses in ((self._on_hint, fresh), (self._on_gone, gone)):
            for address in addresses:
                if tell is not None:
                    tell(self._hint(address, dispatch.now() + LIFETIME))
        when = self._solicitor.next_timeout()
        if when is not None and (self._timer is None or when < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_at = dispatch.call_at(when, self._timeout), when

    def _hint(self, address: Address, expiry: float) -> Hint:
        # It tells no token; its station stands in, at the other end than a configured peer's.
        interface, station = address
        return Hint(interface, station, self._ethertype, station.rjust(TOKEN_LENGTH, b"\0"), expiry)

    def _timeout(self) -> None:
        self._timer = None
        if self._dispatch is not None and self._on_hint is not None:
            self._solicitor.handle_timeout(self._dispatch.now())
            self._work()
