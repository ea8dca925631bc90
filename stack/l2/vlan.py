"""`vlan5`: one VLAN of another interface as an interface of its own (802.1Q), `io-pkt -d packet ifname=eth0 -d vlan vlan=5,vlanif=eth0`.

    parent, at the height of VLANs: frames with our id, without their tag ─> vlan5       all others: the parent's
    vlan5: frames ─> with our tag, id and priority ─> output of the parent

The stack looks at the parent's frames once for all of its VLANs (`stack.core.vlans`) and sorts out what is left of the tagged ones: a
priority tag (id 0) is taken off, frames of VLANs that nobody has are dropped (`stack.core.tags`). The tag is taken off and put on by a copy
of the frame. VLANs in VLANs (stacks of tags, all of 802.1Q's ethertype) are a VLAN interface whose parent is one.

The address is the parent's; the MTU too, since drivers take four bytes more for a tag; above another VLAN it is four less. QNX's
SIOCSETVLAN and SIOCSETVLANPRIO are the requests `vlan` and `vlanprio` (`stack.core.specific`).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping

import attrs
from attrs.validators import ge, le

from stack.core.driver import Port
from stack.core.fitting import accepted, fitting, for_station
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.layers import refuse_circle
from stack.core.module import Context, Kind, Module
from stack.core.registry import Registration
from stack.core.specific import specific_driver
from stack.core.statistics import Drop
from stack.frame import Frame
from stack.l2 import arguments as given
from stack.l2.aggregate import AgrDriver
from stack.l2.arguments import refused
from stack.wire.ethernet import MTU_MIN, TAG_SIZE
from stack.wire.vlan import ID_MAX, PRIORITY_MAX, tagged, untagged

log = logging.getLogger(__name__)


@attrs.frozen
class VlanOptions:
    """Options of `-d vlan`. `vlanif` is there already; `prio` is the 802.1p priority of what is sent; `mtu` 0: as the parent's."""

    vlan: int = attrs.field(validator=[ge(1), le(ID_MAX)])
    vlanif: str
    name: str = ""
    prio: int = attrs.field(default=0, validator=[ge(0), le(PRIORITY_MAX)])
    mtu: int = attrs.field(default=0, validator=[ge(0), le(65535)])


@attrs.frozen
class KeptVlan:
    """What a VLAN has instead of its options after a restart (`stack.core.module.Keeping`)."""

    vlan: int
    priority: int


