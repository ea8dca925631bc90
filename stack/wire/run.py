"""A run of segments in one piece: many TCP segments or UDP datagrams that Linux has not cut yet, or has merged (`stack.wire.segmentation`).

A `Run` is a frame like others to who looks at its first bytes: addresses, tags and ethertype are those of all its segments, and its bytes
are what one segment of that length would be, with a partial checksum. What it is on a wire, `segments` says. Batches may hold runs only
where somebody said that he carries them (`stack.core.runs`); everybody else gets segments.
"""

from __future__ import annotations

from stack.frame import Frame
from stack.wire import virtio_net
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE, TPIDS, unpack_type
from stack.wire.segmentation import Layout, cut, layout
from stack.wire.virtio_net import VirtioNet


class Run(bytearray):
    """The bytes of a run, and the virtio-net header that tells what is left to do. Its own memory: it may be kept."""

    __slots__ = ("header", "parts")

    header: VirtioNet
    parts: Layout

    @classmethod
    def make(cls, header: VirtioNet, frame: Frame) -> Run:
        """A copy of *frame*. BadFrame for one that could not be cut: a run can be, always."""
        parts = layout(header, frame)
        start, offset = (header.csum_start, header.csum_offset) if header.flags & virtio_net.NEEDS_CSUM else (0, 0)
        made = cls(frame)
        # What a sender said of the headers' length only has to be plausible; who is told next believes it.
        made.header = VirtioNet(header.flags, header.gso_type, parts.payload, header.gso_size, start, offset)
        made.parts = parts
        return made

    def copied(self) -> Run:
        """Another one with the same bytes."""
        made = type(self)(self)
        made.header, made.parts = self.header, self.parts
        return made

    @property
    def pieces(self) -> int:
        """Segments that it becomes."""
        return -((self.parts.payload - len(self)) // self.parts.size)

    def fits(self, mtu: int) -> bool:
        """Whether its segments are frames for a link of *mtu*. One 802.1Q tag does not count."""
        room = mtu + HEADER_SIZE + (TAG_SIZE if unpack_type(self)[0] in TPIDS else 0)
        return min(self.parts.longest, len(self)) <= room

    def segments(self) -> list[Frame]:
        """What it is on a wire."""
        return list(cut(memoryview(self), self.parts))
