"""Numbers of Linux's udp(7), ip(7), ipv6(7) and socket(7) that Python does not name."""

from __future__ import annotations

SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104

IP_PKTINFO = 8
IP_MTU_DISCOVER = 10
IP_FREEBIND = 15
IPV6_MTU_DISCOVER = 23
IPV6_FREEBIND = 78
PMTUDISC_PROBE = 3
"""Set the DF bit, ignore what the kernel believes of the path: whoever sends finds out what passes."""

SO_MEMINFO = 55
SK_MEMINFO_DROPS = 8

SEGMENTS_MAX = 64
"""Of one send: what every kernel with UDP_SEGMENT takes. Receiving merges as many at most."""
HEADERS_IPV4 = 28
HEADERS_IPV6 = 48
"""IP and UDP headers."""
