"""A file of another node that has been open long enough to be opened again, and what programs do with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import Failure, FuseOptions
from resmgr.hostfs.objects import HostHandle
from resmgr.testing.fuserig import Answer
from tests.resmgr.fuse.far import AWAY, Far

Make = Callable[..., Far]
LOCK = formats.LK_IN.pack


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Make]:
    made: list[Far] = []
    (tmp_path / "root").mkdir()

    def make(failure: Failure = Failure.SOFT, **options: float) -> Far:
        rig = Far(tmp_path / "root", FuseOptions(failure=failure, **options))  # type: ignore[arg-type]  # numbers of the table
        made.append(rig)
        return rig

    yield make
    for rig in made:
        rig.close()


def opened(rig: Far, flags: int = os.O_RDWR, name: bytes = b"f", content: bytes = b"0123456789") -> tuple[int, int]:
    """A file that has been open for long enough; node and fh."""
    (rig.root / os.fsdecode(name)).write_bytes(content)
    node = rig.ask(Opcode.LOOKUP, 1, name + b"\0").nodeid
    fh = rig.ask(Opcode.OPEN, node, formats.OPEN_IN.pack(flags, 0)).fh
    rig.run(1)
    return node, fh


def read(rig: Far, node: int, fh: int, offset: int = 0, size: int = 10) -> Answer:
    return rig.ask(Opcode.READ, node, formats.READ_IN.pack(fh, offset, size, 0, 0, 0))


def write(rig: Far, node: int, fh: int, data: bytes) -> int:
    return rig.ask(Opcode.WRITE, node, formats.WRITE_IN.pack(fh, 0, len(data), 0, 0, 0) + data).error


def flush(rig: Far, node: int, fh: int, owner: int = 7) -> int:
    return rig.ask(Opcode.FLUSH, node, formats.FLUSH_IN.pack(fh, owner)).error


def fail(rig: Far, fault: str) -> None:
    rig.fail(fault)
    rig.run(AWAY + 0.1)


def open_there(rig: Far) -> int:
    """What clients have open at the server."""
    return sum(isinstance(one, HostHandle) and one.readable for each in rig.host.manager.table.clients.values() for one in each.handles)
