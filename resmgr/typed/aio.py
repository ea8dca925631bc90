"""Typed messages of Trio programs: `await call(...)`, `await serve(...)`. Blocking programs: `resmgr.typed.client`."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

import trio

from resmgr.aio import ReceiveChannel, send
from resmgr.channel import Connection, Message
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError, errno_of
from resmgr.typed.interface import REPLY_MAX, REQUEST_MAX, Interface, Request
from resmgr.typed.server import TypedServer

log = logging.getLogger(__name__)
TASKS_MAX = 1024
"""Requests of one `serve` in async handlers at a time; more get EAGAIN. Bounds the memory that clients can take."""

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
    running = 0

    async def work(message: Message, request: Request[Any] | None) -> None:
        nonlocal running
        scope = trio.CancelScope()
        message.on_unblock = scope.cancel
        try:
            with scope:
                if request is None:
                    request = _begin(server, await _whole(message), message)
                if request is not None:
                    await _answer(server, request, message)
        finally:
            running -= 1
            if not message.answered:  # its client gave up, or the server ends
                message.error(errno.EINTR)

    async with trio.open_nursery() as nursery:
        async for message in channel:
            if not isinstance(message, Message):
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
            if running >= tasks_max:
                message.error(errno.EAGAIN)
            else:
                running += 1
                nursery.start_soon(work, message, request)


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
