"""The header that Linux puts in front of a frame to tell what of it is unfinished: `struct virtio_net_hdr` (<linux/virtio_net.h>,
Virtio 1.2 section 5.1.6), as packet sockets (PACKET_VNET_HDR) and tap devices (IFF_VNET_HDR) use it.

    0 flags, 1 gso type, 2 header length, 4 gso size, 6 checksum start, 8 checksum offset       10 bytes, the host's byte order

NEEDS_CSUM: from `csum_start` to the end the checksum is to be computed, and written at `csum_start + csum_offset`, where the sum of the
pseudo header stands. A gso type: the frame is a run of segments of `gso_size` bytes of payload. All places count from the first byte
of the frame.
"""

from __future__ import annotations

import struct

import attrs

from stack.frame import BadFrame, Frame

HEADER = struct.Struct("=BBHHHH")
SIZE = HEADER.size

NEEDS_CSUM = 1
"""The checksum is partial."""
DATA_VALID = 2
"""The checksum has been looked at, and is right."""

GSO_NONE = 0
GSO_TCPV4 = 1
GSO_UDP = 3
"""UDP in one datagram that IP would have to fragment. Nobody makes these since Linux 4.14."""
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
"""A run of UDP datagrams."""
GSO_ECN = 0x80
"""Besides a TCP type: CWR is set in the first segment only."""


@attrs.frozen
class VirtioNet:
    """A header. `gso_type` may have GSO_ECN set."""

    flags: int = 0
    gso_type: int = GSO_NONE
    header_length: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def pack(self) -> bytes:
        return HEADER.pack(self.flags, self.gso_type, self.header_length, self.gso_size, self.csum_start, self.csum_offset)

    @classmethod
    def parse(cls, data: Frame) -> VirtioNet:
        """From the first SIZE bytes. BadFrame when there are fewer."""
        if len(data) < SIZE:
            raise BadFrame("virtio-net header cut short")
        return cls(*HEADER.unpack_from(data))
