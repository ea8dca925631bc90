"""Streams that the daemon carries: real pipes here, a real program there, between them two kernels and a carrier that mixes streams."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from resmgr.access import Policy
from resmgr.channel import CHID_PROCMGR, PID_SYSTEM, Connection, Credentials, Kernel, Message, Nd, Pending, Remote
from resmgr.dispatch import Buffer
from resmgr.peer import Peer
from resmgr.procmgr import carried, message
from resmgr.procmgr.carried import CARRIED_PER_PROCESS_MAX, READ_PART, READS, WRITES, NotCarried
from resmgr.procmgr.manager import ProcessManager
from resmgr.procmgr.message import SPAWN_STDIN, SPAWN_STDOUT, WRITE_UNASKED, Spawn
from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.testing.memory import MemoryLink
from resmgr.users import Accounts

pytestmark = pytest.mark.host
THERE = Nd(2)
ME = Credentials(os.geteuid(), os.getegid(), tuple(os.getgroups()), os.getpid())


class Towards:
    """A network of one node."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def remote(self, nd: Nd) -> Remote | int:
        return self.peer


class World:
    """A node with a client in its daemon's kernel, and another on which programs run, which takes the client for its own."""

    def __init__(self, dispatch: TrioDispatch, seed: int) -> None:
        self.dispatch = dispatch
        self.here, self.there = Kernel(dispatch, "here"), Kernel(dispatch, "there")
        self.link = MemoryLink(dispatch, dispatch, random.Random(seed), 0.002)
        near = Peer(self.here, self.link.left, nd=THERE, node="there")
        self.far = Peer(self.there, self.link.right, credentials=ME)
        self.link.left.peer, self.link.right.peer = near, self.far
        self.near = near
        self.here.network = Towards(near)
        managers = [ProcessManager(kernel, dispatch, Policy(Accounts(dispatch.now))) for kernel in (self.here, self.there)]
        self.manager, self.other = managers
        self.carriers = self.manager.carriers
        self.client = self.here.connect(THERE, PID_SYSTEM, CHID_PROCMGR, ME)

    async def call(self, *parts: Buffer, reply_len: int = 0) -> tuple[int, bytes]:
        results: list[tuple[int, bytes]] = []

        def submit() -> None:
            self.client.submit(parts, reply_len, lambda status, data: results.append((status, bytes(data))))

        self.dispatch.enter(submit)
        await self.until(lambda: bool(results))
        return results[0]

    async def spawn(self, *arguments: str) -> int:
        spawn = Spawn(tuple(map(os.fsencode, arguments)), flags=SPAWN_STDIN | SPAWN_STDOUT)
        status, data = await self.call(message.pack_spawn(spawn), reply_len=message.SPAWNED.size)
        assert status >= 0
        return message.parse_spawned(data)[0]

    def carry(self, handle: int, stream: int, fd: int) -> Carry:
        return Carry(self, message.pack_carry(handle, stream, 0), (fd,))

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not condition():  # noqa: ASYNC110  # what is waited for happens outside this program
                await trio.sleep(0.002)


class Carry:
    """A CARRY under way, or answered."""

    def __init__(self, world: World, request: bytes, descriptors: Sequence[int], connection: Connection | None = None) -> None:
        self.world = world
        self.status: int | None = None
        self.pending: Pending | None = None
        client = world.client if connection is None else connection

        def submit() -> None:
            self.pending = client.submit_descriptors((request,), descriptors, 0, self._answered)

        world.dispatch.enter(submit)

    def _answered(self, status: int, data: Buffer, descriptors: Sequence[int]) -> None:
        self.status = status

    async def wait(self) -> int:
        await self.world.until(lambda: self.status is not None)
        assert self.status is not None
        return self.status

    def unblock(self) -> None:
        assert self.pending is not None
        self.world.dispatch.enter(self.pending.unblock)


