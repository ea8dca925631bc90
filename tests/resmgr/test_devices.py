"""Reads, writes and NOTIFY that are answered when a device has changed, and its commands."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from resmgr.channel import Credentials, Kernel
from resmgr.errors import BadMessage
from resmgr.iofunc.devctl import Command, command_from, command_to
from resmgr.iofunc.node import Directory, Node, TreeManager
from resmgr.iofunc.waiting import PARKED_PER_CLIENT
from resmgr.iomsg import (
    NONBLOCK,
    NOTIFY,
    NOTIFY_ARM,
    NOTIFY_CHANGE,
    NOTIFY_POLL,
    POLL_HUP,
    POLL_IN,
    POLL_OUT,
    POLL_PRI,
    REQUEST,
    Io,
    Target,
)
from resmgr.iorequest import pack_devctl, pack_notify, pack_read, pack_write, parse_notify
from resmgr.testing.devices import CLEAR, GET_ROOM, SET_ROOM, SWAP, Pipe, Slow
from resmgr.testing.ioclient import Begun, IoClient, fails
from resmgr.testing.virtual import VirtualDispatch


class Device:
    """A pipe `p` and a slow device `s`, with one client that has one of them open."""

    def __init__(self, name: bytes = b"p") -> None:
        self.kernel = Kernel(VirtualDispatch(1), "test")
        self.pipe = Pipe(4)
        self.slow = Slow()
        self.root = Directory({b"p": self.pipe, b"s": self.slow})
        self.manager = TreeManager(self.kernel, self.root, name="test")
        self.client, self.target, self.ocb = self.another(name)

    def another(self, name: bytes = b"p") -> tuple[IoClient, Target, int]:
        client = IoClient(self.kernel, Credentials(0, 0), target=self.manager.target)
        entry = client.open(name, os.O_RDONLY if name == b"s" else os.O_RDWR)
        return client, entry.target, entry.ocb

    def read(self, size: int = 10, flags: int = 0) -> Begun:
        return self.client.begin(self.target, pack_read(self.ocb, 0, size, flags), size)

    def write(self, data: bytes, flags: int = 0) -> Begun:
        return self.client.begin(self.target, pack_write(self.ocb, 0, len(data), flags) + data)

    def notify(self, action: int, wanted: int) -> Begun:
        return self.client.begin(self.target, pack_notify(self.ocb, action, wanted))

    def devctl(self, what: Command, *values: int) -> tuple[object, ...]:
        _, back = self.client.send(self.target, (pack_devctl(self.ocb, what.number, what.pack(*values)),), what.size)
        return what.unpack(back)


@pytest.fixture
def device() -> Device:
    return Device()


def test_a_read_waits_for_data_and_a_write_for_room(device: Device) -> None:
    first, second = device.read(2), device.read(2)
    assert (first.status, second.status) == (None, None)
    assert device.write(b"abc").status == 3
    assert (first.data, second.data) == (b"ab", b"c")
    assert device.write(b"defghi").status == 4
    late = device.write(b"x")
    assert late.status is None
    assert device.read(1).data == b"d"
    assert late.status == 1
    assert device.read().data == b"efgx"
    assert device.manager.counters["parked"] == 3


def test_who_does_not_want_to_wait(device: Device) -> None:
    assert device.read(2, NONBLOCK).status == -errno.EAGAIN
    device.write(b"abcd")
    assert device.write(b"e", NONBLOCK).status == -errno.EAGAIN
    assert device.read(9, NONBLOCK).data == b"abcd"


@pytest.mark.parametrize("how", ["unblock", "close", "death"])
@pytest.mark.parametrize("what", ["read", "arm", "later"])
def test_the_end_of_waiting(how: str, what: str) -> None:
    device = Device(b"s" if what == "later" else b"p")
    begun = device.notify(NOTIFY_ARM, POLL_IN) if what == "arm" else device.read()
    assert begun.status is None
    if how == "unblock":
        begun.unblock()
        assert begun.status == -errno.EINTR
    elif how == "close":
        device.client.close(device.target, device.ocb)
        assert begun.status == -errno.EBADF
    else:
        device.client.close_all()
    assert device.slow.given_up == (what == "later")
    assert not device.manager.opened._parking._of_client
    assert not device.manager.opened._parking._of_handle
    device.pipe.data += b"x"
    device.pipe.notify()
    for later in device.slow.asked:
        later.answer(b"too late")


def test_an_answer_that_comes_later() -> None:
    device = Device(b"s")
    one, two = device.read(), device.read()
    device.slow.asked[1].answer(b"second")
    device.slow.asked[0].fail(errno.EIO)
    device.slow.asked[0].answer(b"again")
    assert (one.status, two.data) == (-errno.EIO, b"second")


def test_conditions(device: Device) -> None:
    wanted = POLL_IN | POLL_PRI
    assert device.notify(NOTIFY_POLL, wanted).status == 0
    assert device.notify(NOTIFY_POLL, wanted | POLL_OUT).status == POLL_OUT
    assert device.notify(NOTIFY_ARM, POLL_OUT).status == POLL_OUT
    armed = device.notify(NOTIFY_ARM, wanted)
    urgent = device.notify(NOTIFY_ARM, POLL_PRI)
    change = device.notify(NOTIFY_CHANGE, POLL_OUT)
    hangup = device.notify(NOTIFY_ARM, 0)
    assert [begun.status for begun in (armed, urgent, change, hangup)] == [None] * 4
    device.write(b"a")
    assert [begun.status for begun in (armed, urgent, change, hangup)] == [POLL_IN, None, POLL_OUT, None]
    device.pipe.urgent = True
    device.pipe.notify()
    assert urgent.status == POLL_PRI
    device.pipe.ended = True
    device.pipe.notify()
    assert hangup.status == POLL_HUP


def test_a_client_waits_for_so_much(device: Device) -> None:
    begun = [device.notify(NOTIFY_ARM, POLL_IN) for _ in range(PARKED_PER_CLIENT + 1)]
    assert begun[-1].status == -errno.EAGAIN
    assert device.manager.counters["parked_full"] == 1
    other, target, ocb = device.another()
    assert other.begin(target, pack_notify(ocb, NOTIFY_ARM, POLL_IN)).status is None
    device.pipe.data += b"x"
    device.pipe.notify()
    assert {one.status for one in begun[:-1]} == {POLL_IN}


class Broken(Node):
    mode = 0o100666

    def __init__(self) -> None:
        self.broken = False

    def read(self, state: object | None, offset: int, size: int) -> bytes | None:
        if self.broken:
            raise OSError(errno.ENXIO, "unplugged")
        return None


def test_a_device_that_breaks_while_somebody_waits(device: Device) -> None:
    broken = Broken()
    device.root.nodes[b"b"] = broken
    client, target, ocb = device.another(b"b")
    begun = client.begin(target, pack_read(ocb, 0, 1))
    broken.broken = True
    broken.notify()
    assert begun.status == -errno.ENXIO


def test_files_are_always_ready(device: Device) -> None:
    device.root.nodes[b"b"] = Broken()
    client, target, ocb = device.another(b"b")
    assert client.begin(target, pack_notify(ocb, NOTIFY_POLL, POLL_IN | POLL_OUT)).status == POLL_IN | POLL_OUT


def test_commands(device: Device) -> None:
    assert device.devctl(GET_ROOM) == (4,)
    assert device.devctl(SET_ROOM, 9) == ()
    assert device.pipe.room == 9
    assert device.devctl(SWAP, 1, 2) == (2, 1)
    device.write(b"abc")
    device.devctl(CLEAR)
    assert device.pipe.data == b""
    with fails(errno.EINVAL):
        device.devctl(SET_ROOM, 0)
    with fails(errno.ENOTTY):
        device.devctl(command_from("q", 9, "I"))
    with fails(errno.EINVAL):
        device.client.send(device.target, (pack_devctl(device.ocb, SWAP.number, b"x"),))


def test_numbers_are_those_of_c() -> None:
    assert GET_ROOM.number == 0x80047101
    assert SET_ROOM.number == 0x40047102
    assert SWAP.number == 0xC0047103
    assert CLEAR.number == 0x7104
    with pytest.raises(ValueError, match="letter"):
        command_from("qq", 1, "I")
    with pytest.raises(ValueError, match="bytes"):
        command_to("q", 1, "16384s")


def test_bad_notify_messages() -> None:
    whole = pack_notify(5, NOTIFY_ARM, POLL_IN)
    assert parse_notify(whole) == (NOTIFY_ARM, POLL_IN)
    for length in range(len(whole)):
        with pytest.raises(BadMessage):
            parse_notify(whole[:length])
    for action, wanted in ((3, 0), (0, 32)):
        with pytest.raises(BadMessage):
            parse_notify(REQUEST.pack(Io.NOTIFY, 0, 0, 5) + NOTIFY.pack(action, wanted))
    assert struct.calcsize(NOTIFY.format) == 8
