"""A directory that its node has to itself, ready for removals that are told done at once."""

from __future__ import annotations

import os

from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import FuseOptions
from resmgr.testing.fuserig import Rig
from resmgr.testing.memfs import Fault

TRIP = 0.01
NAMES = [*(b"f%d" % number for number in range(9)), b"g0", b"g1"]
SLOW = Fault("unlink", delay=TRIP), Fault("remove", delay=TRIP)
CREATE = formats.CREATE_IN.pack(os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, 0, 0)


def prepared(options: FuseOptions | None = None) -> tuple[Rig, int]:
    """d with f0 to f8, leased, all looked up, the directory this node's alone since two more were removed; and its node. An unlink takes
    TRIP from now on."""
    rig = Rig(options)
    rig.fs.watch().spares = True
    rig.fs.delegate()
    for name in NAMES:
        rig.fs.add(b"d/" + name, name)
    node = rig.walk(b"d")
    rig.run(0.001)
    for name in NAMES:
        assert rig.lookup(node, name).error == 0
    for name in NAMES[-2:]:
        assert rig.ask(Opcode.UNLINK, node, name + b"\0").error == 0
        rig.run(0.001)
    rig.messages()
    rig.fs.faults += SLOW
    return rig, node


def unlink(rig: Rig, node: int, name: bytes) -> int:
    """Its unique."""
    return rig.start(Opcode.UNLINK, node, name + b"\0")


def behind(rig: Rig, node: int, name: bytes) -> bool:
    """Whether the removal is told done before the server has it."""
    before = rig.machine.removals.count
    done = unlink(rig, node, name) in rig.answers
    assert done == (rig.machine.removals.count > before)
    return done


def there(rig: Rig, name: bytes) -> bool:
    return name in rig.fs.find(b"d").entries
