"""The names under which servers of this node can be found (QNX name_attach), and what programs ask about names.

`/dev/name/local` is a directory with one entry per attached name. Looking a name up answers with the server's channel as `Entry.target`;
the client connects there and nothing of its messages passes through here. The server itself sees nothing of the lookup (QNX sends it an
`_IO_CONNECT` message, which every name server must know to answer). `/dev/name/global` is `resmgr.names.globalnames`.

Names are attached, and watched, by messages to `(0, PID_SYSTEM, CHID_NAMES)`; see docs/protocol/names.md. A name lives as long as the
connection that attached it, so it goes with its process; or shorter, where it has a lease and nobody renews it.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Callable, Iterator
from stat import S_IFSOCK

import attrs

from resmgr.channel import (
    CHID_NAMES,
    ND_LOCAL,
    PID_SYSTEM,
    PULSE_DISCONNECT,
    Channel,
    ClientInfo,
    Connection,
    Credentials,
    Kernel,
    Message,
    Pulse,
)
from resmgr.dispatch import Timer
from resmgr.iofunc.handle import Handle
from resmgr.iofunc.node import Directory, Node, NodeClient, TreeManager
from resmgr.iomsg import Entry, Target
from resmgr.iorequest import ConnectRequest
from resmgr.names.globalnames import GlobalNames, Load
from resmgr.names.protocol import (
    ATTACH,
    ATTACH_GLOBAL,
    DETACH,
    DETACH_GLOBAL,
    NAME_MAX,
    RENEW,
    REQUEST,
    STATUS,
    NameChange,
    NameEvent,
    Record,
    Scope,
    is_name,
    pack_event,
)
from resmgr.names.reserved import ReservedName, may_attach
from resmgr.nodes.board import NodeBoard
from resmgr.subscription import READ, WATCH
from resmgr.watches import EventQueue, Watches

NAMES_PER_CONNECTION = 256
"""Stops a process from filling the table."""
NAMES_MAX = 16384
"""Local names."""
NAMES_PER_USER = 4096
GLOBAL_PER_USER = 256
"""Local and global names of a user, root excepted. Stops one from leaving none for others."""
EVERYBODY = None
"""As announcers: every user."""


class Name(Node):
    """A server that can be found. Listed as a socket: something that one connects to."""

    mode = S_IFSOCK | 0o666

    def __init__(self, record: Record, owner: int) -> None:
        self.record = record
        self.target = Target(ND_LOCAL, record.pid, record.chid)
        self.uid = record.uid
        self.gid = record.gid
        self.owner = owner
        """scoid of the connection that attached it; 0: this node itself."""


@attrs.define(eq=False)
class _Holder:
    """What one connection has attached. `lease` in seconds, 0 for none: the shortest that it asked for."""

    local: dict[bytes, None] = attrs.Factory(dict)
    serials: dict[int, Record] = attrs.Factory(dict)
    lease: int = 0
    timer: Timer | None = None

    def __len__(self) -> int:
        return len(self.local) + len(self.serials)


def _believes_all(info: ClientInfo) -> bool:
    return True


class NameDirectory(TreeManager):
    """Serves `/dev/name/local` and the messages about names. Attach its `target` to `protocol.PREFIX`, and `globals.directory.target` to
    PREFIX_GLOBAL.

    *board*: who is up; without one this node is alone. *believes*: whose global names count; *load*: of this node (`GlobalNames`).
    """

    def __init__(
        self,
        kernel: Kernel,
        board: NodeBoard | None = None,
        *,
        believes: Callable[[ClientInfo], bool] = _believes_all,
        load: Load | None = None,
    ) -> None:
        self._kernel = kernel
        self._names: dict[bytes, Node] = {}
        self._holders: dict[int, _Holder] = {}
        self._own: dict[bytes, Record] = {}
        """The node's own global names."""
        self._followed: dict[Channel, Connection] = {}
        """The node's own channels that have names, each with a connection that tells of its end."""
        self._per_user: Counter[tuple[Scope, int]] = Counter()
        self._next_serial = 1
        self.announcers: frozenset[int] | None = frozenset({0})
        """Users that may attach global names. EVERYBODY: all."""
        self.reserved: tuple[ReservedName, ...] = ()
        """Which names are not for everybody. Names that are attached stay."""
        self.expired = 0
        """Leases that ran out."""
        self.watches: Watches[Record] = Watches(kernel, _value)
        self._board = NodeBoard(kernel) if board is None else board
        self._alone = board is None
        self.globals = GlobalNames(kernel, self._board, self._told, believes, load)
        super().__init__(kernel, Directory(self._names), name="names")
        self._requests = kernel.channel(self._request, on_pulse=self._pulse, pid=PID_SYSTEM, chid=CHID_NAMES, remote=False)

    # What the node itself names

    def attach(self, name: bytes, channel: Channel) -> int:
        """Name a channel of the node itself, until `detach` or the channel's end. 0 or an errno."""
        code = self._attach(name, channel.pid, channel.chid, 0, 0, 0)
        if not code:
            self._follow(channel)
        return code

    def detach(self, name: bytes) -> int:
        """Take back a name of the node itself. 0 or an errno."""
        return self._detach(name, 0)

    def attach_global(self, name: bytes, channel: Channel) -> int:
        """Give a channel of the node itself a name that all nodes know, until `detach_global` or the channel's end. 0 or an errno."""
        if name in self._own:
            return errno.EEXIST
        record = self.globals.replica.attach(name, channel.pid, channel.chid, 0, 0)
        if isinstance(record, int):
            return record
        self._own[name] = record
        self._follow(channel)
        self.globals.flush_later()
        return 0

    def detach_global(self, name: bytes) -> int:
        """Take that back. 0 or an errno."""
        record = self._own.pop(name, None)
        if record is None:
            return errno.ENOENT
        self.globals.replica.withdraw(record.serial)
        self.globals.flush_later()
        return 0

    def _follow(self, channel: Channel) -> None:
        if channel not in self._followed:
            connection = self._kernel.connect(ND_LOCAL, channel.pid, channel.chid, Credentials(0, 0))
            connection.on_death = lambda connection: self._channel_ended(channel)
            self._followed[channel] = connection

    def _channel_ended(self, channel: Channel) -> None:
        """Its server is gone, and so are its names, whoever forgot to take them back."""
        self._followed.pop(channel).close()
        place = channel.pid, channel.chid
        holder = self._holders.get(0, _Holder())
        for name in [name for name in holder.local if self._place(name) == place]:
            self._detach(name, 0)
        for name in [name for name, record in self._own.items() if (record.pid, record.chid) == place]:
            self.detach_global(name)

    def _place(self, name: bytes) -> tuple[int, int]:
        node = self._names[name]
        assert isinstance(node, Name)
        return node.record.pid, node.record.chid

    def names(self) -> Iterator[bytes]:
        """Local ones."""
        yield from self._names

    def records(self) -> Iterator[Record]:
        """All, local and global."""
        for node in self._names.values():
            if isinstance(node, Name):
                yield node.record
        yield from self.globals.replica.records()

    def destroy(self) -> None:
        super().destroy()
        self.watches.close()
        for connection in self._followed.values():
            connection.on_death = None
        for holder in self._holders.values():
            if holder.timer is not None:
                holder.timer.cancel()
        self._requests.destroy()
        self.globals.close()
        if self._alone:
            self._board.destroy()

    # The directory

    def _lookup(self, message: Message, client: NodeClient, request: ConnectRequest, base: Handle | None) -> None:
        node, path, _ = self._walk(client, base, request.path)
        if isinstance(node, Name):
            message.reply(0, Entry(node.target, 0, 0, self.attr(node, path)).pack())
        else:
            super()._lookup(message, client, request, base)

    # Messages

    def _request(self, message: Message) -> None:
        if message.info.nd != ND_LOCAL:
            message.error(errno.EPERM)
            return
        if not REQUEST.size <= message.msglen == len(message.data) <= REQUEST.size + NAME_MAX + 1:
            message.error(errno.EINVAL)
            return
        operation, argument, chid = REQUEST.unpack_from(message.data)
        body = bytes(message.data[REQUEST.size :])
        if operation == WATCH:
            self._watch(message, argument, chid, body)
        elif operation == READ:
            self.watches.read(message, argument)
        elif operation == STATUS:
            message.reply(0, json.dumps(self.facts()).encode())
        else:
            code = self._change(message.info, operation, argument, chid, body)
            if code:
                message.error(code)
            else:
                message.reply()

    def _change(self, info: ClientInfo, operation: int, argument: int, chid: int, name: bytes) -> int:
        who, owner = info.credentials, info.scoid
        if operation == RENEW:
            holder = self._holders.get(owner)
            if holder is None or not holder.lease:
                return errno.ENOENT
            self._lease(owner, holder)
            return 0
        if operation in (ATTACH, ATTACH_GLOBAL):
            before = len(self._holders.get(owner, ()))
            if before >= NAMES_PER_CONNECTION:
                return errno.EAGAIN
            if not may_attach(self.reserved, name, who.uid):
                code = errno.EPERM
            elif operation == ATTACH:
                code = self._attach(name, who.pid, chid, who.uid, who.gid, owner)
            else:
                code = self._attach_global(name, who.pid, chid, who.uid, who.gid, owner)
            if not code and argument:
                holder = self._holders[owner]
                holder.lease = min(holder.lease or argument, argument)
                self._lease(owner, holder)
            return code
        if operation == DETACH:
            return self._detach(name, owner)
        if operation == DETACH_GLOBAL:
            return self._detach_global(name, chid, owner)
        return errno.ENOSYS

    def _attach(self, name: bytes, pid: int, chid: int, uid: int, gid: int, owner: int) -> int:
        if not is_name(name, Scope.LOCAL):
            return errno.EINVAL
        if name in self._names:
            return errno.EEXIST
        if len(self._names) >= NAMES_MAX or self._has_enough(Scope.LOCAL, uid):
            return errno.EAGAIN
        record = Record(Scope.LOCAL, name, "", ND_LOCAL, pid, chid, uid, gid, self._next_serial)
        self._next_serial += 1
        node = Name(record, owner)
        node.changed = self._kernel.dispatch.wall()
        self._names[name] = node
        self._holders.setdefault(owner, _Holder()).local[name] = None
        self._per_user[Scope.LOCAL, uid] += 1
        self._told(NameChange.APPEARED, record)
        return 0

    def _detach(self, name: bytes, owner: int) -> int:
        holder = self._holders.get(owner)
        if holder is None or name not in holder.local:
            return errno.ENOENT
        del holder.local[name]
        self._left(owner, holder)
        node = self._names.pop(name)
        assert isinstance(node, Name)
        self._one_less(node.record)
        self._told(NameChange.WITHDRAWN, node.record)
        return 0

    def _attach_global(self, name: bytes, pid: int, chid: int, uid: int, gid: int, owner: int) -> int:
        if self.announcers is not EVERYBODY and uid not in self.announcers:
            return errno.EPERM
        if self._has_enough(Scope.GLOBAL, uid):
            return errno.EAGAIN
        record = self.globals.replica.attach(name, pid, chid, uid, gid)
        if isinstance(record, int):
            return record
        self._holders.setdefault(owner, _Holder()).serials[record.serial] = record
        self._per_user[Scope.GLOBAL, uid] += 1
        self.globals.flush_later()
        return 0

    def _detach_global(self, name: bytes, chid: int, owner: int) -> int:
        holder = self._holders.get(owner)
        if holder is None:
            return errno.ENOENT
        serial = next((one.serial for one in holder.serials.values() if (one.name, one.chid) == (name, chid)), 0)
        if not serial:
            return errno.ENOENT
        self._one_less(holder.serials.pop(serial))
        self._left(owner, holder)
        self.globals.replica.withdraw(serial)
        self.globals.flush_later()
        return 0

    def _has_enough(self, scope: Scope, uid: int) -> bool:
        return bool(uid) and self._per_user[scope, uid] >= (GLOBAL_PER_USER if scope is Scope.GLOBAL else NAMES_PER_USER)

    def _one_less(self, record: Record) -> None:
        key = record.scope, record.uid
        self._per_user[key] -= 1
        if not self._per_user[key]:
            del self._per_user[key]

    def _left(self, owner: int, holder: _Holder) -> None:
        """One name less."""
        if not holder:
            if holder.timer is not None:
                holder.timer.cancel()
            del self._holders[owner]

    def _withdraw_all(self, owner: int) -> None:
        holder = self._holders.get(owner)
        if holder is None:
            return
        for name in list(holder.local):
            self._detach(name, owner)
        for record in list(holder.serials.values()):
            self._detach_global(record.name, record.chid, owner)

    # Leases

    def _lease(self, owner: int, holder: _Holder) -> None:
        if holder.timer is not None:
            holder.timer.cancel()
        holder.timer = self._kernel.own_dispatch.call_at(self._kernel.own_dispatch.now() + holder.lease, lambda: self._expire(owner))

    def _expire(self, owner: int) -> None:
        self.expired += 1
        self._withdraw_all(owner)

    # Subscriptions

    def _watch(self, message: Message, code: int, chid: int, body: bytes) -> None:
        if not body or body[0] not in (Scope.LOCAL, Scope.GLOBAL, Scope.BOTH):
            message.error(errno.EINVAL)
            return
        wants = _pattern(Scope(body[0]), body[1:])
        kinds = (NameChange.CURRENT, NameChange.OVERFLOW)
        self.watches.watch(message, EventQueue(self.records, _appeared, wants, _pack, *kinds), code, chid)

    def _told(self, kind: NameChange, record: Record) -> None:
        now = self._kernel.dispatch.wall()
        if record.scope is Scope.LOCAL:
            self.root.changed = now
        else:
            self.globals.directory.touch()
        self.watches.push(kind, record)

    def _pulse(self, pulse: Pulse) -> None:
        if pulse.code == PULSE_DISCONNECT:
            self._withdraw_all(pulse.info.scoid)
            self.watches.closed(pulse.info.scoid)

    # For people

    def facts(self) -> dict[str, object]:
        """What `qnet name` shows beside the names themselves."""
        replica = self.globals.replica
        return {
            "node": self._kernel.node_name,
            "generation": replica.generation,
            "load": replica.load,
            "local": len(self._names),
            "global": len(replica),
            "watches": len(self.watches),
            "overflows": self.watches.overflows(),
            "leases_expired": self.expired,
            "counters": dict(self.globals.counters),
            "nodes": [
                {
                    "node": peer.name,
                    "suspect": peer.suspect,
                    "believed": peer.believed,
                    "names": len(peer.records),
                    "generation": peer.generation,
                    "load": peer.load,
                    "has_of_ours": peer.told_generation,
                    "due": len(peer.due),
                    "refused": errno.errorcode.get(peer.refused, ""),
                }
                for peer in replica.peers.values()
            ],
        }


def _pattern(scope: Scope, pattern: bytes) -> Callable[[Record], bool]:
    """Which records a subscriber wants: an exact name, or a beginning and `*`."""
    if pattern.endswith(b"*"):
        beginning = pattern[:-1]
        return lambda record: record.scope in scope and record.name.startswith(beginning)
    return lambda record: record.scope in scope and record.name == pattern


def _appeared(record: Record) -> int:
    return NameChange.APPEARED


def _pack(kind: int, record: Record | None) -> bytes:
    change = NameChange(kind)
    return pack_event(NameEvent(change) if record is None else NameEvent(change, record))


def _value(kind: int, record: Record | None) -> int:
    return kind << 32 | (0 if record is None else record.nd)
