"""The node's own shield: a mistake in a manager, or in the handling of one link, costs who caused it and nobody else."""

from __future__ import annotations

import errno
import logging
import socket
from pathlib import Path

import pytest
import trio

from resmgr import message as wire
from resmgr.channel import ND_LOCAL, PID_SYSTEM, Channel, Connection, Credentials, Kernel, Message, Pulse
from resmgr.client import Client
from resmgr.errors import ResmgrError
from resmgr.ids import CHID_ATTACH, CHID_NAMES, CHID_NODES, CHID_PATHMGR, CHID_REPLICA
from resmgr.names.manager import _Holder
from resmgr.runner import open_dispatch
from resmgr.shield import PLACES_MAX, OwnShield
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from resmgr.transport.datagram import LENGTH

ME = Credentials(0, 0, (), 99)


class Mistake(RuntimeError):
    pass


def fail(*whatever: object) -> None:
    raise Mistake("made by the test")


@pytest.fixture
def system() -> System:
    return System(VirtualDispatch(1), "here")


def sent(system: System, channel: Channel) -> list[int]:
    """Status of a message to *channel*."""
    got: list[int] = []
    system.kernel.connect(ND_LOCAL, channel.pid, channel.chid, ME).submit((b"x",), 0, lambda status, reply: got.append(status))
    return got


@pytest.mark.mistakes
def test_timers_and_results_of_threads_that_raise_end_nothing(system: System) -> None:
    own, dispatch, went = system.kernel.own_dispatch, system.dispatch, list[str]()
    assert isinstance(dispatch, VirtualDispatch)

    own.call_at(dispatch.now() + 1, fail)
    own.call_soon(fail)
    own.at_turn_end(fail)
    own.call_from_thread(fail)
    own.call_blocking(lambda: 1, fail)
    own.call_blocking(fail, lambda result: went.append(type(result).__name__))
    own.call_at(dispatch.now() + 2, lambda: went.append("timer"))
    own.call_at(dispatch.now() + 1.5, fail).cancel()
    dispatch.run_for(3)

    assert went == ["Mistake", "timer"]
    assert {place.partition(":")[0]: count for place, count in system.shield.failures.items()} == {
        "timer": 1,
        "call": 1,
        "end of a turn": 1,
        "call of a thread": 1,
        "result of a thread": 1,
    }


