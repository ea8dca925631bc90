"""IPv4 (RFC 791) and IPv6 (RFC 8200) headers, as far as somebody needs them who sorts received packets by protocol.

    IPv4   0 version 4, IHL   2 total length   6 flags, fragment offset   8 TTL   9 protocol   10 checksum   12 source   16 destination
    IPv6   0 version 6        4 payload length 6 next header   7 hop limit   8 source   24 destination   40 extension headers

A packet may be padded behind its end. IPv4 options are passed over; of IPv6, hop-by-hop options, routing, destination options,
authentication and fragment headers are, at most EXTENSIONS_MAX. A packet that is one fragment of several says so: only the first part would
begin with the protocol's own header.
"""

from __future__ import annotations

import struct

import attrs

from stack.frame import BadFrame, Frame

IPV4_SIZE = 20
IPV6_SIZE = 40
EXTENSIONS_MAX = 8
"""Extension headers that are followed: no chain of them must make us walk a packet."""

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_MORE_OR_OFFSET = 0x3FFF
"""IPv4: more fragments, and the offset."""
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
EXTENSION_HEADERS = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION))


@attrs.define
class IpHeader:
    """`protocol` is what `packet[payload:end]` holds; addresses are 4 or 16 bytes."""

    version: int
    source: bytes
    destination: bytes
    protocol: int
    payload: int
    end: int
    fragment: bool = False

    @property
    def to_group(self) -> bool:
        """Multicast, or IPv4's limited broadcast."""
        first = self.destination[0]
        return first == 0xFF if self.version == 6 else 224 <= first < 240 or self.destination == b"\xff" * 4


def parse_ip(packet: Frame) -> IpHeader:
    """Of whichever version *packet* is. BadFrame says which field is wrong."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        return _parse_ipv4(packet)
    if version == 6:
        return _parse_ipv6(packet)
    raise BadFrame("IP version" if packet else "empty IP packet")


def _parse_ipv4(packet: Frame) -> IpHeader:
    try:
        first, _, length, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(packet)
    except struct.error:
        raise BadFrame("IPv4 header cut short") from None
    header = (first & 15) * 4
    if header < IPV4_SIZE or length < header or length > len(packet):
        raise BadFrame("IPv4 lengths")
    # The sum of all words, in ones' complement, is zero: so is the number that they are, modulo 2^16 - 1.
    if int.from_bytes(packet[:header], "big") % 0xFFFF:
        raise BadFrame("IPv4 header checksum")
    return IpHeader(4, source, destination, protocol, header, length, bool(fragment & _MORE_OR_OFFSET))


def _parse_ipv6(packet: Frame) -> IpHeader:
    try:
        _, length, following, _, source, destination = _IPV6.unpack_from(packet)
    except struct.error:
        raise BadFrame("IPv6 header cut short") from None
    place, end, fragment = IPV6_SIZE, IPV6_SIZE + length, False
    if end > len(packet):
        raise BadFrame("IPv6 payload length")
    for _ in range(EXTENSIONS_MAX):
        if following not in EXTENSION_HEADERS or fragment:
            return IpHeader(6, source, destination, following, place, end, fragment)
        if place + 8 > end:
            raise BadFrame("IPv6 extension header cut short")
        if following == _FRAGMENT:
            size = 8
            fragment = bool(int.from_bytes(packet[place + 2 : place + 4], "big") & 0xFFF9)
        elif following == _AUTHENTICATION:
            size = (packet[place + 1] + 2) * 4
        else:
            size = (packet[place + 1] + 1) * 8
        following = packet[place]
        place += size
        if place > end:
            raise BadFrame("IPv6 extension header cut short")
    raise BadFrame("too many IPv6 extension headers")
