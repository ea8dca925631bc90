"""The Trio face of message passing: `await send(...)`, `async for message in ReceiveChannel(...)`.

For code inside a daemon and, with `open_process`, for a Trio program that joins the node over its local socket. These are the edges where a
person's code awaits; between them messages are records and plain calls (see `resmgr.channel`).

Cancellation and deadlines are unblocks, as in QNX: the server is asked to let go and the task waits until it has. If the server answers
EINTR the task is cancelled (or gets ETIMEDOUT); if it answers something else, that answer came first and counts. A server that ignores the
unblock keeps its client waiting; only the end of the server, of its node or of the link frees it then.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import NamedTuple, NoReturn

import trio

from resmgr import message as wire
from resmgr.channel import (
    FIRST_PART_DEFAULT,
    ND_LOCAL,
    Connection,
    Credentials,
    Descriptors,
    Kernel,
    Message,
    Nd,
    Pending,
    Pulse,
)
from resmgr.direct import DirectLinks
from resmgr.directproto import BROKERS
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError
from resmgr.peer import Peer
from resmgr.realtime import Wanted
from resmgr.runner import SPIN_DEFAULT, TrioDispatch, open_dispatch
from resmgr.serving import Limits
from resmgr.transport.carrier import UnixCarrier
from resmgr.waiting import Waiting

_working_at: ContextVar[int | None] = ContextVar("working_at", default=None)
"""Priority of the client for whom this task works."""


class Reply(NamedTuple):
    """A server's answer: status (>= 0), data, and descriptors, which are the caller's to close."""

    status: int
    data: bytes
    descriptors: tuple[int, ...] = ()


class _Waiting:
    """One task in `send`."""

    __slots__ = ("cancel", "data", "descriptors", "pending", "status", "task", "timed_out", "wanted")

    def __init__(self) -> None:
        self.wanted = Wanted()
        self.status = 0
        self.data = b""
        self.descriptors: tuple[int, ...] = ()
        self.timed_out = False
        self.task: trio.lowlevel.Task | None = None
        self.pending: Pending | None = None
        self.cancel: Callable[[], NoReturn] | None = None

    def unblock(self) -> None:
        if self.pending is not None:
            self.pending.unblock()

    def expire(self) -> None:
        self.timed_out = True
        self.unblock()


@trio.lowlevel.enable_ki_protection
async def send(
    connection: Connection,
    parts: Sequence[Buffer] = (b"",),
    reply_len: int = 0,
    *,
    deadline: float | None = None,
    priority: int | None = None,
    descriptors: Descriptors = (),
) -> Reply:
    """Send and wait for the answer (MsgSend). Raises ResmgrError with the errno of a failure.

    *priority*: None is that of the connection if it was given one, or else that of the client for whom this task works (the message that
    it received last), or else PRIORITY_DEFAULT. *deadline*: monotonic seconds, as `dispatch.now()`. The parts are borrowed until this
    returns. Other tasks run meanwhile, if there are any that can; a task that is alone gets an answer that comes soon without a change
    of tasks (`TrioDispatch.drive`).
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    dispatch = connection.kernel.dispatch
    waiting = _Waiting()
    if priority is None and connection.inherits:
        priority = _working_at.get()

    def done(status: int, reply: Buffer, received: Descriptors) -> None:
        waiting.status = status
        waiting.data = bytes(reply)
        if received and status >= 0:
            # Lent until this returns, so copies.
            copies: list[int] = []
            try:
                for fd in received:
                    copies.append(os.dup(fd))
            except OSError as error:
                for fd in copies:
                    os.close(fd)
                copies.clear()
                waiting.status = -(error.errno or errno.EMFILE)
                waiting.data = b""
            waiting.descriptors = tuple(copies)
        waiting.wanted.come = True
        if waiting.task is not None:
            trio.lowlevel.reschedule(waiting.task)
            waiting.task = None

    def start() -> None:
        waiting.pending = connection.submit_descriptors(parts, descriptors, reply_len, done, priority)

    enter(connection.kernel, start)
    real = dispatch if isinstance(dispatch, TrioDispatch) else None
    if real is not None and not waiting.wanted.come:
        until = _monotonic(trio.current_effective_deadline())
        real.drive(waiting.wanted, until if deadline is None else min(until, deadline), soon=True)
    if waiting.wanted.come:
        if real is None or not real.may_go_on():
            await trio.lowlevel.cancel_shielded_checkpoint()
    else:
        timer = None if deadline is None else dispatch.call_at(deadline, waiting.expire)

        def abort(cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
            waiting.cancel = cancel
            enter(connection.kernel, waiting.unblock)
            return trio.lowlevel.Abort.FAILED

        waiting.task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)
        if timer is not None:
            timer.cancel()
    if waiting.status < 0:
        if waiting.status == -errno.EINTR:
            if waiting.cancel is not None:
                waiting.cancel()
            if waiting.timed_out:
                raise ResmgrError(errno.ETIMEDOUT)
        raise ResmgrError(-waiting.status)
    return Reply(waiting.status, waiting.data, waiting.descriptors)


