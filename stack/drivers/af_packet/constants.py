"""Numbers of Linux's packet(7), socket(7), netdevice(7) and <linux/if_packet.h> that Python does not name."""

from __future__ import annotations

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
PACKET_VERSION = 10
PACKET_IGNORE_OUTGOING = 23
"""Linux 4.20: our own transmissions do not come back."""
TPACKET_V2 = 1
TP_STATUS_KERNEL = 0
TP_STATUS_USER = 1
TP_STATUS_LOSING = 4

SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
ETH_P_ALL = 0x0003

ARPHRD_ETHER = 1
ARPHRD_LOOPBACK = 772

MSG_DONTWAIT = 0x40