@pytest.mark.mistakes
def test_a_lease_that_ends_with_a_mistake_does_not_end_the_node(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    names, holder = system.serve_names(), _Holder()
    monkeypatch.setattr(names, "_expire", fail)
    holder.lease = 1
    names._lease(5, holder)
    assert isinstance(system.dispatch, VirtualDispatch)
    system.dispatch.run_for(2)
    assert [place.partition(":")[0] for place in system.shield.failures] == ["timer"]


@pytest.mark.mistakes
async def test_a_descriptor_whose_callback_raises_is_watched_no_more() -> None:
    async with open_dispatch() as dispatch:
        system = System(dispatch, "here")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            system.kernel.own_dispatch.attach_fd(ours.fileno(), fail)
            theirs.send(b"x")
            with trio.fail_after(10):
                while not system.shield.failures:  # noqa: ASYNC110  # what is waited for happens in the dispatch
                    await trio.sleep(0.001)
            await trio.sleep(0.01)
            assert list(system.shield.failures.values()) == [1]
            dispatch.enter(system.close)


@pytest.mark.mistakes
def test_a_manager_that_raises_answers_eio_and_is_told_of_once(system: System, caplog: pytest.LogCaptureFixture) -> None:
    channel = system.kernel.channel(fail)

    with caplog.at_level(logging.ERROR, "resmgr.shield"):
        assert [sent(system, channel) for _ in range(3)] == [[-errno.EIO]] * 3

    ((place, count),) = system.shield.failures.items()
    assert count == 3
    assert "Mistake in fail (test_shield.py:" in place
    assert len(caplog.records) == 1
    assert "made by the test" in caplog.text


@pytest.mark.mistakes
def test_a_manager_that_answered_and_then_raised_has_answered(system: System) -> None:
    def answer(message: Message) -> None:
        message.reply(7)
        fail()

    assert sent(system, system.kernel.channel(answer)) == [7]
    assert system.shield.failures.total() == 1


@pytest.mark.mistakes
@pytest.mark.parametrize("chid", [CHID_PATHMGR, CHID_NODES, CHID_NAMES, CHID_REPLICA])
def test_every_manager_of_a_system_is_behind_it(system: System, chid: int) -> None:
    system.serve_names()
    channel = system.kernel.find_channel(PID_SYSTEM, chid)
    assert channel is not None
    channel.handler = fail

    assert sent(system, channel) == [-errno.EIO]


@pytest.mark.mistakes
def test_pulses_completions_and_deaths(system: System) -> None:
    kernel = system.kernel
    channel = kernel.channel(lambda message: message.reply(), on_pulse=fail)
    connections = [kernel.connect(ND_LOCAL, channel.pid, channel.chid, ME) for _ in range(3)]
    assert connections[0].pulse(1) == 0
    connections[0].submit((b"",), 0, fail)
    told: list[Connection] = []
    connections[0].on_death = fail
    for connection in connections[1:]:
        connection.on_death = told.append

    channel.destroy()

    assert told == connections[1:]
    assert system.shield.failures.total() == 3


def test_deaths_are_told_to_all_before_a_programs_own_mistake_leaves() -> None:
    kernel = Kernel(VirtualDispatch(1), "program")
    channel = kernel.channel(lambda message: message.reply())
    told: list[Connection] = []
    for number in range(3):
        connection = kernel.connect(ND_LOCAL, channel.pid, channel.chid, ME)
        connection.on_death = told.append if number else fail

    with pytest.raises(Mistake):
        channel.destroy()

    assert len(told) == 2


def test_a_programs_own_mistakes_are_its_own() -> None:
    kernel = Kernel(VirtualDispatch(1), "program")
    channel = kernel.channel(fail)

    with pytest.raises(Mistake):
        kernel.connect(ND_LOCAL, channel.pid, channel.chid, ME).submit((b"x",), 0, lambda status, reply: None)


def test_places_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    shield = OwnShield("here")
    with caplog.at_level(logging.CRITICAL, "resmgr.shield"):
        for number in range(2 * PLACES_MAX):
            shield.failure(f"part {number}", Mistake())
    assert len(shield.failures) == PLACES_MAX + 1
    assert shield.failures["other"] == PLACES_MAX


@pytest.mark.mistakes
@pytest.mark.host
async def test_a_mistake_in_the_handling_of_a_link_ends_that_link(tmp_path: Path) -> None:
    async with open_dispatch() as dispatch:
        system = System(dispatch, "here")
        server = system.listen(tmp_path / "socket")
        assert system.managers is not None
        system.managers.channel.handler = fail

        def attach() -> None:
            with Client(tmp_path / "socket", timeout=5) as client, pytest.raises(ResmgrError) as caught:
                client.connect(0, PID_SYSTEM, CHID_ATTACH).send(b"x", timeout=5)
            assert caught.value.errno == errno.EIO

        def strange() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
                link.settimeout(5)
                link.connect(str(tmp_path / "socket"))
                assert link.recv(65536)
                link.send(LENGTH.pack(wire.HEADER.size) + wire.HEADER.pack(99, 0, 0, 0, 0))
                assert link.recv(65536) == b""

        await trio.to_thread.run_sync(attach)
        for _, peer in server.peers():
            peer.down(errno.ESRCH)
        server.broker.handlers = lambda end: {99: fail}  # type: ignore[method-assign]  # a mistake of ours, made here
        await trio.to_thread.run_sync(strange)
        await trio.to_thread.run_sync(attach)
        assert server.statistics().closed["failed"] == 1
        assert system.shield.failures.total() == 3
        system.close()


def test_a_pulse_reaches_whoever_wants_it(system: System) -> None:
    got: list[Pulse] = []
    channel = system.kernel.channel(fail, on_pulse=got.append)
    assert system.kernel.connect(ND_LOCAL, channel.pid, channel.chid, ME).pulse(3, 4) == 0
    assert [(one.code, one.value) for one in got] == [(3, 4)]
