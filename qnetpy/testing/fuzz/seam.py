"""Fuzz targets at the seam of drivers: what the kernel, a file or a wire hands to a driver, and what a driver hands to the stack."""

from __future__ import annotations

import random

from resmgr.errors import BadMessage
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.hooks import Point
from stack.core.ifnet import Interface
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.frame import Frame
from stack.linux.unfinished import Restorer
from stack.testing.driver import OTHER_TYPE, TYPE, RecordingPort
from stack.wire import pcap, virtio_net
from stack.wire.capture import CaptureReader, read_records
from stack.wire.segmentation import SEGMENTS_MAX
from stack.wire.summary import summary

NOTES_SIZE = 6
"""In front of an unfinished frame: status, TCI and TPID, two bytes each; then the virtio-net header and the frame."""
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


def unfinished(data: bytes) -> None:
    """A frame with what the kernel says beside it; on a run of segments, every frame is of a length that can be."""
    if len(data) < NOTES_SIZE + virtio_net.SIZE:
        return
    status, tci, tpid = (int.from_bytes(data[at : at + 2], "little") for at in (0, 2, 4))
    memory = memoryview(bytearray(data))
    begin = NOTES_SIZE + virtio_net.SIZE
    restorer = Restorer(1500)
    frames = restorer.put_right(memory, begin, len(data) - begin, status, tci, tpid)
    assert len(frames) <= SEGMENTS_MAX
    assert frames or restorer.refused or restorer.truncated
    assert all(len(one) <= len(data) for one in frames)


def capture(data: bytes) -> None:
    """A file of frames in one piece and in many says the same; what was read can be written and read again."""
    try:
        found = read_records(data)
    except BadMessage:
        found = None
    reader = CaptureReader()
    pieces: list[pcap.Record] = []
    try:
        for at in range(0, len(data), 5):
            pieces += reader.feed(data[at : at + 5])
    except BadMessage:
        # A length may be refused before all of a file is there, or what is behind it.
        assert found is None
    else:
        assert found is None or pieces == found
    written = pcap.pack_header() + b"".join(pcap.pack_record(one.time, one.frame, one.length & 0xFFFFFFFF) for one in pieces)
    again = read_records(written)
    assert [one.frame for one in again] == [one.frame for one in pieces]


def seam(frames: list[bytes]) -> None:
    """Whatever a driver delivers goes through hooks, wrappers and the registry, and back out, without an exception."""
    dispatch = VirtualDispatch(1)
    hub = Hub(dispatch)
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    loaded = stack.load(hub.module(), f"mac={MACS[0]}", wrap=[("rate", "rx=1G,tx=1G"), ("fault", "dup=10%,corrupt=10%,seed=1")])
    stack.load("lo")
    interface = loaded.interface
    assert interface is not None
    other = hub.port("other", bytes.fromhex(MACS[1].replace(":", "")))
    other.start(RecordingPort())

    def tell(_: Interface, batch: list[Frame]) -> list[Frame]:
        for one in batch:
            assert summary(one).isprintable()
        return batch

    def answer(there: Interface, batch: list[Frame]) -> None:
        if there.name != "lo0":
            stack.output(there, batch)

    stack.add_hook(Point.IN, tell, name="tell", everything=True)
    for kind in (TYPE, OTHER_TYPE, 0x0800):
        stack.register_ethertype(kind, answer)
    registration = stack.promiscuous(interface, "seam")
    for start in range(0, len(frames), 16):
        batch: list[Frame] = [memoryview(one) for one in frames[start : start + 16]]
        interface.deliver(batch)
        for one in stack.interfaces:
            stack.output(one, batch)
        registration.revoke()
    dispatch.run_for(1.0)
    assert not stack.statistics().failures, stack.statistics().failures
    stack.close()
