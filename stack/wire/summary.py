"""A frame in a line that people read: addresses, tags, what it carries as far as a few protocols go, length. Never raises."""

from __future__ import annotations

import ipaddress

from stack.frame import BadFrame, Frame
from stack.wire.ethernet import ETHERTYPE_EXPERIMENTAL, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, mac_text

ETHERTYPES = {
    ETHERTYPE_IPV4: "IPv4",
    0x0806: "ARP",
    ETHERTYPE_IPV6: "IPv6",
    0x88CC: "LLDP",
    0x8809: "slow protocol",
    ETHERTYPE_EXPERIMENTAL: "Qnet (experimental 1)",
}
PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 89: "OSPF", 132: "SCTP"}
FLAGS = "FSRPAUEC"
LLC_MAX = 1500


def summary(frame: Frame) -> str:
    """One printable line about *frame*."""
    try:
        header = Ethernet.parse(frame)
    except BadFrame as error:
        return f"bad frame of {len(frame)} bytes: {error}"
    tags = "".join(f" vlan {tci & 0xFFF}" + (f" p{tci >> 13}" if tci >> 13 else "") for _, tci in header.tags)
    kind = header.ethertype
    body = bytes(frame[header.size : header.size + 100])
    carried = ""
    if kind == ETHERTYPE_IPV4:
        carried = _ipv4(body)
    elif kind == ETHERTYPE_IPV6:
        carried = _ipv6(body)
    elif kind == 0x0806:
        carried = _arp(body)
    name = f"LLC {body[:3].hex()}" if kind <= LLC_MAX else ETHERTYPES.get(kind, f"{kind:#06x}")
    return f"{mac_text(header.source)} > {mac_text(header.destination)}{tags} {carried or name} {len(frame)} bytes"


def _ipv4(body: bytes) -> str:
    if len(body) < 20 or body[0] >> 4 != 4:
        return ""
    size = (body[0] & 15) * 4
    fragment = int.from_bytes(body[6:8], "big") & 0x1FFF
    source, destination = str(ipaddress.IPv4Address(body[12:16])), str(ipaddress.IPv4Address(body[16:20]))
    return _transport("IPv4", source, destination, body[9], b"" if fragment else body[size:])


def _ipv6(body: bytes) -> str:
    if len(body) < 40 or body[0] >> 4 != 6:
        return ""
    source, destination = str(ipaddress.IPv6Address(body[8:24])), str(ipaddress.IPv6Address(body[24:40]))
    return _transport("IPv6", source, destination, body[6], body[40:])


def _transport(version: str, source: str, destination: str, protocol: int, data: bytes) -> str:
    name = PROTOCOLS.get(protocol, f"protocol {protocol}")
    if protocol not in (6, 17) or len(data) < 4:
        return f"{version} {source} > {destination} {name}"
    ports = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")
    flags = ""
    if protocol == 6 and len(data) >= 14:
        flags = " " + "".join(letter for place, letter in enumerate(FLAGS) if data[13] >> place & 1)
    return f"{version} {source}.{ports[0]} > {destination}.{ports[1]} {name}{flags}"


def _arp(body: bytes) -> str:
    if len(body) < 28 or body[:6] != b"\0\1\x08\0\6\4":
        return ""
    sender, target = ipaddress.IPv4Address(body[14:18]), ipaddress.IPv4Address(body[24:28])
    if int.from_bytes(body[6:8], "big") == 1:
        return f"ARP who has {target}, tell {sender}"
    return f"ARP {sender} is at {mac_text(body[8:14])}"
