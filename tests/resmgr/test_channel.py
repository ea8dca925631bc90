"""The kernel: what test_peer does not already show for every transport. Messages between two ends in one kernel, and misuse."""

from __future__ import annotations

import errno
import gc
import weakref

import pytest

from resmgr.channel import (
    CHID_PATHMGR,
    ND_LOCAL,
    PID_SYSTEM,
    PULSE_COIDDEATH,
    PULSE_DISCONNECT,
    Credentials,
    Kernel,
    Message,
    Nd,
    Pulse,
)
from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from resmgr.testing.virtual import VirtualDispatch

USER = Credentials(1000, 1000)


def kernel() -> Kernel:
    return Kernel(VirtualDispatch(0), "here")


def test_answered_message_is_gone_without_garbage_collection() -> None:
    """Its data may be a megabyte, and the collector counts objects."""
    node = kernel()
    seen: list[weakref.ref[bytearray]] = []

    class Data(bytearray):
        """Can be referred to weakly."""

    def serve(message: Message) -> None:
        message.on_unblock = lambda: message.error(errno.EINTR)
        message.reply(0)

    channel = node.channel(serve)
    connection = node.connect(ND_LOCAL, channel.pid, channel.chid, USER)
    gc.disable()
    try:
        data = Data(b"much")
        seen.append(weakref.ref(data))
        connection.submit((data,), 0, lambda status, reply: None)
        del data
        assert seen[0]() is None
    finally:
        gc.enable()


def test_a_reply_goes_by_reference() -> None:
    node = kernel()
    data = bytearray(b"unchanged")
    channel = node.channel(lambda message: message.reply(3, data))
    connection = node.connect(ND_LOCAL, channel.pid, channel.chid, USER)
    results: list[tuple[int, Buffer]] = []
    assert connection.submit((b"a", b"b"), 64, lambda status, reply: results.append((status, reply))) is None
    assert results[0][0] == 3
    assert results[0][1] is data


def test_ids() -> None:
    node = kernel()
    first = node.channel(lambda message: None)
    first.destroy()
    assert node.channel(lambda message: None).chid != first.chid
    node.channel(lambda message: None, chid=CHID_PATHMGR)
    with pytest.raises(Misuse):
        node.channel(lambda message: None, chid=CHID_PATHMGR)
    assert node.find_channel(PID_SYSTEM, CHID_PATHMGR) is not None


def test_answering_twice_is_misuse() -> None:
    node = kernel()
    held: list[Message] = []
    channel = node.channel(held.append)
    node.connect(ND_LOCAL, channel.pid, channel.chid, USER).submit((b"",), 0, lambda status, reply: None)
    held[0].reply()
    with pytest.raises(Misuse):
        held[0].error(errno.EIO)
    with pytest.raises(Misuse):
        held[0].reply()


def test_no_network_no_process() -> None:
    node = kernel()
    results: list[int] = []
    for target in ((Nd(5), 1, 1), (ND_LOCAL, 99, 1), (ND_LOCAL, 1, 99)):
        connection = node.connect(*target, USER)
        connection.submit((b"",), 0, lambda status, reply: results.append(status))
        results.append(connection.pulse(1))
        connection.close()
    assert results == [-errno.ENOTSUP, -errno.ENOTSUP] + [-errno.EBADF] * 4


def test_a_closed_connection_takes_nothing() -> None:
    node = kernel()
    channel = node.channel(lambda message: message.reply())
    connection = node.connect(ND_LOCAL, channel.pid, channel.chid, USER)
    connection.close()
    connection.close()
    results: list[int] = []
    assert connection.submit((b"",), 0, lambda status, reply: results.append(status)) is None
    assert results == [-errno.EBADF]
    assert connection.pulse(1) == -errno.EBADF