@asynccontextmanager
async def world(seed: int = 1) -> AsyncIterator[World]:
    """Checks on the way out that no stream is carried any more and no descriptor left."""
    before = descriptors()
    async with open_dispatch() as dispatch:
        both = World(dispatch, seed)
        try:
            yield both
        finally:
            dispatch.enter(both.client.close)
            dispatch.enter(both.manager.close)
            dispatch.enter(both.other.close)
            assert len(both.carriers) == 0
    assert descriptors() == before


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Pipe:
    """A pipe whose ends are closed on the way out, if they are not before."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_reading()
        self.close_writing()

    def close_reading(self) -> None:
        if self.reading >= 0:
            os.close(self.reading)
            self.reading = -1

    def close_writing(self) -> None:
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1


async def fill(pipe: Pipe, data: bytes) -> None:
    """Write all of it, then end of file."""
    os.set_blocking(pipe.writing, False)
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(pipe.writing, view) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(pipe.writing)
    pipe.close_writing()


async def drained(fd: int) -> bytes:
    os.set_blocking(fd, False)
    parts: list[bytes] = []
    while True:
        try:
            data = os.read(fd, 1 << 20)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(fd)
            continue
        if not data:
            return b"".join(parts)
        parts.append(data)


@pytest.mark.parametrize("seed", range(3))
async def test_a_stream_there_and_back(seed: int) -> None:
    data = random.Random(seed).randbytes(6_000_000)
    async with world(seed) as both:
        handle = await both.spawn("cat")
        with Pipe() as stdin, Pipe() as stdout:
            inward, outward = both.carry(handle, 0, stdin.reading), both.carry(handle, 1, stdout.writing)
            stdin.close_reading()
            stdout.close_writing()
            result: list[bytes] = []

            async def read() -> None:
                result.append(await drained(stdout.reading))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await fill(stdin, data)
            # The end of the file has come through, and nobody else holds the pipe.
            assert result == [data]
            assert (await inward.wait(), await outward.wait()) == (0, 0)
        assert dict(both.carriers.figures())["streams_carried"] == 2


async def test_the_programs_that_read_slowly_or_not_hold_their_own_stream_only() -> None:
    async with world() as both:
        stopped, other = await both.spawn("sleep", "100"), await both.spawn("cat")
        with Pipe() as stdin, Pipe() as other_in, Pipe() as other_out:
            held = both.carry(stopped, 0, stdin.reading)
            os.set_blocking(stdin.writing, False)
            written = 0
            for _ in range(200):
                try:
                    written += os.write(stdin.writing, bytes(65536))
                except BlockingIOError:
                    await trio.sleep(0.002)
            # What is under way, what the pipe there takes, what the pipe here takes, and what the manager there has pulled.
            assert written <= WRITES * WRITE_UNASKED + 512 * 1024 + 65536 + 256 * 1024
            both.carry(other, 0, other_in.reading)
            both.carry(other, 1, other_out.writing)
            await fill(other_in, b"through")
            other_out.close_writing()
            assert await drained(other_out.reading) == b"through"
            assert held.status is None
            held.unblock()
            assert await held.wait() == -errno.EINTR


async def test_a_reader_that_does_not_read_stops_the_program() -> None:
    async with world() as both:
        handle = await both.spawn("sh", "-c", "yes; echo $? >&2")
        with Pipe() as stdout:
            outward = both.carry(handle, 1, stdout.writing)
            (outlet,) = (process.outlets[1] for process in both.other._processes.values())
            seen = -1
            while seen != outlet.carried:
                seen = outlet.carried
                await trio.sleep(0.1)
            assert 0 < seen <= READS * READ_PART + 65536
            stdout.close_writing()
            stdout.close_reading()
            assert await outward.wait() == -errno.EPIPE
        # Nobody reads, so `yes` got its signal.
        await both.until(lambda: 1 not in next(iter(both.other._processes.values())).outlets)


async def test_a_program_that_stops_reading_ends_the_writer() -> None:
    async with world() as both:
        handle = await both.spawn("true")
        with Pipe() as stdin:
            inward = both.carry(handle, 0, stdin.reading)
            stdin.close_reading()
            with pytest.raises(BrokenPipeError), trio.fail_after(10):
                await fill(stdin, bytes(10_000_000))
            assert await inward.wait() == -errno.EPIPE


async def test_nothing_is_read_once_the_client_wants_it_back() -> None:
    async with world() as both:
        handle = await both.spawn("cat")
        with Pipe() as stdin:
            inward = both.carry(handle, 0, stdin.reading)
            inward.unblock()
            assert await inward.wait() == -errno.EINTR
            os.write(stdin.writing, b"mine")
            await trio.sleep(0.01)
            assert os.read(stdin.reading, 10) == b"mine"


async def test_the_link_lost_ends_it_with_the_errno_of_that() -> None:
    async with world() as both:
        handle = await both.spawn("cat")
        with Pipe() as stdin, Pipe() as stdout:
            inward, outward = both.carry(handle, 0, stdin.reading), both.carry(handle, 1, stdout.writing)
            both.dispatch.enter(lambda: both.near.down(errno.EHOSTDOWN))
            both.dispatch.enter(lambda: both.far.down(errno.EHOSTDOWN))
            assert await outward.wait() == -errno.EHOSTDOWN
            # A connection is dead with its link; who says nothing on it has nothing to be told.
            os.write(stdin.writing, b"x")
            assert await inward.wait() == -errno.EBADF


async def test_the_client_that_closes_its_connection_leaves_nothing() -> None:
    async with world() as both:
        handle = await both.spawn("cat")
        with Pipe() as stdin, Pipe() as stdout:
            both.carry(handle, 0, stdin.reading)
            both.carry(handle, 1, stdout.writing)
            both.dispatch.enter(both.client.close)
            await both.until(lambda: len(both.carriers) == 0)


async def test_what_is_refused_for_a_while_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as both:
        handle = await both.spawn("cat")
        read, tries = both.other._table[message.Proc.READ], [0]

        def busy(request: Message, subtype: int, flags: int, handle: int) -> None:
            tries[0] += 1
            if tries[0] <= 3:
                request.error(errno.EAGAIN)
            else:
                read(request, subtype, flags, handle)

        monkeypatch.setitem(both.other._table, message.Proc.READ, busy)
        with Pipe() as stdin, Pipe() as stdout:
            both.carry(handle, 0, stdin.reading)
            both.carry(handle, 1, stdout.writing)
            stdout.close_writing()
            await fill(stdin, b"patience")
            assert await drained(stdout.reading) == b"patience"
        assert tries[0] > 3


async def test_what_is_not_carried_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "CARRIED_PER_PROCESS_MAX", 3)
    assert CARRIED_PER_PROCESS_MAX > 3
    async with world() as both:
        handle = await both.spawn("cat")
        null = os.open(os.devnull, os.O_RDWR)
        with Pipe() as pipe:
            good = message.pack_carry(handle, 0, 0)
            for request, given in (
                (good, (null,)),
                (good, (pipe.writing,)),
                (message.pack_carry(handle, 1, 0), (pipe.reading,)),
                (message.pack_carry(handle, 3, 0), (pipe.reading,)),
                (good, (pipe.reading, pipe.reading)),
                (good[:-1], (pipe.reading,)),
                (message.pack_read(handle, 1, 0, 10), (pipe.reading,)),
            ):
                assert await Carry(both, request, given).wait() == -errno.ENOTSUP
            # Another server's client: as it always was.
            elsewhere = both.here.connect(THERE, 4711, 1, ME)
            assert await Carry(both, good, (pipe.reading,), elsewhere).wait() == -errno.ENOTSUP
            for _ in range(3):
                assert both.carry(handle, 0, pipe.reading).status is None
            assert await both.carry(handle, 0, pipe.reading).wait() == -errno.ENOTSUP
        os.close(null)
        assert both.carriers.refusals == {
            NotCarried.BAD_MESSAGE: 4,
            NotCarried.NOT_A_PIPE: 3,
            NotCarried.TOO_MANY: 1,
            NotCarried.NOT_OPENED: 0,
        }


async def test_a_descriptor_that_somebody_makes_blocking_does_not_stop_the_node() -> None:
    async with world() as both:
        handle = await both.spawn("cat")
        with Pipe() as stdin:
            os.set_blocking(stdin.reading, False)
            inward = both.carry(handle, 0, stdin.reading)
            os.set_blocking(stdin.reading, True)
            os.write(stdin.writing, b"x")
            await trio.sleep(0.01)
            assert (await both.call(message.pack_signal(handle, 0)))[0] == 0
            inward.unblock()


async def test_a_carry_to_a_program_of_this_node_is_refused() -> None:
    async with world() as both:
        local = both.there.connect(Nd(0), PID_SYSTEM, CHID_PROCMGR, ME)
        with Pipe() as pipe:
            assert await Carry(both, message.pack_carry(1, 0, 0), (pipe.reading,), local).wait() == -errno.ENOTSUP
