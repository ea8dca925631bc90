"""Typed messages of Trio programs: `await call(...)`, `await serve(...)`. Blocking programs: `resmgr.typed.client`."""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Awaitable
from typing import Any, TypeVar

import trio

from resmgr.aio import ReceiveChannel, send
from resmgr.channel import ClientInfo, Connection, Message
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError, errno_of
from resmgr.typed.head import REPLY_MAX, REQUEST_MAX
from resmgr.typed.interface import Interface, Request
from resmgr.typed.server import TypedServer

log = logging.getLogger(__name__)
TASKS_MAX = 1024
"""Requests of one `serve` in async handlers at a time; more get EAGAIN. Bounds the memory that clients can take. One program may have an
eighth of them; another node, or a user of this one, half: whoever sends much takes nothing from the others."""

R = TypeVar("R")


async def call(connection: Connection, interface: Interface, request: Request[R], *, deadline: float | None = None) -> R:
    """Send *request* and wait for its reply. ResmgrError: the server's, the system's, VersionSkew, EBADMSG. ValueError: `pack_request`."""
    reply = await send(connection, (interface.pack_request(request),), REPLY_MAX, deadline=deadline)
    try:
        return interface.unpack_reply(request, reply.data)
    except BadMessage as error:
        raise ResmgrError(errno.EBADMSG, f"not an answer of {interface.name!r}: {error}") from None


async def serve(server: TypedServer, channel: ReceiveChannel, *, tasks_max: int = TASKS_MAX) -> None:
    """Answer what arrives at *channel* until that is closed. Plain handlers run one after another, async ones and those of requests
    that have to be pulled as tasks; a client that gives up cancels its handler. What a handler raises is answered: an OSError with its
    errno, anything else with EIO, and logged.
    """
    running = _Running(tasks_max)

    async def work(message: Message, request: Request[Any] | None, scope: trio.CancelScope) -> None:
        try:
            with scope:
                if request is None:
                    request = _begin(server, await _whole(message), message)
                if request is not None:
                    await _answer(server, request, message)
        finally:
            running.ended(message.info)
            if not message.answered:  # its client gave up, or the server ends
                message.error(errno.EINTR)

    async with trio.open_nursery() as nursery:
        async for message in channel:
            if not isinstance(message, Message):
                continue
            if not message.client_waits:
                message.error(errno.EINTR)
                continue
            request: Request[Any] | None = None
            if message.msglen > REQUEST_MAX:
                message.error(errno.EMSGSIZE)
                continue
            if message.msglen == len(message.data):
                request = _begin(server, message.data, message)
                if request is None:
                    continue
                if not server.is_async(request):
                    await _answer(server, request, message)
                    continue
            if running.begins(message.info):
                scope = trio.CancelScope()
                # From here on, not from the task's first step on: its client may give up in between.
                message.on_unblock = scope.cancel
                nursery.start_soon(work, message, request, scope)
            else:
                message.error(errno.EAGAIN)


class _Running:
    """Who has how many tasks."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._of_program: Counter[tuple[int, int]] = Counter()
        self._of_place: Counter[tuple[int, int]] = Counter()
        """By node, and for this node by user."""

    def begins(self, info: ClientInfo) -> bool:
        """Whether *info* may have another one."""
        program, place = _who(info)
        if (
            self._count >= self._most
            or self._of_program[program] >= max(1, self._most // 8)
            or self._of_place[place] >= max(1, self._most // 2)
        ):
            return False
        self._count += 1
        self._of_program[program] += 1
        self._of_place[place] += 1
        return True

    def ended(self, info: ClientInfo) -> None:
        self._count -= 1
        for counter, key in zip((self._of_program, self._of_place), _who(info), strict=True):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]


def _who(info: ClientInfo) -> tuple[tuple[int, int], tuple[int, int]]:
    who = info.credentials
    return (info.nd, who.pid), (info.nd, 0 if info.nd else who.uid)


def _begin(server: TypedServer, data: Buffer, message: Message) -> Request[Any] | None:
    """The request; None when the message is answered with what is wrong with it."""
    code, reply, request = server.begin(data)
    if code:
        message.error(code)
    elif request is None:
        message.reply(0, reply)
    return request


async def _answer(server: TypedServer, request: Request[Any], message: Message) -> None:
    try:
        result = server.call(request, message)
        if isinstance(result, Awaitable):
            result = await result
        message.reply(0, server.interface.pack_reply(request, result))
    except Exception as error:
        if not isinstance(error, OSError):
            log.exception("%s: the handler of %s failed", server.interface.name, type(request).__name__)
        if not message.answered:
            message.error(errno_of(error))


async def _whole(message: Message) -> Buffer:
    """All of a message; what there is when its client gives up meanwhile."""
    came = trio.Event()
    whole: list[Buffer] = [b""]

    def done(status: int, data: Buffer) -> None:
        whole[0] = bytes(data)
        came.set()

    message.read(0, message.msglen, done)
    await came.wait()
    return whole[0]