def test_closing_during_a_send_tells_the_client_at_once_and_the_server_to_let_go() -> None:
    node = kernel()
    held: list[Message] = []
    pulses: list[Pulse] = []
    channel = node.channel(held.append, on_pulse=pulses.append)
    connection = node.connect(ND_LOCAL, channel.pid, channel.chid, USER)
    results: list[int] = []
    unblocked: list[str] = []
    connection.submit((b"12345",), 10, lambda status, reply: results.append(status))
    connection.submit((b"12345",), 10, lambda status, reply: results.append(status))
    held[0].on_unblock = lambda: unblocked.append("asked")
    connection.close()
    assert results == [-errno.EBADF, -errno.EBADF]
    assert unblocked == ["asked"]
    assert pulses == [], "the server still holds a message"
    read: list[int] = []
    held[0].read(0, 5, lambda status, data: read.append(status))
    assert read == [-errno.ESRCH]
    held[0].reply(0, b"late")
    assert [pulse.code for pulse in pulses] == [PULSE_DISCONNECT]
    held[1].reply(0, b"late")
    assert channel.held == {}
    assert results == [-errno.EBADF, -errno.EBADF]


def test_a_server_without_callback_may_still_answer_after_an_unblock() -> None:
    node = kernel()
    held: list[Message] = []
    channel = node.channel(held.append)
    connection = node.connect(ND_LOCAL, channel.pid, channel.chid, USER)
    results: list[int] = []
    pending = connection.submit((b"",), 10, lambda status, reply: results.append(status))
    assert pending is not None
    pending.unblock()
    pending.unblock()
    assert results == [-errno.EINTR]
    assert not held[0].client_waits
    assert not held[0].answered
    assert held[0].write(0, b"x") == -errno.ESRCH
    held[0].reply(0, b"late")
    assert held[0].answered
    assert channel.held == {}


def test_a_destroyed_channel_and_its_late_server() -> None:
    node = kernel()
    held: list[Message] = []
    deaths: list[int] = []
    channel = node.channel(held.append)
    connection = node.connect(ND_LOCAL, channel.pid, channel.chid, USER)
    connection.on_death = lambda dead: deaths.append(dead.coid)
    results: list[int] = []
    connection.submit((b"",), 10, lambda status, reply: results.append(status))
    channel.destroy()
    channel.destroy()
    connection.submit((b"",), 10, lambda status, reply: results.append(status))
    assert results == [-errno.ESRCH, -errno.EBADF]
    assert deaths == [connection.coid]
    held[0].reply(0, b"late")
    connection.close()


def test_descriptors_are_lent_as_they_are() -> None:
    node = kernel()
    seen: list[tuple[int, ...]] = []

    def serve(message: Message) -> None:
        seen.append(tuple(message.descriptors))
        message.reply(0, descriptors=(7,))

    channel = node.channel(serve)
    connection = node.connect(ND_LOCAL, channel.pid, channel.chid, USER)
    connection.submit_descriptors((b"",), (5, 6), 0, lambda status, reply, descriptors: seen.append(tuple(descriptors)))
    assert seen == [(5, 6), (7,)]


def test_deaths_of_servers_are_pulses_for_who_wants_them() -> None:
    node = kernel()
    server = node.channel(lambda message: message.reply())
    heard: list[tuple[int, int]] = []
    mine = node.channel(lambda message: None, on_pulse=lambda pulse: heard.append((pulse.code, pulse.value)), coid_death=True)
    first, closed, carried = (node.connect(ND_LOCAL, server.pid, server.chid, Credentials(0, 0)) for _ in range(3))
    carried.own = False
    order: list[int] = []
    first.on_death = lambda dead: order.append(len(heard))
    closed.close()
    server.destroy()
    assert heard == [(PULSE_COIDDEATH, first.coid)]
    assert order == [0], "the callback comes first"
    other = node.channel(lambda message: message.reply())
    node.connect(ND_LOCAL, other.pid, other.chid, Credentials(0, 0))
    mine.destroy()
    other.destroy()
    assert len(heard) == 1
