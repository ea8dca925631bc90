"""name_attach and name_open on Trio, for any kernel: the daemon's own or that of a program that joined with `resmgr.aio.open_process`."""

from __future__ import annotations

from resmgr.aio import send
from resmgr.channel import CHID_NAMES, ND_LOCAL, PID_SYSTEM, Connection, Credentials, Kernel
from resmgr.names.protocol import ATTACH, REQUEST, name_path
from resmgr.walk import walk_trio


async def name_attach(kernel: Kernel, credentials: Credentials, name: str | bytes, chid: int) -> Connection:
    """Name the channel *chid* of this kernel's process. The name lasts as long as the connection that this returns."""
    name = name.encode() if isinstance(name, str) else name
    connection = kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_NAMES, credentials)
    try:
        await send(connection, (REQUEST.pack(ATTACH, 0, chid), name))
    except BaseException:
        connection.close()
        raise
    return connection


async def name_open(kernel: Kernel, credentials: Credentials, name: str | bytes, *, node: str = "") -> Connection:
    """A connection to the server that attached *name* on *node* (empty: this one). ResmgrError(ENOENT) if nobody has."""
    return (await walk_trio(kernel, credentials, name_path(name, node)))[1]
