"""Names that lead to another server: what a redirect said is not believed for longer than it holds."""

from __future__ import annotations

import struct

import pytest

from resmgr.channel import Kernel, Message
from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.machine import Machine
from resmgr.iomsg import STATUS_REDIRECT, Attr, Connect, Entry, Io, Target
from resmgr.iorequest import parse_connect
from resmgr.testing.fuserig import Rig

CHID = 900


class Numbering:
    """A manager whose base handles are small numbers, given to whoever comes; each is a directory with one file."""

    def __init__(self, kernel: Kernel, directories: list[bytes]) -> None:
        self.directories = directories
        self.changed: list[bytes] = []
        """Directories whose file was asked for or changed by a message."""
        self.opened: list[bytes] = []
        self.channel = kernel.channel(self.receive, chid=CHID)
        self.target = Target(0, self.channel.pid, CHID)

    def receive(self, message: Message) -> None:
        if message.data[:2] != struct.pack("!H", Io.CONNECT):
            message.reply(0)
            return
        request = parse_connect(message.data)
        directory = self.directories[request.handle - 1]
        attr = Attr(len(directory), 0o100644, 1, 0, 0, 0, 0, 0, 4096, 0, 0, 0, 1)
        self.changed.append(directory)
        message.reply(0, attr.pack() if request.subtype == Connect.SETATTR else Entry(self.target, 0, 77, attr).pack())


class Names:
    """A manager that knows who has the name, and that directory's number."""

    def __init__(self, kernel: Kernel) -> None:
        self.there: Numbering | None = None
        self.wanted = b"first"
        self.asked = 0
        self.channel = kernel.channel(self.receive)

    def receive(self, message: Message) -> None:
        there = self.there
        assert there is not None
        self.asked += 1
        number = there.directories.index(self.wanted) + 1
        message.reply(STATUS_REDIRECT, Entry(there.target, number, 0, None, rest=b"file").pack())


@pytest.fixture
def names() -> tuple[Rig, Names]:
    rig = Rig()
    names = Names(rig.kernel)
    names.there = Numbering(rig.kernel, [b"first", b"second"])
    target = Target(0, names.channel.pid, names.channel.chid)
    rig.machine = Machine(rig.dispatch, rig.machine.servers._resolver, target)
    rig.machine.on_output = rig._collect
    return rig, names


MODE = formats.SETATTR_IN.pack(formats.FATTR_MODE, *(0,) * 9, 0o600, *(0,) * 4)


def test_the_handle_of_a_redirect_is_used_without_asking_again(names: tuple[Rig, Names]) -> None:
    rig, manager = names
    node = rig.lookup(1, b"port").nodeid
    assert rig.ask(Opcode.SETATTR, node, MODE).error == 0
    assert rig.open(node).error == 0
    assert manager.asked == 1


@pytest.mark.parametrize("how", ["server", "user"])
def test_a_number_that_is_another_objects_by_now_is_not_used(names: tuple[Rig, Names], how: str) -> None:
    """Its server was started anew, and numbers from 1 again; or another user comes, whom it gave nothing."""
    rig, manager = names
    node = rig.lookup(1, b"port").nodeid
    there = manager.there
    assert there is not None
    if how == "server":
        there.channel.destroy()
        there = manager.there = Numbering(rig.kernel, [b"second", b"first"])
    else:
        rig.uid = 4001
        there.directories.reverse()
    there.changed.clear()
    assert rig.ask(Opcode.SETATTR, node, MODE).error == 0
    assert rig.open(node).error == 0
    assert there.changed == [b"first"] * 2
