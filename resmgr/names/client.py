"""name_attach and name_open for blocking programs (`resmgr.client`); for Trio see `resmgr.names.aio`.

with Client(path) as client:
    server = name_attach(client, "clock")                  # a channel that others find as "clock"
    connection = name_open(client, "clock")                # of this node
    connection = name_open(client, "clock", node="B")      # of node B, through /net/B/dev/name/local/clock

    server = name_attach(client, "clock", scope="global")  # found by all nodes; others may attach it, too
    connection = name_open(client, "clock", scope="global", wait=5.0)
    for event in name_events(client, "clock*"):            # what there is, then CURRENT, then what appears and is withdrawn
        print(event.kind.name, event.name, event.record.node or client.node)
"""

from __future__ import annotations

import errno
import time
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from resmgr.client import Client, Connection
from resmgr.errors import ResmgrError
from resmgr.ids import CHID_NAMES, PID_SYSTEM
from resmgr.names.protocol import (
    ATTACH,
    ATTACH_GLOBAL,
    DETACH,
    DETACH_GLOBAL,
    LEASE_MAX,
    RENEW,
    REQUEST,
    NameChange,
    NameEvent,
    Scope,
    name_path,
    pack_pattern,
    parse_event,
)
from resmgr.server import Channel
from resmgr.subscription import Events

if TYPE_CHECKING:
    from resmgr.iomsg import Attr

SCOPES = {"local": Scope.LOCAL, "global": Scope.GLOBAL, "both": Scope.BOTH}
ScopeName = Literal["local", "global"]
PolicyName = Literal["", "roundrobin", "leastload"]


class AttachedName:
    """A channel with a name. `close` takes the name back and destroys the channel; so does the end of the program."""

    def __init__(self, channel: Channel, connection: Connection, name: bytes, scope: Scope) -> None:
        self.channel = channel
        self.name = name
        self.scope = scope
        self._connection = connection

    def renew(self) -> None:
        """Keep a name that has a lease for another such time. ResmgrError(ENOENT): it has run out, the name is gone."""
        self._connection.send(REQUEST.pack(RENEW, 0, 0))

    def close(self) -> None:
        """Idempotent. A name that is gone already, with its lease or with the daemon, is no error."""
        if self.channel.closed:
            return
        operation = DETACH_GLOBAL if self.scope is Scope.GLOBAL else DETACH
        try:
            self._connection.send(REQUEST.pack(operation, 0, self.channel.chid), self.name)
        except ResmgrError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTCONN):
                raise
        finally:
            self._connection.close()
            self.channel.close()

    def __enter__(self) -> AttachedName:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def name_attach(
    client: Client,
    name: str | bytes,
    *,
    scope: ScopeName = "local",
    lease: float = 0,
    remote: bool = True,
    unblock: bool = False,
) -> AttachedName:
    """Create a channel that others find by *name*: on this node, or with *scope* "global" on all.

    *lease*: whole seconds for which the name holds unless it is renewed; 0: as long as the program. ResmgrError: EEXIST if a local name
    is taken, EINVAL if it is none, EPERM if this user may not attach global names, or not this one, EAGAIN for too many.
    """
    name = name.encode(errors="surrogateescape") if isinstance(name, str) else name
    seconds = lease_seconds(lease)
    if scope == "global" and not remote:
        raise ResmgrError(errno.EINVAL, "a name for all nodes on a channel that takes no messages from them")
    channel = client.channel(remote=remote, unblock=unblock)
    connection = client.connect(0, PID_SYSTEM, CHID_NAMES)
    try:
        connection.send(REQUEST.pack(ATTACH_GLOBAL if scope == "global" else ATTACH, seconds, channel.chid), name)
    except BaseException:
        connection.close()
        channel.close()
        raise
    channel.on_close = connection.close
    return AttachedName(channel, connection, name, SCOPES[scope])


def lease_seconds(lease: float) -> int:
    """As the protocol says it. ResmgrError(EINVAL) for what is no number of seconds."""
    if not 0 <= lease <= LEASE_MAX or (lease and lease < 1):
        raise ResmgrError(errno.EINVAL, f"a lease is 1 to {LEASE_MAX} seconds, or 0 for none")
    return int(lease)


def check_owner(attr: Attr | None, owner: int | None) -> None:
    """ResmgrError(EACCES) if the name with these attributes is not *owner*'s."""
    if owner is not None and (attr is None or attr.uid != owner):
        raise ResmgrError(errno.EACCES, f"the name is user {'?' if attr is None else attr.uid}'s, not user {owner}'s")


def name_open(
    client: Client,
    name: str | bytes,
    *,
    node: str = "",
    scope: ScopeName = "local",
    policy: PolicyName = "",
    timeout: float | None = None,
    wait: float = 0.0,
    owner: int | None = None,
) -> Connection:
    """A connection to the server that attached *name* on *node* (empty: this one). ResmgrError(ENOENT) if nobody has.

    With *scope* "global": to one of its owners, on *node* or, if that is empty, chosen by *policy* among those of all nodes
    (docs/protocol/names.md).
    *wait*: seconds for which to wait for an owner if there is none. It is found out by events, not by asking again.
    *owner*: the uid that the server must have, else ResmgrError(EACCES): a local name is whose it was first, so after the end of a server
    anybody may be found in its place. Of a server on another node it is what that node says.
    """
    from resmgr.walk import walk_blocking  # costs more than all else here, and only who opens a name needs it

    try:
        path = name_path(name, node, SCOPES[scope], policy)
    except ValueError as error:
        raise ResmgrError(errno.EINVAL, str(error)) from None

    def opened() -> Connection:
        found, connection = walk_blocking(client, path, timeout)
        try:
            check_owner(found.entry.attr, owner)
        except ResmgrError:
            connection.close()
            raise
        return connection

    try:
        return opened()
    except ResmgrError as error:
        if error.errno != errno.ENOENT or wait <= 0 or (node and scope == "local"):
            raise
    deadline = time.monotonic() + wait
    with name_events(client, name, scope=scope) as events:
        while True:
            try:
                return opened()
            except ResmgrError as error:
                left = deadline - time.monotonic()
                if error.errno != errno.ENOENT or left <= 0:
                    raise
            while not any(event.kind is NameChange.APPEARED for event in events.read(left)):
                left = deadline - time.monotonic()
                if left <= 0:
                    break


def name_events(
    client: Client,
    pattern: str | bytes = "*",
    *,
    scope: Literal["local", "global", "both"] = "global",
    channel: Channel | None = None,
    code: int = 0,
) -> Events[NameEvent]:
    """Subscribe to a name, or with `*` behind a beginning to all that begin so. *channel*, *code*: see `resmgr.subscription.Events`."""
    what = pack_pattern(SCOPES[scope], pattern)
    return Events(client.connect(0, PID_SYSTEM, CHID_NAMES), what, parse_event, channel, code)
