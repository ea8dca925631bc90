"""name_attach and name_open on Trio, for any kernel: the daemon's own or that of a program that joined with `resmgr.aio.open_process`."""

from __future__ import annotations

import errno
from typing import Literal

from resmgr.aio import send
from resmgr.channel import CHID_NAMES, ND_LOCAL, PID_SYSTEM, Connection, Credentials, Kernel
from resmgr.errors import ResmgrError
from resmgr.names.client import SCOPES, PolicyName, ScopeName, check_owner, lease_seconds
from resmgr.names.protocol import (
    ATTACH,
    ATTACH_GLOBAL,
    RENEW,
    REQUEST,
    NameChange,
    NameEvent,
    name_path,
    pack_pattern,
    parse_event,
)
from resmgr.subscriptionaio import AsyncEvents
from resmgr.walk import walk_trio


async def name_attach(
    kernel: Kernel, credentials: Credentials, name: str | bytes, chid: int, *, scope: ScopeName = "local", lease: float = 0
) -> Connection:
    """Name the channel *chid* of this kernel's process. The name lasts as long as the connection that this returns,
    and not longer than the channel.

    *scope*, *lease*, errors: as `resmgr.names.client.name_attach`. The lease is renewed by `name_renew`.
    """
    name = name.encode(errors="surrogateescape") if isinstance(name, str) else name
    operation = ATTACH_GLOBAL if scope == "global" else ATTACH
    seconds = lease_seconds(lease)
    connection = kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_NAMES, credentials)
    try:
        await send(connection, (REQUEST.pack(operation, seconds, chid), name))
    except BaseException:
        connection.close()
        raise
    _ends_with_channel(kernel, credentials, chid, connection)
    return connection


class _Names:
    """The naming connections of one channel: closed, and the names with them, when it is."""

    def __init__(self) -> None:
        self.attached: list[Connection] = []

    def __call__(self, dead: Connection) -> None:
        for connection in self.attached:
            connection.close()


def _ends_with_channel(kernel: Kernel, credentials: Credentials, chid: int, attached: Connection) -> None:
    channel = kernel.find_channel(kernel.pid, chid)
    if channel is None:
        return
    watches = [one.on_death for one in kernel.connected(channel) if isinstance(one.on_death, _Names)]
    if watches:
        names = watches[0]
    else:
        names = _Names()
        kernel.connect(ND_LOCAL, kernel.pid, chid, credentials).on_death = names
    names.attached = [*(one for one in names.attached if not one.closed), attached]


async def name_renew(attached: Connection) -> None:
    """Keep a name that has a lease for another such time. ResmgrError(ENOENT): it has run out, the name is gone."""
    await send(attached, (REQUEST.pack(RENEW, 0, 0),))


async def name_open(
    kernel: Kernel,
    credentials: Credentials,
    name: str | bytes,
    *,
    node: str = "",
    scope: ScopeName = "local",
    policy: PolicyName = "",
    wait: bool = False,
    owner: int | None = None,
) -> Connection:
    """A connection to the server that attached *name* on *node* (empty: this one). ResmgrError(ENOENT) if nobody has.

    *scope*, *policy*, *owner*: as `resmgr.names.client.name_open`. *wait*: until there is one; put a Trio time limit around it.
    """
    try:
        path = name_path(name, node, SCOPES[scope], policy)
    except ValueError as error:
        raise ResmgrError(errno.EINVAL, str(error)) from None
    wait = wait and not (node and scope == "local")

    async def opened() -> Connection:
        found, connection = await walk_trio(kernel, credentials, path)
        try:
            check_owner(found.entry.attr, owner)
        except ResmgrError:
            connection.close()
            raise
        return connection

    try:
        return await opened()
    except ResmgrError as error:
        if error.errno != errno.ENOENT or not wait:
            raise
    with name_events(kernel, credentials, name, scope=scope) as events:
        # From CURRENT on, whatever appears is an event: what was there before is found by the first look behind it.
        async for event in events:
            if event.kind is NameChange.APPEARED or event.kind is NameChange.CURRENT:
                try:
                    return await opened()
                except ResmgrError as error:
                    if error.errno != errno.ENOENT:
                        raise
    raise AssertionError("events have no end")


def name_events(
    kernel: Kernel, credentials: Credentials, pattern: str | bytes = "*", *, scope: Literal["local", "global", "both"] = "global"
) -> AsyncEvents[NameEvent]:
    """Subscribe to a name, or with `*` behind a beginning to all that begin so."""
    connection = kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_NAMES, credentials)
    return AsyncEvents(connection, pack_pattern(SCOPES[scope], pattern), parse_event)
