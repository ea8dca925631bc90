"""Numbers and structures of <linux/if_xdp.h>."""

from __future__ import annotations

import struct

AF_XDP = 44
SOL_XDP = 283
XDP_MMAP_OFFSETS, XDP_RX_RING, XDP_TX_RING, XDP_UMEM_REG, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING = 1, 2, 3, 4, 5, 6
XDP_STATISTICS, XDP_OPTIONS = 7, 8
XDP_COPY, XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP, XDP_USE_SG = 1 << 1, 1 << 2, 1 << 3, 1 << 4
"""Flags of bind."""
OPTIONS_ZEROCOPY = 1
RING_NEED_WAKEUP = 1
PKT_CONTD = 1
"""Option of a descriptor: the frame goes on in the next one."""
PGOFF_RX, PGOFF_TX, PGOFF_FILL, PGOFF_COMPLETION = 0, 0x80000000, 0x100000000, 0x180000000
UMEM_REG = struct.Struct("=QQIIII")
"""Address, length, chunk size, headroom, flags, metadata."""
RING_OFFSETS = struct.Struct("=16Q")
"""For rx, tx, fill, completion each: producer, consumer, descriptors, flags."""
SOCKADDR = struct.Struct("=HHIII")
"""Family, flags, interface, queue, descriptor of the socket whose memory is shared."""
STATISTICS = struct.Struct("=6Q")
"""Dropped, invalid rx, invalid tx, rx ring full, fill ring empty, tx ring empty."""
