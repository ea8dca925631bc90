"""What is known of files without extended attributes: what `ls -l` asks, and what of that its server hears."""

from __future__ import annotations

import errno

import pytest

from resmgr.channel import Message
from resmgr.fuse import formats
from resmgr.fuse.bare import WAIT_MAX
from resmgr.fuse.formats import Opcode
from resmgr.iomsg import XATTR_GET, XATTR_SET, XATTR_WHICH, Connect, Io
from resmgr.iorequest import ConnectRequest, parse_xattr
from resmgr.testing.fuserig import Rig

ACL, LABEL = b"system.posix_acl_access", b"security.selinux"
ATTRIB = 0x4


class Asked(Rig):
    """A tree of directories d0, d1, ... with files f0 to f3; f3 has an attribute. `asked` is what the server heard of attributes."""

    def __init__(self, *, leased: bool) -> None:
        super().__init__()
        if leased:
            self.fs.watch()
        self.asked: list[int] = []
        self.held: list[Message] | None = None
        self.having = b"f3\0"
        self.fs.manager._connect[int(Connect.XATTR)] = lambda message, client, request, base: self.one(message)
        self.fs.manager._io[int(Io.XATTR)] = lambda message, client, handle, flags: self.all(message)
        for number in range(8):
            for name in range(4):
                self.fs.add(b"d%d/f%d" % (number, name), b"x")

    def one(self, message: Message) -> None:
        self.asked.append(parse_xattr(message.data)[1].operation)
        message.error(errno.ENODATA)

    def all(self, message: Message) -> None:
        self.asked.append(parse_xattr(message.data)[1].operation)
        if self.held is not None:
            self.held.append(message)
        else:
            message.reply(0, self.having)

    def question(self, node: int, name: bytes = ACL) -> int:
        """A question that may wait; its unique."""
        return self.start(Opcode.GETXATTR, node, formats.GETXATTR_IN.pack(0) + name + b"\0")

    def get(self, node: int, name: bytes = ACL) -> int:
        return -self.answers[self.question(node, name)].error

    def heard(self) -> list[int]:
        heard, self.asked = self.asked, []
        return heard

    def open_directory(self, path: bytes) -> list[int]:
        """Open it and look its files up."""
        node = self.walk(path)
        self.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0))
        self.run(0.001)
        return [self.lookup(node, b"f%d" % number).nodeid for number in range(4)]

    def list_long(self, path: bytes) -> None:
        """As ls -l does."""
        for node in self.open_directory(path):
            assert self.get(node, LABEL) in (errno.ENODATA, errno.EOPNOTSUPP)
            assert self.get(node) == errno.ENODATA


@pytest.fixture
def rig() -> Asked:
    return Asked(leased=True)


def test_a_directory_that_is_known_here_and_whose_handle_was_let_go(rig: Asked) -> None:
    node = rig.walk(b"d1")
    fh = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).fh
    for offset in 0, 6:
        rig.ask(Opcode.READDIR, node, formats.READ_IN.pack(fh, offset, 4096, 0, 0, 0))
    rig.list_long(b"d0")
    rig.heard()
    found = rig.machine.nodes.get(node)
    assert found is not None
    rig.machine.tokens.set(found, b"token", 0.0)
    rig.machine.handles.drop_all(found)
    connect = rig.fs.manager._connect
    by_name = ConnectRequest(Connect.LOOKUP, 0, 0, b"d1")
    connect[int(Connect.REOPEN)] = lambda message, client, request, base: connect[int(Connect.LOOKUP)](message, client, by_name, None)
    rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0))
    assert rig.heard() == [XATTR_WHICH]
    assert rig.machine.drops["found_by_token"] == 1


def test_the_next_directory_is_asked_about_when_it_is_opened(rig: Asked) -> None:
    rig.list_long(b"d0")
    assert rig.heard() == [XATTR_GET, XATTR_GET, XATTR_WHICH, XATTR_GET, XATTR_GET], "of f0, of all, and of f3"

    nodes = rig.open_directory(b"d1")
    assert rig.heard() == [XATTR_WHICH]
    assert rig.get(nodes[0]) == errno.ENODATA
    assert rig.heard() == []
    rig.pid += 1
    rig.open_directory(b"d2")
    assert rig.heard() == [], "another thread did not ask"
    rig.pid -= 1
    rig.run(1)
    rig.open_directory(b"d3")
    assert rig.heard() == [], "nor one that asks no more"


def test_a_label_that_is_not_there_is_told_so_that_ls_asks_no_more(rig: Asked) -> None:
    rig.list_long(b"d0")
    nodes = rig.open_directory(b"d1")

    assert rig.get(nodes[0], LABEL) == errno.EOPNOTSUPP
    assert rig.get(nodes[0], b"security.other") == errno.ENODATA
    assert rig.get(nodes[3], LABEL) == errno.ENODATA, "what its server says"


