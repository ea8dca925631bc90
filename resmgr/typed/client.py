"""Typed messages of blocking programs: `call` a server, `answer` clients. The Trio side: `resmgr.typed.aio`."""

from __future__ import annotations

import errno
from typing import TypeVar

from resmgr.client import Connection
from resmgr.errors import BadMessage, ResmgrError
from resmgr.server import Message
from resmgr.typed.description import Description, pack_question, parse_description
from resmgr.typed.head import REPLY_MAX, REQUEST_MAX
from resmgr.typed.interface import Interface, Request
from resmgr.typed.server import TypedServer

R = TypeVar("R")


def call(connection: Connection, interface: Interface, request: Request[R], *, timeout: float | None = None) -> R:
    """Send *request* and wait for its reply. ResmgrError: the server's, the system's, VersionSkew, EBADMSG. ValueError: `pack_request`."""
    reply = connection.send(interface.pack_request(request), reply_len=REPLY_MAX, timeout=timeout)
    try:
        return interface.unpack_reply(request, reply.data)
    except BadMessage as error:
        raise ResmgrError(errno.EBADMSG, f"not an answer of {interface.name!r}: {error}") from None


def describe(connection: Connection, *, timeout: float | None = None) -> Description:
    """What the server there understands, whatever that is. ResmgrError: EBADMSG where it knows nothing of typed messages."""
    reply = connection.send(pack_question(), reply_len=REPLY_MAX, timeout=timeout)
    try:
        return parse_description(reply.data)
    except BadMessage as error:
        raise ResmgrError(errno.EBADMSG, str(error)) from None


def answer(server: TypedServer, message: Message) -> None:
    """Let a plain handler of *server* answer a received message. An exception of a handler that is no OSError is raised, after EIO."""
    if message.msglen > REQUEST_MAX:
        message.error(errno.EMSGSIZE)
        return
    data = message.data if message.msglen == len(message.data) else message.read(0, message.msglen)
    code, reply, failure = server.answer(data, message)
    if code:
        message.error(code)
    else:
        message.reply(0, reply)
    if failure is not None:
        raise failure
