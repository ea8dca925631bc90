"""A resource manager in a process of its own: nodes under a path of the machine, for as long as the program wants.

    class Counter(Node):                                    # what is served: methods for what it can do
        ...

    serve(socket, "/dev/counter", Counter())                # a blocking program: returns at Ctrl-C, or fails with the daemon

    async with manager(socket, "/dev/counter", node):       # a Trio program
        ...

*node* is one thing (a device) or a `Directory`. Its methods run one at a time; they must not block. A program that learns something in
another thread tells its nodes by `Managed.call`. Clients that crash, hang or lie harm nobody: what they had is given back, what they wait
for is theirs. The path is there until the program ends, whatever ends it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NoReturn, TypeVar, TypeVarTuple

import trio

from resmgr.access import MappedUser
from resmgr.aio import Process, enter, open_process, send
from resmgr.attachproto import ATTACH, READ_ONLY, REQUEST
from resmgr.channel import PID_SYSTEM, ClientInfo
from resmgr.errors import ResmgrError, errno_of
from resmgr.ids import CHID_ATTACH
from resmgr.iofunc.node import TreeManager
from resmgr.iofunc.nodes import Directory, Node
from resmgr.iofunc.waiting import Later
from resmgr.pathspace import Attach

logger = logging.getLogger(__name__)
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
SocketPath = str | bytes | os.PathLike[str]
AGAIN_FIRST, AGAIN_MAX = 0.05, 1.0
"""Seconds between looks for the next daemon: twice as long each time."""
_NO_DAEMON = frozenset((errno.ENOTCONN, errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE))


class Managed:
    """A manager at work. Made by `manager` and `serve`."""

    def __init__(self, process: Process, tree: TreeManager, path: str, node: Node) -> None:
        self.process = process
        self.tree = tree
        self.path = path
        self.node = node

    @property
    def counters(self) -> dict[str, int]:
        """Events by name: requests that failed, clients that were reaped, what was full."""
        return self.tree.counters

    def call(self, function: Callable[[], None]) -> None:
        """Run *function* where node methods run, soon. From any thread."""
        self.process.dispatch.call_from_thread(function)

    def enter(self, function: Callable[[], None]) -> None:
        """Run *function* where node methods run, now: for tasks of this program that change nodes."""
        enter(self.process.kernel, function)

    def later(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> Later[T]:
        """For `read`, `write` and `devctl` of a node: the answer is what this async function returns. Its OSError is the caller's errno,
        any other exception EIO and a line in the log; it is cancelled when nobody waits any more. Costs a task: a node that can return None
        and call `notify` needs none."""
        scope = trio.CancelScope()
        later: Later[T] = Later(scope.cancel)

        async def run() -> None:
            with scope:
                try:
                    value = await function(*args)
                except OSError as error:
                    code = errno_of(error)
                    self.enter(lambda: later.fail(code))
                except Exception as error:
                    logger.error("%s: %s: %s", self.path, type(error).__name__, error)
                    self.enter(lambda: later.fail(errno.EIO))
                else:
                    self.enter(lambda: later.answer(value))

        self.process.dispatch.start_task(run)
        return later

    async def ended(self) -> None:
        """Waits until the daemon is gone, and raises ResmgrError(ENOTCONN)."""
        await self.process.gone.wait()
        raise ResmgrError(errno.ENOTCONN, f"the daemon is gone: {self.process.failure}")


def _user(info: ClientInfo) -> MappedUser | int:
    """The daemon has mapped users of other nodes already (`resmgr.attachments`)."""
    who = info.credentials
    return MappedUser(who.uid, who.gid, who.groups)


def _may_change(info: ClientInfo) -> bool:
    return READ_ONLY not in info.roles


@asynccontextmanager
async def manager(
    socket: SocketPath, path: str | Sequence[str], node: Node, *, flags: Attach = Attach.DEFAULT, local: bool = False
) -> AsyncIterator[Managed]:
    """Serve *node* at *path* (or at several) of the machine whose daemon listens at *socket*, for the length of the block.

    *flags*: `Attach.AFTER` asks those first who have the name already; else the newest hides the others. *local*: for no other node.
    ResmgrError: EPERM when this user may not attach there (docs/reference/configuration.md, access.managers), EAGAIN when too much is
    attached; OSError when there is no daemon.
    """
    if not isinstance(node, Directory):
        flags |= Attach.EXACT
    if local:
        flags |= Attach.LOCAL
    paths = (path,) if isinstance(path, str) else tuple(path)
    async with open_process(socket) as process:
        kernel = process.kernel
        chid = kernel.reserve()
        attaching = process.connect(0, PID_SYSTEM, CHID_ATTACH)
        # First the names, then the channel: no client of another node is ever heard before the daemon knows that it is a manager's.
        for one in paths:
            try:
                await send(attaching, (REQUEST.pack(ATTACH, int(flags), chid), os.fsencode(one)))
            except ResmgrError as error:
                raise ResmgrError(error.errno or errno.EIO, f"{one}: {_why(error)}") from None
        made: list[TreeManager] = []
        name = paths[0].rpartition("/")[2]
        make = partial(TreeManager, kernel, node, name=name, user=_user, may_change=_may_change, pid=kernel.pid, chid=chid)
        enter(kernel, lambda: made.append(make()))
        try:
            yield Managed(process, made[0], paths[0], node)
        finally:
            enter(kernel, attaching.close)
            enter(kernel, made[0].destroy)


def _why(error: ResmgrError) -> str:
    if error.errno == errno.EPERM:
        return "this user may not attach a manager there; root may, and whom access.managers names"
    return error.strerror or str(error)


async def keep_serving(
    socket: SocketPath,
    path: str | Sequence[str],
    node: Node,
    *,
    flags: Attach = Attach.DEFAULT,
    local: bool = False,
    ready: Callable[[Managed], None] | None = None,
) -> NoReturn:
    """As `manager`, beyond the ends of daemons: when the daemon is gone, wait for the next one and attach there again. *ready* is called
    each time. Clients had lost the manager with their daemon (ESTALE, EBADF) and open it anew; what the nodes know stays.

    Errors of the first attach, and a later daemon's refusal (EPERM, EAGAIN), are raised as by `manager`.
    """
    served = False
    pause = AGAIN_FIRST
    while True:
        try:
            async with manager(socket, path, node, flags=flags, local=local) as managed:
                if ready is not None:
                    ready(managed)
                served = True
                pause = AGAIN_FIRST
                await managed.process.gone.wait()
        except OSError as error:
            if not served or error.errno not in _NO_DAEMON:
                raise
        await trio.sleep(pause)
        pause = min(2 * pause, AGAIN_MAX)


def serve(
    socket: SocketPath,
    path: str | Sequence[str],
    node: Node,
    *,
    flags: Attach = Attach.DEFAULT,
    local: bool = False,
    ready: Callable[[Managed], None] | None = None,
    again: bool = False,
) -> None:
    """As `manager`, for a program that does nothing else, or does it in other threads: *ready* is called once the path is there. Returns
    after Ctrl-C; ResmgrError(ENOTCONN) when the daemon ends, unless *again*: see `keep_serving`."""

    async def run() -> None:
        if again:
            await keep_serving(socket, path, node, flags=flags, local=local, ready=ready)
        async with manager(socket, path, node, flags=flags, local=local) as managed:
            if ready is not None:
                ready(managed)
            await managed.ended()

    try:
        trio.run(run)
    except KeyboardInterrupt:
        pass
