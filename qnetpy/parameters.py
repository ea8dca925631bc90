"""What a node's Qnet is told by whoever makes it. Not among the compiled modules: the compiler does not take attrs' own fields."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from qnetpy.link.machine import LinkTimers
from qnetpy.link.session import RekeyPolicy
from qnetpy.link.transport.config import TransportConfig
from qnetpy.qos import parse_choice
from stack.wire.ethernet import ETHERTYPE_EXPERIMENTAL


@attrs.frozen
class QnetSettings:
    """`interfaces` empty: all of the stack's. Those whose stations are IP endpoints are used in any case."""

    ethertype: int = attrs.field(default=ETHERTYPE_EXPERIMENTAL)
    interfaces: frozenset[str] = frozenset()
    solicit: bool = False
    """Look for nodes on Ethernets by our own frames, as `qnetpy.discovery.ethernet` does, and be found so."""
    suites: tuple[str, ...] = ()
    """Names in order of preference; empty: the handshake's own choice."""
    timers: LinkTimers = LinkTimers()
    transport: TransportConfig = TransportConfig()
    rekey: RekeyPolicy = RekeyPolicy()
    paths: str = attrs.field(default="loadbalance")
    """Which paths messages take, as `qnetpy.qos` writes it."""
    policies: Mapping[str, str] = attrs.field(factory=dict)
    """The same for single nodes, by name."""

    @ethertype.validator
    def _no_tag(self, attribute: object, value: int) -> None:
        if value & 0xFF in (0x00, 0xA8):
            raise ValueError(f"ethertype {value:#06x} could be taken for a VLAN tag; choose another")

    @paths.validator
    def _a_choice(self, attribute: object, value: str) -> None:
        parse_choice(value)

    @policies.validator
    def _choices(self, attribute: object, value: Mapping[str, str]) -> None:
        for text in value.values():
            parse_choice(text)