def test_questions_wait_for_the_answer_about_all(rig: Asked) -> None:
    rig.list_long(b"d0")
    rig.held = []
    nodes = rig.open_directory(b"d1")
    rig.heard()
    waiting = [rig.question(node) for node in nodes]
    assert rig.heard() == []
    assert not set(waiting) & rig.answers.keys()

    rig.held.pop().reply(0, b"f3\0")
    rig.run(0.001)

    assert rig.heard() == [XATTR_GET]
    assert [rig.answers[unique].error for unique in waiting] == [-errno.ENODATA] * 4


@pytest.mark.parametrize("how", ["error", "no end", "no names"])
def test_where_that_cannot_be_said_each_is_asked_by_itself(rig: Asked, how: str) -> None:
    rig.list_long(b"d0")
    rig.held = []
    nodes = rig.open_directory(b"d1")
    rig.heard()
    waiting = rig.question(nodes[0])
    message = rig.held.pop()
    if how == "error":
        message.error(errno.EFBIG)
    else:
        # Names as long as that, of many directories, would fill memory.
        message.reply(0, b"f3" if how == "no end" else b"x" * 60000 + b"\0")
    rig.run(0.001)

    assert rig.answers[waiting].error == -errno.ENODATA
    for node in nodes[1:]:
        rig.get(node)
    assert rig.heard() == [XATTR_GET] * 4, "and it is not asked for again at once"
    rig.run(2)
    rig.held = None
    for node in nodes:
        rig.get(node)
    assert XATTR_WHICH in rig.heard()


def test_nobody_waits_long_for_the_answer_about_all(rig: Asked) -> None:
    rig.list_long(b"d0")
    rig.held = []
    nodes = rig.open_directory(b"d1")
    rig.heard()
    unique = rig.question(nodes[0])
    rig.run(WAIT_MAX + 0.01)
    assert rig.heard() == [XATTR_GET], "one of the entries may lie on a file system that does not answer"
    assert rig.answers[unique].error == -errno.ENODATA

    rig.held.pop().reply(0, b"f3\0")
    rig.run(0.001)
    assert rig.get(nodes[1]) == errno.ENODATA
    assert rig.heard() == [], "and when it comes it is believed"


def test_in_a_leased_directory_it_is_known_until_something_is_told(rig: Asked) -> None:
    rig.list_long(b"d0")
    nodes = rig.open_directory(b"d1")
    rig.run(20)
    rig.heard()
    assert rig.get(nodes[0]) == errno.ENODATA
    assert rig.heard() == []

    rig.having = b"f0\0f3\0"
    assert rig.fs.watching is not None
    rig.fs.watching.name(rig.fs.find(b"d1"), b"f0", ATTRIB)
    rig.run(0.01)

    assert rig.get(nodes[1]) == errno.ENODATA
    assert rig.heard() == []
    rig.get(nodes[0])
    assert rig.heard() == [XATTR_WHICH, XATTR_GET]


def test_of_a_file_with_another_name_elsewhere_nobody_tells(rig: Asked) -> None:
    rig.list_long(b"d0")
    rig.fs.find(b"d1/f0").nlink = 2
    nodes = rig.open_directory(b"d1")
    rig.run(20)
    rig.heard()

    assert rig.get(nodes[0]) == errno.ENODATA
    assert rig.heard() == [XATTR_GET]
    assert rig.get(nodes[1]) == errno.ENODATA
    assert rig.heard() == []


def test_without_a_lease_it_is_known_as_long_as_attributes_are() -> None:
    rig = Asked(leased=False)
    rig.list_long(b"d0")
    nodes = rig.open_directory(b"d0")
    rig.heard()
    rig.get(nodes[0])
    assert rig.heard() == []
    rig.run(1.5)

    rig.get(nodes[0])
    assert rig.heard() == [XATTR_GET]


def test_who_changes_and_asks_in_turn_has_not_all_of_it_asked_each_time(rig: Asked) -> None:
    rig.list_long(b"d0")
    nodes = rig.open_directory(b"d1")
    node = rig.walk(b"d1")
    rig.heard()
    for number in range(8):
        new = rig.ask(Opcode.MKDIR, node, formats.MKDIR_IN.pack(0o755, 0) + b"new%d\0" % number)
        rig.get(new.nodeid)
        rig.get(nodes[0])

    assert rig.heard() == [XATTR_GET] * 8, "of those that were made, and of no other"


def test_nor_who_sets_one_and_asks_for_it(rig: Asked) -> None:
    """Not even of a directory of which nothing is known yet."""
    nodes = rig.open_directory(b"d0")
    for node in nodes:
        rig.ask(Opcode.SETXATTR, node, formats.SETXATTR_IN.pack(1, 0) + b"user.a\0x")
        rig.get(node)
    assert rig.heard() == [XATTR_SET, XATTR_GET] * 4
    rig.run(2)
    for node in nodes:
        rig.get(node)
    assert XATTR_WHICH in rig.heard(), "later it is known again"