class VlanDriver:
    """See the head of this file, `stack.core.driver.Driver`, `stack.core.promiscuity.Promiscuous`, `stack.core.groups.Grouping` and
    `stack.core.specific.Specific`."""

    def __init__(self, context: Context, options: VlanOptions) -> None:
        """ModuleError when there is no such parent, it carries no tags or is an aggregate's, or the VLAN has an interface already."""
        self._stack = context.stack
        self.name = options.name or f"vlan{options.vlan}"
        self.parent_name = options.vlanif
        kept = context.kept if isinstance(context.kept, KeptVlan) else KeptVlan(options.vlan, options.prio)
        self.vlan, self.priority = kept.vlan, kept.priority
        self._mtu_asked = options.mtu
        self.parent: Interface | None = given.interface(self._stack, options.vlanif)
        if self.parent.endpoints is not None:
            raise refused(f"{options.vlanif} carries no tags: its stations are IP endpoints")
        owner = self._stack.interface(self.parent.owner)
        if owner is not None and isinstance(specific_driver(owner.driver), AgrDriver):
            raise refused(
                f"{options.vlanif} is a port of {owner.name}, and all that it hears is that one's: make the VLAN on {owner.name}",
                errno.EBUSY,
            )
        refuse_circle(self.name, options.vlanif, self._stack.below)
        room = self._room()
        if options.mtu and not MTU_MIN <= options.mtu <= room:
            raise refused(f"the MTU of {self.name} can be {MTU_MIN} to {room}, as {options.vlanif} is")
        self.mac, self.mtu, self.up = self.parent.mac, options.mtu or room, self.parent.up
        self._port: Port | None = None
        self._accepted: frozenset[int] | None = frozenset()
        self._wants_all = False
        """Somebody asked for what is for other stations, whether the parent is there and does it or not."""
        self._promiscuity: Registration | None = None
        self._groups: frozenset[bytes] = frozenset()
        """As asked for; `_joined` are those of the parent."""
        self._joined: dict[bytes, Registration] = {}
        self._lacks = ""
        """What the parent that came back refused, in a sentence."""
        self._closed = False
        self._listener = self._stack.on_interface(self._interface_event)
        self._registration = self._register(self.vlan)

    def _room(self) -> int:
        parent = self._there()
        nested = isinstance(specific_driver(parent.driver), VlanDriver)
        return parent.mtu - (TAG_SIZE if nested else 0)

    def _register(self, vlan: int) -> Registration:
        return self._stack.register_vlan(self.parent_name, vlan, self._incoming, self.name)

    # Driver

    def start(self, port: Port) -> None:
        self._port = port

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        """The parent's driver is told by the stack too, where a tagged frame counts by the type behind its tag."""
        self._accepted = ethertypes

    def promiscuous(self, on: bool) -> None:
        if on and self.parent is not None and self._promiscuity is None:
            self._promiscuity = self._stack.promiscuous(self.parent, self.name)
        elif not on and self._promiscuity is not None:
            self._promiscuity.revoke()
            self._promiscuity = None
        self._wants_all = on

    def groups(self, wanted: frozenset[bytes]) -> None:
        """The parent must hear them. ModuleError when it cannot hear one; then it hears what it did before."""
        if self.parent is not None:
            joined: dict[bytes, Registration] = {}
            try:
                for group in wanted - self._joined.keys():
                    joined[group] = self._stack.join(self.parent, group, self.name)
            except BaseException:
                for registration in joined.values():
                    registration.revoke()
                raise
            self._joined |= joined
            for group in self._joined.keys() - wanted:
                self._joined.pop(group).revoke()
        self._groups = wanted

    def _ask_again(self) -> None:
        """The parent is another than before: what was asked of the old one is asked of it."""
        lacks = []
        try:
            self.promiscuous(self._wants_all)
        except OSError as error:
            lacks.append(str(error))
        for group in sorted(self._groups):
            try:
                self._joined[group] = self._stack.join(self._there(), group, self.name)
            except OSError as error:
                lacks.append(str(error))
        self._lacks = "; ".join(lacks)
        if lacks:
            log.warning("%s: %s is back and refuses what it did before: %s", self.name, self.parent_name, self._lacks)

    def _there(self) -> Interface:
        assert self.parent is not None
        return self.parent

    def _let_go(self) -> None:
        """Of the parent, which goes or which we leave; what is wanted of it stays known."""
        if self._promiscuity is not None:
            self._promiscuity.revoke()
            self._promiscuity = None
        for registration in self._joined.values():
            registration.revoke()
        self._joined.clear()

    def transmit(self, frames: list[Frame]) -> None:
        if self.parent is None or self._closed:
            self._count(Drop.LINK_DOWN, len(frames))
            return
        out: list[Frame] = [tagged(frame, self.vlan, self.priority) for frame in fitting(frames, self.mtu, self._count)]
        if out:
            self._stack.output(self.parent, out)

    def detach(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.up = False
        self._registration.revoke()
        self._listener.revoke()
        self._let_go()

    def keep(self) -> KeptVlan:
        """`stack.core.module.Keeping`."""
        return KeptVlan(self.vlan, self.priority)

    @property
    def below(self) -> tuple[str, ...]:
        """`stack.core.layers.Layered`."""
        return (self.parent_name,)

    def info(self) -> Mapping[str, str | int]:
        return {"driver": "vlan", "parent": self.parent_name, "vlan": self.vlan, "priority": self.priority}

    def get_specific(self) -> Mapping[str, object]:
        return {
            "vlan": self.vlan,
            "vlanif": self.parent_name,
            "vlanprio": self.priority,
            "present": self.parent is not None,
            "lacks": self._lacks,
        }

    def set_specific(self, command: str, arguments: Mapping[str, object]) -> None:
        if command == "vlanprio":
            self.priority = given.number(arguments, "value", 0, PRIORITY_MAX)
        elif command == "vlan":
            vlan = given.number(arguments, "value", 1, ID_MAX)
            if vlan != self.vlan:
                registration = self._register(vlan)
                self._registration.revoke()
                self.vlan, self._registration = vlan, registration
        else:
            raise refused(f"{self.name}: there is no request {command}; there are vlan, vlanprio")

    # Frames and events of the parent

    def _incoming(self, interface: Interface, frames: list[Frame]) -> None:
        if interface is self.parent:
            self._deliver(interface, [untagged(frame) for frame in frames])
        else:
            # It begins, and nobody is told of it yet.
            self._count(Drop.LINK_DOWN, len(frames))

    def _deliver(self, parent: Interface, frames: list[Frame]) -> None:
        if parent.promiscuous and not self._wants_all:
            # Somebody else wants what is for others; we do not.
            frames = for_station(frames, self.mac, self._count)
        wanted = accepted(frames, self._accepted)
        if wanted and not self.up:
            self._count(Drop.LINK_DOWN, len(wanted))
        elif wanted and self._port is not None:
            self._port.deliver(wanted)

    def _interface_event(self, event: InterfaceEvent, interface: Interface) -> None:
        if interface.name == self.parent_name and event is InterfaceEvent.ATTACHED:
            self.parent = interface
            self._ask_again()
        elif interface is self.parent and event is InterfaceEvent.DETACHED:
            self._let_go()
            self.parent, self._lacks = None, ""
        if self.parent is None:
            self._take_over(self.mac, self.mtu, False)
        elif interface is self.parent:
            self._take_over(interface.mac, min(self._mtu_asked or self._room(), self._room()), interface.up)

    def _take_over(self, mac: bytes, mtu: int, up: bool) -> None:
        if (mac, mtu, up) != (self.mac, self.mtu, self.up):
            self.mac, self.mtu, self.up = mac, mtu, up
            if self._port is not None:
                self._port.changed()

    def _count(self, reason: str, number: int = 1) -> None:
        if self._port is not None:
            self._port.count(reason, number)


def _attach(context: Context, options: VlanOptions) -> VlanDriver:
    return VlanDriver(context, options)


MODULE = Module("vlan", Kind.DRIVER, VlanOptions, _attach)