def pulse(connection: Connection, code: int, value: int = 0, *, priority: int | None = None) -> int:
    """Send a pulse (MsgSendPulse) with the priority that `send` would take; 0 or -errno. Never blocks."""
    if priority is None and connection.inherits:
        priority = _working_at.get()
    status = [0]

    def start() -> None:
        status[0] = connection.pulse(code, value, priority)

    enter(connection.kernel, start)
    return status[0]


def _monotonic(when: float) -> float:
    """A time of Trio's clock on the dispatch's."""
    return when if when == math.inf else when - trio.current_time() + time.monotonic()


@trio.lowlevel.enable_ki_protection
def enter(kernel: Kernel, call: Callable[[], None]) -> None:
    """Run *call* in dispatch context from a Trio task: now, as a turn of its own, so that what it sends leaves at once."""
    dispatch = kernel.dispatch
    if isinstance(dispatch, TrioDispatch):
        dispatch.enter(call)
    else:
        call()


class ReceiveChannel:
    """A channel whose server is a task: `async for item in channel`, items being `Message` and `Pulse`. Close it, or use `with`.

    A message whose client gave up before it was received is not delivered. Messages are answered with their own methods. Set
    `message.on_unblock` before the next await if the work for it should hear of a client that gives up.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        pid: int | None = None,
        chid: int | None = None,
        first_part: int = FIRST_PART_DEFAULT,
        remote: bool = True,
        coid_death: bool = False,
    ) -> None:
        self.kernel = kernel
        self._items: Waiting[Message, Pulse] = Waiting()
        self._tasks: deque[trio.lowlevel.Task] = deque()
        self._wanted = Wanted()
        self._closed = False
        self.channel = kernel.channel(
            self._arrived, on_pulse=self._pulsed, pid=pid, chid=chid, first_part=first_part, remote=remote, coid_death=coid_death
        )

    @property
    def dropped(self) -> int:
        """Pulses of clients that had too many waiting here (`resmgr.waiting`)."""
        return self._items.dropped

    def _arrived(self, message: Message) -> None:
        self._items.add(message)
        self._wanted.come = True
        self._wake()

    def _pulsed(self, pulse: Pulse) -> None:
        self._items.add_pulse(pulse)
        self._wanted.come = True
        self._wake()

    def _wake(self) -> None:
        if self._tasks:
            trio.lowlevel.reschedule(self._tasks.popleft())

    def _next(self) -> Message | Pulse | None:
        while self._items:
            item = self._items.take()
            if isinstance(item, Message) and not item.client_waits:
                if not item.answered:
                    item.error(errno.EINTR)
                continue
            _working_at.set(item.priority)
            return item
        return None

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> Message | Pulse:
        """MsgReceive: the next one, highest priority first. ResmgrError(ESRCH) when the channel is closed. Several tasks may wait; each
        item goes to one. Until it receives again, the task and those it starts send with the priority of what it received (see `send`).
        """
        _working_at.set(None)
        await trio.lowlevel.checkpoint_if_cancelled()
        real = self.kernel.dispatch if isinstance(self.kernel.dispatch, TrioDispatch) else None
        item = self._next()
        if item is None and real is not None and not self._closed and not self._tasks:
            self._wanted.come = False
            real.drive(self._wanted, _monotonic(trio.current_effective_deadline()), soon=False)
            item = self._next()
        if item is not None:
            if real is None or not real.may_go_on():
                await trio.lowlevel.cancel_shielded_checkpoint()
            return item
        while not self._closed:
            task = trio.lowlevel.current_task()
            self._tasks.append(task)

            def abort(_: object, task: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                self._tasks.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
            item = self._next()
            if item is not None:
                return item
        raise ResmgrError(errno.ESRCH, "the channel is closed")

    def __aiter__(self) -> ReceiveChannel:
        return self

    async def __anext__(self) -> Message | Pulse:
        try:
            return await self.receive()
        except ResmgrError:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Destroy the channel; waiting receivers end. Messages that nobody received fail with ESRCH, those under work too."""
        if self._closed:
            return
        self._closed = True
        self._wanted.come = True
        enter(self.kernel, self.channel.destroy)
        while self._tasks:
            self._wake()

    def __enter__(self) -> ReceiveChannel:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Process:
    """This program as a process of the node whose daemon it is connected to."""

    def __init__(self, dispatch: TrioDispatch, sock: socket.socket, direct: bool = True, limits: Limits | None = None) -> None:
        self.dispatch = dispatch
        self.kernel = Kernel(dispatch, "")
        self.node = ""
        self.credentials = Credentials(os.geteuid(), os.getegid(), tuple(os.getgroups()), os.getpid())
        self.ready = trio.Event()
        self.gone = trio.Event()
        """Set when the daemon has ended or refused us; `failure` says why."""
        self.failure = ""
        self._carrier = UnixCarrier(dispatch, sock, self._down)
        self._carrier.on_message = self._hello
        self.peer = Peer(self.kernel, self._carrier, believes=True, congested=self._carrier.congested, descriptors=self._carrier)
        self.kernel.uplink = self.peer
        self.direct: DirectLinks | None = None
        """Links to other programs of the node that do not go through the daemon; None if it makes none, or none are wanted."""
        self._wants_direct = direct
        self._limits = limits

    def connect(self, nd: int, pid: int, chid: int, *, priority: int | None = None) -> Connection:
        """Attach to a channel of the node, or of another (`nd` as this node's daemon numbers it)."""
        return self.kernel.connect(Nd(nd) if nd else ND_LOCAL, pid, chid, self.credentials, priority=priority)

    def close(self) -> None:
        """Leave the node."""
        if self.direct is not None:
            self.direct.down(errno.ENOTCONN, farewell=False)
        self._carrier.close()
        self.peer.down(errno.ENOTCONN)

    def _hello(self, view: Buffer, stream: int, priority: int, descriptors: Descriptors) -> None:
        try:
            version, pid, first_chid, self.node = wire.parse_hello(view)
        except BadMessage as error:
            self._refuse(f"not a daemon of ours: {error}")
            return
        if version != wire.VERSION:
            self._refuse(f"the daemon speaks version {version} of the message protocol, this program {wire.VERSION}")
            return
        self.kernel.become(pid, first_chid)
        self.kernel.node_name = self.node
        self._carrier.on_message = self.peer.receive
        if view[1] & BROKERS and self._wants_direct:
            self.kernel.uplink = self.direct = DirectLinks(self.kernel, self.dispatch, self.peer, self._carrier, self._limits)
        self.ready.set()

    def _refuse(self, why: str) -> None:
        self._carrier.close()
        self._down(why)

    def _down(self, reason: str) -> None:
        self.failure = reason
        if self.direct is not None:
            self.direct.down(errno.ENOTCONN, farewell=True)
        self.peer.down(errno.ENOTCONN)
        self.gone.set()
        self.ready.set()


@asynccontextmanager
async def open_process(
    path: str | bytes | os.PathLike[str],
    *,
    spin: float = SPIN_DEFAULT,
    guest: bool = False,
    direct: bool = True,
    limits: Limits | None = None,
) -> AsyncIterator[Process]:
    """Join the node whose daemon listens at *path*, for the length of the block. OSError if nobody does; ResmgrError(EPROTO) if the daemon
    refuses. Runs a dispatch of its own; *spin*, *guest*: see `open_dispatch`. *direct*: reach other programs of the node, and be reached,
    without the daemon (docs/protocol/direct.md); *limits*: of what one program may occupy here.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.connect(os.fspath(path))
        async with open_dispatch(spin=spin, guest=guest) as dispatch:
            process = Process(dispatch, sock, direct, limits)
            try:
                await process.ready.wait()
                if process.gone.is_set():
                    raise ResmgrError(errno.EPROTO, process.failure)
                yield process
            finally:
                process.close()
    finally:
        sock.close()
