"""Extended attributes, holes and copies: what the kernel is told, whatever a server says."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

import pytest

from resmgr.channel import Kernel, Message
from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import FuseOptions
from resmgr.fuse.servers import KernelResolver
from resmgr.iomsg import (
    LENGTH,
    OFFSET,
    STATUS_REDIRECT,
    XATTR_GET,
    XATTR_LIST,
    XATTR_OF_NAME,
    XATTR_SET,
    XATTR_WHICH,
    Attr,
    Connect,
    Entry,
    Io,
    Target,
)
from resmgr.iorequest import parse_connect, parse_xattr
from resmgr.testing.fuserig import Answer, Rig

GET, DATA, HOLE = Opcode.GETXATTR, 3, 4


def says(rig: Rig, kind: Connect | Io, answer: Callable[[Message], None]) -> None:
    """From now on the server answers that kind of message so."""
    if isinstance(kind, Connect):
        rig.fs.manager._connect[int(kind)] = lambda message, client, request, base: answer(message)
    else:
        rig.fs.manager._io[int(kind)] = lambda message, client, handle, flags: answer(message)


def getxattr(rig: Rig, node: int, name: bytes, room: int) -> Answer:
    return rig.ask(GET, node, formats.GETXATTR_IN.pack(room) + name + b"\0")


def test_a_server_without_extended_attributes_is_asked_once(rig: Rig) -> None:
    rig.fs.add(b"f", b"x")
    node = rig.walk(b"f")
    before = rig.fs.manager.counters["unsupported"]

    answers = [getxattr(rig, node, b"user.a", 64).error for _ in range(3)]

    assert answers == [-errno.EOPNOTSUPP] * 3
    assert rig.fs.manager.counters["unsupported"] == before + 1


def test_a_mount_without_them_has_the_kernel_never_ask_again() -> None:
    rig = Rig(FuseOptions(xattr=False))
    rig.fs.add(b"f", b"x")

    assert getxattr(rig, rig.walk(b"f"), b"user.a", 64).error == -errno.ENOSYS
    assert rig.fs.manager.counters["unsupported"] == 0


@pytest.mark.parametrize(("reply", "room"), [(b"12345", 4), (b"", 0), (b"123", 0), (LENGTH.pack(65537), 0), (LENGTH.pack(1) + b"x", 0)])
def test_lies_about_values_are_eio(rig: Rig, reply: bytes, room: int) -> None:
    rig.fs.add(b"f", b"x")
    node = rig.walk(b"f")
    says(rig, Connect.XATTR, lambda message: message.reply(0, reply))

    answer = getxattr(rig, node, b"user.a", room)

    assert answer.error == -errno.EIO


def test_value_and_length(rig: Rig) -> None:
    rig.fs.add(b"f", b"x")
    node = rig.walk(b"f")
    says(rig, Connect.XATTR, lambda message: message.reply(0, b"value" if parse_xattr(message.data)[1].size else LENGTH.pack(5)))

    assert getxattr(rig, node, b"user.a", 64).body == b"value"
    assert struct.unpack("=II", getxattr(rig, node, b"user.a", 0).body) == (5, 0)


@pytest.mark.parametrize("body", [b"", b"\0", bytes(8), bytes(8) + b"user.a", bytes(8) + b"user.a\0x"])
@pytest.mark.parametrize("opcode", [Opcode.GETXATTR, Opcode.SETXATTR, Opcode.REMOVEXATTR])
def test_requests_of_the_kernel_that_do_not_parse(rig: Rig, opcode: Opcode, body: bytes) -> None:
    if opcode == Opcode.REMOVEXATTR and body[8:]:
        body = b"x" + body
    assert rig.ask(opcode, 1, body).error == -errno.EIO


def test_the_capability_asked_for_before_a_write_asks_nobody(rig: Rig) -> None:
    rig.fs.add(b"f", b"x")
    node = rig.walk(b"f")
    says(rig, Connect.XATTR, lambda message: message.error(errno.EPERM))
    assert getxattr(rig, node, b"security.capability", 0).error == -errno.EPERM
    rig.open(node, os.O_WRONLY)

    assert getxattr(rig, node, b"security.capability", 0).error == -errno.ENODATA
    # Its value is asked of what is open, not of the name.
    assert getxattr(rig, node, b"security.capability", 64).error == -errno.EOPNOTSUPP


def test_acls_of_a_directory_are_asked_for_together(rig: Rig) -> None:
    for number in range(6):
        rig.fs.add(b"d/f%d" % number, b"x")
    directory = rig.walk(b"d")
    nodes = [rig.lookup(directory, b"f%d" % number).nodeid for number in range(6)]
    asked: list[int] = []

    def one(message: Message) -> None:
        asked.append(parse_xattr(message.data)[1].operation)
        message.error(errno.ENODATA)

    def all_of_it(message: Message) -> None:
        operation = parse_xattr(message.data)[1].operation
        asked.append(operation)
        message.reply(0, b"f4\0" if operation == XATTR_WHICH else b"")

    says(rig, Connect.XATTR, one)
    says(rig, Io.XATTR, all_of_it)
    for node in nodes:
        assert getxattr(rig, node, b"system.posix_acl_access", 0).error == -errno.ENODATA
    assert sorted(asked) == [1, 1, 1, XATTR_WHICH], "two of them, the directory, and the one that has some"

    asked.clear()
    rig.ask(Opcode.SETATTR, nodes[0], formats.SETATTR_IN.pack(formats.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o600, 0, 0, 0, 0))
    rig.fs.add(b"d/new", b"")
    rig.ask(Opcode.MKDIR, directory, formats.MKDIR_IN.pack(0o755, 0) + b"sub\0")
    getxattr(rig, nodes[1], b"system.posix_acl_access", 0)
    assert asked == [], "nothing happened to it"
    getxattr(rig, nodes[0], b"system.posix_acl_access", 0)
    assert asked == [1], "its rights were changed"

    rig.run(2)
    asked.clear()
    getxattr(rig, nodes[1], b"system.posix_acl_access", 0)
    assert asked == [1]


def test_what_was_asked_while_an_attribute_was_set_is_not_believed(rig: Rig) -> None:
    for name in (b"d/f", b"d/g", b"d/h"):
        rig.fs.add(name, b"x")
    directory = rig.walk(b"d")
    f, g, h = (rig.lookup(directory, name).nodeid for name in (b"f", b"g", b"h"))
    asked: list[int] = []
    held: list[Message] = []

    def one(message: Message) -> None:
        operation = parse_xattr(message.data)[1].operation
        asked.append(operation)
        if operation == XATTR_SET:
            held.append(message)
        else:
            message.error(errno.ENODATA)

    says(rig, Connect.XATTR, one)
    says(rig, Io.XATTR, lambda message: message.reply(0, b""))
    rig.start(Opcode.SETXATTR, f, formats.SETXATTR_IN.pack(1, 0) + b"user.a\0v")
    getxattr(rig, g, b"user.a", 0)
    getxattr(rig, h, b"user.a", 0)
    rig.run(0.01)
    held[0].reply(0)
    rig.run(0.01)
    asked.clear()
    getxattr(rig, f, b"user.a", 0)

    assert asked == [XATTR_GET]


def test_names_of_attributes_are_the_servers(rig: Rig) -> None:
    rig.fs.add(b"f", b"x")
    node = rig.walk(b"f")
    kinds: list[int] = []

    def listed(message: Message) -> None:
        kinds.append(parse_xattr(message.data)[1].operation)
        message.reply(0, b"user.a\0")

    says(rig, Connect.XATTR, listed)
    assert rig.ask(Opcode.LISTXATTR, node, formats.GETXATTR_IN.pack(64)).body == b"user.a\0"
    assert kinds == [XATTR_LIST]


def test_all_is_data_where_the_server_tells_nothing_of_holes(rig: Rig) -> None:
    rig.fs.add(b"f", b"12345678")
    node = rig.walk(b"f")
    fh = rig.open(node, os.O_RDWR).fh

    def seek(whence: int, offset: int) -> Answer:
        return rig.ask(Opcode.LSEEK, node, formats.LSEEK_IN.pack(fh, offset, whence))

    assert struct.unpack("=Q", seek(DATA, 3).body) == (3,)
    assert struct.unpack("=Q", seek(HOLE, 3).body) == (8,)
    assert seek(DATA, 8).error == -errno.ENXIO
    assert seek(0, 0).error == -errno.EINVAL
    rig.write(node, fh, 8, b"9")
    assert struct.unpack("=Q", seek(DATA, 8).body) == (8,)


@pytest.mark.parametrize("reply", [b"", OFFSET.pack(1), OFFSET.pack(1 << 63), OFFSET.pack(9) + b"x"])
def test_lies_about_offsets_are_eio(rig: Rig, reply: bytes) -> None:
    rig.fs.add(b"f", b"12345678")
    node = rig.walk(b"f")
    fh = rig.open(node).fh
    says(rig, Io.SEEK, lambda message: message.reply(0, reply))

    assert rig.ask(Opcode.LSEEK, node, formats.LSEEK_IN.pack(fh, 3, DATA)).error == -errno.EIO


def test_a_copy_that_the_server_cannot_do_is_left_to_the_kernel(rig: Rig) -> None:
    rig.fs.add(b"a", b"12345678")
    rig.fs.add(b"b", b"")
    a, b = rig.walk(b"a"), rig.walk(b"b")
    source, target = rig.open(a).fh, rig.open(b, os.O_WRONLY).fh

    def copy(fh: int, flags: int = 0) -> Answer:
        return rig.ask(Opcode.COPY_FILE_RANGE, a, formats.COPY_IN.pack(fh, 0, b, target, 0, 1 << 40, flags))

    assert copy(source).error == -errno.EXDEV
    assert copy(99).error == -errno.EBADF
    assert copy(source, 1).error == -errno.EINVAL
    says(rig, Io.COPY, lambda message: message.reply(5))
    assert struct.unpack("=II", copy(source).body) == (5, 0)
    says(rig, Io.COPY, lambda message: message.reply(0x7FFFFFFF))
    assert copy(source).error == -errno.EIO


@pytest.mark.parametrize("how", ["copy", "fallocate"])
def test_who_opened_meanwhile_reads_what_was_copied(rig: Rig, how: str) -> None:
    rig.fs.add(b"a", b"new")
    old = rig.fs.add(b"b", b"old")
    a, b = rig.walk(b"a"), rig.walk(b"b")
    source, target = rig.open(a).fh, rig.open(b, os.O_WRONLY).fh
    asked: list[Message] = []
    says(rig, Io.COPY if how == "copy" else Io.SPACE, asked.append)
    if how == "copy":
        change = rig.start(Opcode.COPY_FILE_RANGE, a, formats.COPY_IN.pack(source, 0, b, target, 0, 3, 0))
    else:
        change = rig.start(Opcode.FALLOCATE, b, formats.FALLOCATE_IN.pack(target, 0, 3, 0))
    rig.run(0.01)

    reader = rig.open(b).fh
    old.data[:] = b"new"
    asked[0].reply(3 if how == "copy" else 0)
    rig.run(0.01)

    assert rig.answers[change].error == 0
    assert bytes(rig.ask(Opcode.READ, b, formats.READ_IN.pack(reader, 0, 64, 0, 0, 0)).body) == b"new"


def test_a_file_without_a_name_is_refused_by_a_server_that_makes_none(rig: Rig) -> None:
    body = formats.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0) + b"/\0"
    assert rig.ask(Opcode.TMPFILE, 1, body).error == -errno.EOPNOTSUPP


class Namer:
    """The manager of a tree whose name `B` leads on to another server: what /net is."""

    def __init__(self, kernel: Kernel, target: Target) -> None:
        self.target = target
        self.asked: list[tuple[bytes, int, bytes]] = []
        """Path, operation and name of each question for attributes of a name."""
        self.knows = True
        self.channel = kernel.channel(self.receive)

    def receive(self, message: Message) -> None:
        attr = Attr(1, 0o040555, 2, 0, 0, 0, 0, 0, 4096, 0, 0, 0, 1)
        if message.data[:2] != struct.pack("!H", Io.CONNECT):
            message.reply(0, attr.pack())
            return
        request = parse_connect(message.data)
        asked = request.xattr
        if asked is not None and asked.flags & XATTR_OF_NAME:
            self.asked.append((request.path, asked.operation, asked.name))
            if not self.knows:
                message.error(errno.ENOSYS)
            elif asked.operation == XATTR_SET:
                message.error(errno.EPERM)
            else:
                message.reply(0, b"user.qnet.state\0" if asked.operation == XATTR_LIST else b"up")
        elif not request.path:
            message.reply(0, Entry(Target(0, self.channel.pid, self.channel.chid), 7, 0, attr).pack())
        else:
            message.reply(STATUS_REDIRECT, Entry(self.target, 0, 0, None, rest=request.path.partition(b"/")[2]).pack())


@pytest.fixture
def named() -> tuple[Rig, Namer]:
    rig = Rig()
    namer = Namer(rig.kernel, rig.fs.target)
    target = Target(0, namer.channel.pid, namer.channel.chid)
    rig.machine = type(rig.machine)(rig.dispatch, KernelResolver(rig.kernel), target, FuseOptions(), b"/net")
    rig.machine.on_output = rig._collect
    return rig, namer


def test_attributes_of_a_name_are_told_by_who_leads_on_from_it(named: tuple[Rig, Namer]) -> None:
    rig, namer = named
    rig.fs.add(b"d/f", b"x")
    node = rig.walk(b"B")
    inner = rig.walk(b"B/d")
    rig.messages()

    assert getxattr(rig, node, b"user.qnet.state", 64).body == b"up"
    assert rig.ask(Opcode.LISTXATTR, node, formats.GETXATTR_IN.pack(64)).body == b"user.qnet.state\0"
    setting = formats.SETXATTR_IN.pack(4, 0) + b"user.qnet.state\0down"
    assert rig.ask(Opcode.SETXATTR, node, setting).error == -errno.EPERM
    assert namer.asked == [(b"B", XATTR_GET, b"user.qnet.state"), (b"B", XATTR_LIST, b""), (b"B", XATTR_SET, b"user.qnet.state")]
    assert rig.messages() == {}, "the node behind the name heard nothing of it"
    # Others are the node's, and so is all of what is below.
    unsupported = rig.fs.manager.counters["unsupported"]
    getxattr(rig, node, b"user.mine", 64)
    assert len(namer.asked) == 3
    assert rig.fs.manager.counters["unsupported"] == unsupported + 1
    # What the node has none of the name may have all the same.
    assert getxattr(rig, node, b"user.qnet.state", 64).body == b"up"
    assert getxattr(rig, inner, b"user.qnet.state", 64).error == -errno.EOPNOTSUPP


def test_a_manager_that_tells_nothing_of_names_is_asked_once(named: tuple[Rig, Namer]) -> None:
    rig, namer = named
    namer.knows = False
    node = rig.walk(b"B")
    says(rig, Io.XATTR, lambda message: message.reply(0, b"value"))

    assert [getxattr(rig, node, b"user.qnet.state", 64).body for _ in range(3)] == [b"value"] * 3
    assert len(namer.asked) == 1
