"""`ipf` of a bridge: IP packets that it carries from one member to another pass the filters of the stack (`stack.core.ipfilters`).

As NetBSD: IN on the member that a frame came in on, OUT on each that it is to leave by. ARP and everything that is not IP passes. A frame
of an IP ethertype whose header does not parse, or does not fit the ethertype, is dropped, `bad_ip`; what a filter refuses, `ip_filtered`.
What is for us or from us is no business of the bridge's: it would be for an IP layer to show, and `stack.inet.ip` shows nothing.
"""

from __future__ import annotations

from stack.core.hooks import Point
from stack.core.ifnet import Interface
from stack.core.ipfilters import Packet
from stack.core.stack import Stack
from stack.core.statistics import Counters
from stack.frame import BadFrame, Frame
from stack.wire.ethernet import ETHERTYPE_IPV4, ETHERTYPE_IPV6, type_and_offset
from stack.wire.ip import parse_ip

VERSIONS = {ETHERTYPE_IPV4: 4, ETHERTYPE_IPV6: 6}


def passing(stack: Stack, interface: Interface, point: Point, frames: list[Frame], drops: Counters) -> list[Frame]:
    """Those of *frames* that may pass; in order."""
    packets: dict[int, Packet] = {}
    kept: list[Frame] = []
    for frame in frames:
        try:
            kind, network = type_and_offset(frame)
            version = VERSIONS.get(kind)
            if version is not None:
                header = parse_ip(memoryview(frame)[network:])
                if header.version != version:
                    raise BadFrame("IP version")
                packets[len(kept)] = Packet(frame, network, header)
        except BadFrame:
            drops.count("bad_ip")
            continue
        kept.append(frame)
    refused = set(packets) - set(stack.ip_filters.passing(interface, point, packets))
    if not refused:
        return kept
    drops.count("ip_filtered", len(refused))
    return [frame for place, frame in enumerate(kept) if place not in refused]
