"""Numbers of Linux's packet(7), socket(7), netdevice(7) and <linux/if_packet.h> that Python does not name."""

from __future__ import annotations

import errno
import struct

SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_DROP_MEMBERSHIP = 2
PACKET_MR_MULTICAST = 0
PACKET_MR_PROMISC = 1
PACKET_MREQ = struct.Struct("iHH8s")
"""struct packet_mreq: interface index, kind, length of the address, address."""
PACKET_RX_RING = 5
PACKET_STATISTICS = 6
PACKET_COPY_THRESH = 7
"""A frame that is longer than a slot of the ring is queued whole besides, for recv."""
PACKET_AUXDATA = 8
PACKET_VERSION = 10
PACKET_RESERVE = 12
"""Bytes kept free in front of each frame of a ring."""
PACKET_VNET_HDR = 15
"""A virtio-net header in front of each frame."""
PACKET_IGNORE_OUTGOING = 23
"""Linux 4.20: our own transmissions do not come back."""
TPACKET_V2 = 1
TP_STATUS_USER = 1
TP_STATUS_COPY = 2
TP_STATUS_LOSING = 4
TP_STATUS_VLAN_VALID = 0x10
TP_STATUS_VLAN_TPID_VALID = 0x40
AUXDATA = struct.Struct("=III4xHH")
"""struct tpacket_auxdata: status, length, captured length, places, VLAN TCI and TPID."""

SIOCGSKNS = 0x894C
"""A descriptor of the network namespace that a socket belongs to."""

SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
ETH_P_ALL = 0x0003

LINK_ERRORS = frozenset((errno.ENETDOWN, errno.ENXIO, errno.ENODEV))
"""What a socket on an interface says when that is down or gone."""

ARPHRD_ETHER = 1
ARPHRD_LOOPBACK = 772

MSG_DONTWAIT = 0x40
