"""What tests of writes do: a file that is open, a server that is slow, requests that wait."""

from __future__ import annotations

import os

from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.testing.fuserig import Answer, Rig
from resmgr.testing.memfs import Fault

FLUSH = formats.FLUSH_IN.pack
FSYNC = formats.FSYNC_IN.pack


def opened(rig: Rig, flags: int = os.O_RDWR) -> tuple[int, int]:
    if b"f" not in rig.fs.root.entries:
        rig.fs.add(b"f", b"")
    node = rig.walk(b"f")
    return node, rig.open(node, flags).fh


def slow(rig: Rig, seconds: float, times: int | None = None, code: int = 0) -> Fault:
    fault = Fault("write", delay=seconds, times=times, code=code)
    rig.fs.faults.append(fault)
    return fault


def events(rig: Rig) -> dict[str, int]:
    return rig.machine.statistics().events


def size_by_name(answer: Answer) -> int:
    """st_size in the answer to LOOKUP."""
    return int(formats.ENTRY_OUT.parse(answer.body)[7])


def later(rig: Rig, opcode: int, node: int, body: bytes) -> int:
    unique = rig.start(opcode, node, body)
    assert unique not in rig.answers, "did not wait"
    return unique


def write_in(fh: int, offset: int, data: bytes, how: int = 0, flags: int = 0) -> bytes:
    return formats.WRITE_IN.pack(fh, offset, len(data), how, 0, flags) + data


def wrote(rig: Rig, node: int, fh: int, offset: int, data: bytes) -> None:
    """A write that may have to wait for others."""
    unique = rig.start(Opcode.WRITE, node, write_in(fh, offset, data))
    while unique not in rig.answers:
        rig.run(0.001)
    assert rig.answers[unique].error == 0
