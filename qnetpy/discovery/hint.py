"""What discovery says and hears: a `Hint` of where a node may be, the `Announcement` of this node, and the bytes of both.

A hint is hearsay. Anyone on the link can announce anything, so a hint only ever causes one thing: a handshake with the hardware address
it names. It carries no node name: the instance name is a token drawn at random at each boot, so a listener learns that some Qnet node
exists behind a hardware address (which every frame shows anyway) and nothing that survives a restart.

Bytes (docs/protocol/discovery.md): DNS-SD (RFC 6763) instances `TOKEN._qnet._udp.local.`, TOKEN being 32 hexadecimal digits, with a TXT
record of `v=1`, `m=` twelve and `e=` four hexadecimal digits; without `m` the node has no Ethernet bearer on that interface. The port of
the SRV record is the UDP bearer's, 0 when there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from resmgr.dispatch import Buffer, Dispatch
from resmgr.errors import BadMessage
from stack.wire.ethernet import ETHERTYPE_MIN

SERVICE_TYPE = "_qnet._udp.local."
JOIN_TYPE = "_qnet-join._tcp.local."
"""Announced while an invitation is open. The port is where to join; the instance is a token of its own, so that nothing ties it to the
node."""
VERSION = 1
TOKEN_LENGTH = 16
TXT_MAX = 400
"""Longest TXT record read; ours has 31 bytes. Stops a stranger who makes us scan 64 KiB records."""
ADDRESSES_MAX = 8
"""Addresses kept per hint. Stops an announcement with hundreds of address records."""

_INSTANCE = re.compile(rf"([0-9a-f]{{{2 * TOKEN_LENGTH}}})\.{re.escape(SERVICE_TYPE)}\Z", re.IGNORECASE | re.ASCII)
_HEX = re.compile(rb"[0-9a-fA-F]+\Z")


@attrs.frozen
class Interface:
    """An interface of this machine on which nodes are looked for, and how this node is reached there."""

    name: str
    mac: bytes
    """b"": not by Ethernet."""
    port: int = 0
    """UDP port of the UDP bearer at the interface's addresses, 0: none."""


@attrs.frozen
class Announcement:
    """What this node says of itself on every interface; hardware address and port are the interface's."""

    token: bytes
    """TOKEN_LENGTH random bytes, drawn once per boot. Equal on all interfaces, so that peers see paths to one node."""
    ethertype: int


@attrs.frozen
class JoinOffer:
    """Where a machine can join: what is announced while an invitation is open, and nothing that helps to guess its code."""

    token: bytes
    """TOKEN_LENGTH random bytes, drawn anew for each time that invitations are open."""
    port: int


@attrs.frozen
class Place:
    """What a TXT record says: where to send frames. `mac` is b"" when there is no Ethernet bearer."""

    version: int
    mac: bytes
    ethertype: int


@attrs.frozen
class Hint:
    """A node may be here. Two hints are about the same node's boot when their tokens are equal (if the announcer was honest)."""

    interface: str
    """Our interface on which it was heard; "" for an endpoint that is reached through whatever leads there."""
    mac: bytes
    """b"": no Ethernet bearer."""
    ethertype: int
    token: bytes
    expiry: float
    """Monotonic seconds at which it lapses unless heard again; `inf` for configured peers."""
    port: int = 0
    addresses: tuple[str, ...] = ()
    """IP addresses as text, for the UDP bearer. Link-local ones belong to `interface`, or have %interface behind them."""

    @property
    def station(self) -> tuple[bytes | str, ...]:
        """One host on that interface, for caps per host."""
        return (self.mac,) if self.mac else self.addresses[:1]

    def says_the_same(self, other: Hint) -> bool:
        """Equal but for the expiry."""
        return attrs.evolve(self, expiry=other.expiry) == other


OnHint = Callable[[Hint], None]


class Discovery(Protocol):
    """A source of hints. All calls and both callbacks happen in dispatch context; nothing blocks except `close`, briefly.

    `on_hint` comes for a new hint and for one that changed (the same interface and token); the hint then stands until `on_gone` is called
    with it, perhaps with another expiry. Try again on your own schedule while it stands: repetitions of the same announcement are not
    reported.
    """

    def start(
        self, dispatch: Dispatch, interfaces: Sequence[Interface], announce: Announcement, on_hint: OnHint, on_gone: OnHint
    ) -> None: ...

    def interface_added(self, interface: Interface) -> None:
        """Also for an interface that is known already and whose hardware address changed."""
        ...

    def interface_removed(self, name: str) -> None:
        """Its hints are gone, told through `on_gone` before this returns."""
        ...

    def close(self) -> None:
        """Withdraw the announcement and stop. No callback comes afterwards. Idempotent."""
        ...


def instance_name(token: bytes) -> str:
    return f"{token.hex()}.{SERVICE_TYPE}"


def parse_instance(name: str) -> bytes:
    """The token of an instance name. BadMessage for anything that we would not have announced."""
    match = _INSTANCE.match(name)
    if match is None:
        raise BadMessage("instance name is not a token")
    return bytes.fromhex(match[1])


def pack_txt(place: Place) -> bytes:
    """TXT record data (RFC 6763 section 6): strings, each behind its length byte."""
    mac = (b"m=" + place.mac.hex().encode(),) if place.mac else ()
    strings = (b"v=%d" % place.version, *mac, b"e=%04x" % place.ethertype)
    return b"".join(bytes((len(string),)) + string for string in strings)


def parse_txt(data: Buffer) -> Place:
    """The reverse. Unknown keys are ignored and the first of equal keys counts (RFC 6763 section 6.4); BadMessage for the rest."""
    if len(data) > TXT_MAX:
        raise BadMessage("TXT record too long")
    data = bytes(data)
    values: dict[bytes, bytes] = {}
    offset = 0
    while offset < len(data):
        end = offset + 1 + data[offset]
        if end > len(data):
            raise BadMessage("TXT string cut short")
        key, equals, value = data[offset + 1 : end].partition(b"=")
        if equals:
            values.setdefault(key.lower(), value)
        offset = end
    version = values.get(b"v", b"")
    if not version.isdigit() or len(version) > 3:
        raise BadMessage("TXT version is not a number")
    if int(version) != VERSION:
        raise BadMessage("TXT version unknown")
    mac = _hexadecimal(values, b"m", 12) if b"m" in values else b""
    if mac and (mac[0] & 1 or not any(mac)):
        # A group address would make every node that hears this send its handshakes to all.
        raise BadMessage("TXT hardware address is not a single station's")
    ethertype = int.from_bytes(_hexadecimal(values, b"e", 4), "big")
    if ethertype < ETHERTYPE_MIN:
        raise BadMessage("TXT ethertype is a length")
    return Place(int(version), mac, ethertype)


def _hexadecimal(values: dict[bytes, bytes], key: bytes, digits: int) -> bytes:
    value = values.get(key, b"")
    if len(value) != digits or not _HEX.match(value):
        raise BadMessage(f"TXT {key.decode()} is not {digits} hexadecimal digits")
    return bytes.fromhex(value.decode())
