"""name_attach and name_open for blocking programs (`resmgr.client`); for Trio see `resmgr.names.aio`.

with Client(path) as client:
    server = name_attach(client, "clock")             # a channel that others find as "clock"
    connection = name_open(client, "clock")           # of this node
    connection = name_open(client, "clock", node="B") # of node B, through /net/B/dev/name/local/clock
"""

from __future__ import annotations

from types import TracebackType

from resmgr.client import Client, Connection
from resmgr.ids import CHID_NAMES, PID_SYSTEM
from resmgr.names.protocol import ATTACH, DETACH, REQUEST, name_path
from resmgr.server import Channel
from resmgr.walk import walk_blocking


class AttachedName:
    """A channel with a name. `close` takes the name back and destroys the channel; so does the end of the program."""

    def __init__(self, channel: Channel, connection: Connection, name: bytes) -> None:
        self.channel = channel
        self.name = name
        self._connection = connection

    def close(self) -> None:
        self._connection.send(REQUEST.pack(DETACH, 0, 0), self.name)
        self._connection.close()
        self.channel.close()

    def __enter__(self) -> AttachedName:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def name_attach(client: Client, name: str | bytes, *, remote: bool = True, unblock: bool = False) -> AttachedName:
    """Create a channel that others find by *name*. ResmgrError: EEXIST if the name is taken, EINVAL if it is none."""
    name = name.encode() if isinstance(name, str) else name
    channel = client.channel(remote=remote, unblock=unblock)
    connection = client.connect(0, PID_SYSTEM, CHID_NAMES)
    try:
        connection.send(REQUEST.pack(ATTACH, 0, channel.chid), name)
    except BaseException:
        connection.close()
        channel.close()
        raise
    return AttachedName(channel, connection, name)


def name_open(client: Client, name: str | bytes, *, node: str = "", timeout: float | None = None) -> Connection:
    """A connection to the server that attached *name* on *node* (empty: this one). ResmgrError(ENOENT) if nobody has."""
    return walk_blocking(client, name_path(name, node), timeout)[1]
