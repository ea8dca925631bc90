"""Finding who serves a path: LOOKUP messages from the node's path manager on, following redirects. For programs that open paths.

`walk` is a generator that does no I/O: it yields what to send where and is given the answers; `walk_blocking` runs it on a
`resmgr.client.Client`, `walk_trio` on a kernel. Base handles that servers give on the way are returned with the result; they
belong to the connection they came on, and end with it.

A target in a reply is as seen by the node that replied: `nd` 0 there means that node. Numbers of third nodes mean nothing here (QNX:
netmgr_remote_nd translates them). A path manager that says that a name is a third node's (`/net/B/net/C`) is believed in that and no more:
the same name is looked up at home, and must lead to a node, not this one and none that the walk has been to (docs/protocol/iomsg.md).
Symbolic links are not followed: a link on the way is ELOOP, a link at the end is what the path names.
"""

from __future__ import annotations

import errno
from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError
from resmgr.ids import CHID_PATHMGR, PID_SYSTEM, node_of
from resmgr.iomsg import ATTR, ENTRY, PATH_MAX, Connect, Entry, Io, request

if TYPE_CHECKING:
    from resmgr import channel as local
    from resmgr.client import Client
    from resmgr.client import Connection as ClientConnection

HOPS_MAX = 16
"""Redirects of one walk; more is ELOOP: servers that redirect in a circle are found out."""
REPLY_LEN = ENTRY.size + ATTR.size + PATH_MAX

Address = tuple[int, int, int]
"""nd, pid, chid, as this node numbers them."""


class Question(NamedTuple):
    """Send `message` to `address` with a reply buffer of `reply_len`."""

    address: Address
    message: bytes
    reply_len: int


class Found(NamedTuple):
    """`address` is the server of what was found, `asked` the one that told; handles in `entry` belong to the former."""

    address: Address
    asked: Address
    entry: Entry


def walk(path: bytes) -> Generator[Question, tuple[int, Buffer], Found]:
    """Look up the absolute *path*. Answers are given as (status, reply). ResmgrError if a server refuses or the walk goes wrong."""
    rest = b"/".join(name for name in path.split(b"/") if name)
    if len(rest) > PATH_MAX:
        raise ResmgrError(errno.ENAMETOOLONG)
    asked: Address = (0, PID_SYSTEM, CHID_PATHMGR)
    handle = 0
    visited = {0}
    onward = False
    for _ in range(HOPS_MAX):
        status, reply = yield Question(asked, request(Io.CONNECT, Connect.LOOKUP, 0, handle) + rest, REPLY_LEN)
        if status < 0:
            raise ResmgrError(-status)
        try:
            entry = Entry.parse(reply)
        except BadMessage as error:
            raise ResmgrError(errno.EBADMSG, str(error)) from None
        if asked[0] and entry.target.nd and entry.redirect and not handle and asked[1:] == (PID_SYSTEM, CHID_PATHMGR):
            asked, onward = (0, PID_SYSTEM, CHID_PATHMGR), True
            continue
        address = translate(asked[0], (entry.target.nd, entry.target.pid, entry.target.chid))
        if onward and (not entry.redirect or node_of(address[0]) in visited):
            raise ResmgrError(errno.ELOOP if entry.redirect else errno.EREMOTE)
        onward = False
        visited.add(node_of(address[0]))
        if not entry.redirect:
            return Found(address, asked, entry)
        asked, handle, rest = address, entry.handle, entry.rest or b""
        if len(rest) > PATH_MAX:
            raise ResmgrError(errno.ENAMETOOLONG)
    raise ResmgrError(errno.ELOOP)


def translate(replied: int, target: Address) -> Address:
    """*target* in a reply of node *replied*, as this node numbers it."""
    nd, pid, chid = target
    if replied and nd:
        raise ResmgrError(errno.EREMOTE, "the reply names a third node")
    return (nd or replied, pid, chid)


def walk_blocking(client: Client, path: bytes, timeout: float | None = None) -> tuple[Found, ClientConnection]:
    """Look *path* up; the second result is a connection to what was found."""
    steps = walk(path)
    connections: dict[Address, ClientConnection] = {}
    try:
        question = next(steps)
        while True:
            connection = connections.get(question.address)
            if connection is None:
                connection = connections[question.address] = client.connect(*question.address)
            answer: tuple[int, Buffer]
            try:
                status, reply, _ = connection.send(question.message, reply_len=question.reply_len, timeout=timeout)
                answer = (status, reply)
            except ResmgrError as error:
                answer = (-(error.errno or errno.EIO), b"")
            question = steps.send(answer)
    except StopIteration as end:
        found: Found = end.value
        result = connections.pop(found.address, None) or client.connect(*found.address)
        return found, result
    finally:
        for connection in connections.values():
            connection.close()


async def walk_trio(
    kernel: local.Kernel, credentials: local.Credentials, path: bytes, deadline: float | None = None
) -> tuple[Found, local.Connection]:
    """Look *path* up; the second result is a connection to what was found."""
    from resmgr.aio import send
    from resmgr.channel import Nd

    steps = walk(path)
    connections: dict[Address, local.Connection] = {}

    def connect(address: Address) -> local.Connection:
        nd, pid, chid = address
        return kernel.connect(Nd(nd), pid, chid, credentials)

    try:
        question = next(steps)
        while True:
            connection = connections.get(question.address)
            if connection is None:
                connection = connections[question.address] = connect(question.address)
            answer: tuple[int, Buffer]
            try:
                answer = (await send(connection, (question.message,), question.reply_len, deadline=deadline))[:2]
            except ResmgrError as error:
                answer = (-(error.errno or errno.EIO), b"")
            question = steps.send(answer)
    except StopIteration as end:
        found: Found = end.value
        return found, connections.pop(found.address, None) or connect(found.address)
    finally:
        for connection in connections.values():
            connection.close()
