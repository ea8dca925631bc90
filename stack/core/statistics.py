"""Counters. Every frame that goes no further is counted under a name; programs get frozen copies.

`Drop` lists the reasons that the stack itself has. Drivers and wrappers add their own names; a name says who dropped and why.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

import attrs


class Drop(enum.StrEnum):
    """Reasons of the stack and of every driver."""

    TOO_SHORT = "too_short"
    """Received: no whole Ethernet header."""
    BAD_TAGS = "bad_tags"
    """Received: more VLAN tags than we follow, or cut within them."""
    OTHER_HOST = "other_host"
    """Received because the interface is promiscuous: for another station, and no module took it."""
    NO_VLAN = "no_vlan"
    """Received: of a VLAN that has no interface here."""
    NO_PROTOCOL = "no_protocol"
    """Received: nobody registered the ethertype."""
    HANDLER_FAILED = "handler_failed"
    """Received: the protocol module raised; the batch is lost for it."""
    HOOK_FAILED = "hook_failed"
    """A hook raised; its batch is dropped, since a filter that crashes must not let everything pass."""
    HOOK_DROPPED = "hook_dropped"
    """A hook returned fewer frames than it got."""
    LINK_DOWN = "link_down"
    """To send, but the interface has no carrier or is gone; or what was under way to it when that went."""
    SWITCHED_OFF = "switched_off"
    """Received while somebody had switched the interface off (`ifconfig IF down`)."""
    DRIVER_FAILED = "driver_failed"
    """To send, but the driver raised."""
    TOO_LONG = "too_long"
    """To send, but longer than the link's MTU."""


class Counters(dict[str, int]):
    """Name to number; a name that never happened is absent."""

    __slots__ = ()

    def count(self, name: str, number: int = 1) -> None:
        self[name] = self.get(name, 0) + number

    def copy_frozen(self) -> Mapping[str, int]:
        return MappingProxyType({str(name): number for name, number in self.items()})


@attrs.frozen
class InterfaceStatistics:
    """What `nicinfo` shows. `info` is the driver's own words about how it works (ring or not, buffers, overruns)."""

    name: str
    mac: bytes
    mtu: int
    up: bool
    rx_frames: int
    rx_bytes: int
    tx_frames: int
    tx_bytes: int
    drops: Mapping[str, int]
    info: Mapping[str, str | int]


@attrs.frozen
class StackStatistics:
    name: str
    interfaces: Mapping[str, InterfaceStatistics]
    modules: tuple[str, ...]
    ethertypes: Mapping[int, int]
    """Frames handed to the module that registered the ethertype."""
    failures: Mapping[str, int]
    """Exceptions that left callbacks of modules, by callback."""
