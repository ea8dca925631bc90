"""IP packets to who registered for their protocol: `io-pkt -d packet ifname=eth0 -p ip -p PROTOCOL`.

It takes the ethertypes of IPv4 and IPv6, checks headers, and hands packets that are for this machine, whole and without padding, to the
module that called `Stack.register_ip_protocol`. What is ours: groups, the interface's own addresses (which the kernel has there), and those
of the option `address`. It answers nobody, forwards nothing and does not reassemble: on a Linux interface the kernel's own stack gets the
same packets and does that. What goes no further is counted by the interface:

    ip_bad          a header that does not parse         ip_other_host    not for an address of ours
    ip_fragment     one of several                       ip_no_protocol   nobody registered for the protocol
"""

from __future__ import annotations

import ipaddress

import attrs

from stack.core.errors import OptionError
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.module import Context, Kind, Module
from stack.frame import BadFrame, Frame
from stack.wire.ethernet import ETHERTYPE_IPV4, ETHERTYPE_IPV6, payload_offset
from stack.wire.ip import parse_ip

_VERSIONS = {ETHERTYPE_IPV4: 4, ETHERTYPE_IPV6: 6}


@attrs.frozen
class IpOptions:
    address: tuple[str, ...] = ()
    """Addresses that are ours on every interface, besides those that the kernel has there."""


class Ip:
    """The module at work."""

    def __init__(self, context: Context, options: IpOptions) -> None:
        self._stack = context.stack
        self._everywhere = frozenset(map(_packed, options.address))
        self._ours: dict[int, frozenset[bytes]] = {}
        """By index of the interface."""
        self._listener = self._stack.on_interface(self._event)
        for interface in self._stack.interfaces:
            self._event(InterfaceEvent.ATTACHED, interface)
        self._registrations = [self._stack.register_ethertype(kind, self._receive) for kind in _VERSIONS]

    def _event(self, event: InterfaceEvent, interface: Interface) -> None:
        if event is InterfaceEvent.DETACHED:
            self._ours.pop(interface.index, None)
        else:
            self._ours[interface.index] = self._everywhere | {ipaddress.ip_address(one).packed for one in interface.addresses}

    def _receive(self, interface: Interface, frames: list[Frame]) -> None:
        ours = self._ours.get(interface.index, self._everywhere)
        drops = interface.drops
        batches: dict[int, list[Frame]] = {}
        for frame in frames:
            packet = memoryview(frame)[payload_offset(frame) :]
            try:
                header = parse_ip(packet)
            except BadFrame:
                drops.count("ip_bad")
                continue
            if header.destination not in ours and not header.to_group:
                drops.count("ip_other_host")
            elif header.fragment:
                drops.count("ip_fragment")
            else:
                batches.setdefault(header.protocol, []).append(packet[: header.end])
        for protocol, packets in batches.items():
            if not self._stack.received_ip(interface, protocol, packets):
                drops.count("ip_no_protocol", len(packets))

    def detach(self) -> None:
        for registration in self._registrations:
            registration.revoke()
        self._listener.revoke()


def _packed(text: str) -> bytes:
    try:
        return ipaddress.ip_address(text).packed
    except ValueError:
        raise OptionError(f"ip: address={text}: expected an IP address, like 10.0.0.1") from None


def _attach(context: Context, options: IpOptions) -> Ip:
    return Ip(context, options)


MODULE = Module("ip", Kind.PROTOCOL, IpOptions, _attach)
