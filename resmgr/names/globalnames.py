"""`/dev/name/global`: the global names of all nodes, on a kernel. Runs `Replica`; serves the directory.

    NodeBoard: up, down -> Replica -> messages to the channel CHID_REPLICA of each node that is up
    messages from there -> Replica -> directory, subscriptions

A directory with one entry per name. Looking a name up chooses an owner (`choice`) and answers with its channel as `Entry.target`; the
client connects there. A client of another node sees this node's own records only: numbers of third nodes would mean nothing to it.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from stat import S_IFSOCK

import attrs

from resmgr.channel import CHID_REPLICA, ND_LOCAL, PID_SYSTEM, ClientInfo, Connection, Credentials, Kernel, Message, Nd
from resmgr.dispatch import Buffer, Timer
from resmgr.iofunc.handle import Handle
from resmgr.iofunc.node import Directory, Node, NodeClient, NodeHandle, TreeManager
from resmgr.iomsg import Entry, Target
from resmgr.iorequest import ConnectRequest
from resmgr.names.choice import choose, split
from resmgr.names.protocol import Record
from resmgr.names.replica import Changed, Replica
from resmgr.names.replicawire import MESSAGE_MAX
from resmgr.nodes.board import BoardNode, NodeBoard
from resmgr.nodes.protocol import NodeChange

LOAD_EVERY = 5.0
"""Seconds between looks at this node's load, while it has names that others know."""

Believes = Callable[[ClientInfo], bool]
Load = Callable[[], int]


class GlobalName(Node):
    """An owner of a global name. Listed as a socket: something that one connects to."""

    mode = S_IFSOCK | 0o666

    def __init__(self, record: Record) -> None:
        self.target = Target(record.nd, record.pid, record.chid)
        self.uid = record.uid if not record.node else 0
        self.gid = record.gid if not record.node else 0


class _OfAll(Directory):
    """What programs of this node see."""

    def __init__(self, replica: Replica, own: Callable[[], str]) -> None:
        super().__init__()
        self._replica = replica
        self._own = own

    def lookup(self, name: bytes) -> Node | None:
        record = choose(self._replica, name, self._own())
        return None if record is None else GlobalName(record)

    def entries(self) -> Iterator[tuple[bytes, Node]]:
        for name in sorted(self._replica.names()):
            named = self._replica.find(name)
            if named is not None:
                yield name, GlobalName(next(iter(named.owners.values())))


class _OfThis(_OfAll):
    """What other nodes see: numbers of third nodes would mean nothing to them."""

    def lookup(self, name: bytes) -> Node | None:
        name, node, _ = split(name)
        own = self._own().encode()
        return super().lookup(name + b"@" + own) if node in (b"", own) else None

    def entries(self) -> Iterator[tuple[bytes, Node]]:
        names = {record.name: GlobalName(record) for record in self._replica.own.values()}
        yield from sorted(names.items())


class GlobalDirectory(TreeManager):
    """Serves the directory. Attach its `target` to `protocol.PREFIX_GLOBAL`."""

    def __init__(self, kernel: Kernel, replica: Replica) -> None:
        self._kernel = kernel
        self._of_this = _OfThis(replica, lambda: kernel.node_name)
        super().__init__(kernel, _OfAll(replica, lambda: kernel.node_name), name="global names")

    def touch(self) -> None:
        """A name came or went."""
        self.root.changed = self._of_this.changed = self._kernel.dispatch.wall()

    def _lookup(self, message: Message, client: NodeClient, request: ConnectRequest, base: Handle | None) -> None:
        node, path, _ = self._walk(client, base, request.path)
        if isinstance(node, GlobalName):
            message.reply(0, Entry(node.target, 0, 0, self.attr(node, path)).pack())
        else:
            super()._lookup(message, client, request, base)

    def _walk(self, client: NodeClient, base: Handle | None, path: bytes) -> tuple[Node, bytes, bytes]:
        if client.info.nd != ND_LOCAL and base is None:
            base = NodeHandle(self._of_this, b"")
        return super()._walk(client, base, path)


@attrs.define(eq=False)
class _Line:
    """The connection to a peer's daemon. Made when there is something to tell."""

    nd: Nd
    connection: Connection | None = None


class GlobalNames:
    """See the head of this file. *believes*: whose names count. *load*: this node's in hundredths of a processor; None: nobody asks."""

    def __init__(self, kernel: Kernel, board: NodeBoard, changed: Changed, believes: Believes, load: Load | None) -> None:
        self._kernel = kernel
        self._board = board
        self._believes = believes
        self._load = load
        self.counters: Counter[str] = Counter()
        self.replica = Replica(changed, self.counters)
        self.directory = GlobalDirectory(kernel, self.replica)
        self._lines: dict[str, _Line] = {}
        self._flushing = False
        self._timer: Timer | None = None
        self._load_timer: Timer | None = None
        self._closed = False
        self.channel = kernel.channel(self._receive, pid=PID_SYSTEM, chid=CHID_REPLICA, first_part=MESSAGE_MAX)
        board.listeners.append(self._node)
        for node in board:
            if node.reachable:
                self._node(NodeChange.UP, node)

    # Nodes

    def _node(self, kind: NodeChange, node: BoardNode) -> None:
        if kind in (NodeChange.UP, NodeChange.RESTARTED):
            self._lines[node.name] = _Line(node.nd)
            self.replica.peer_up(node.name, node.nd, self._believed(node), self._kernel.own_dispatch.now())
            self.flush_later()
        elif kind is NodeChange.DOWN:
            self.replica.peer_down(node.name)
            line = self._lines.pop(node.name, None)
            if line is not None and line.connection is not None:
                line.connection.close()
        else:
            self.replica.peer_suspect(node.name, kind is NodeChange.SUSPECT)

    def _believed(self, node: BoardNode) -> bool:
        return self._believes(ClientInfo(node.nd, node.name, node.roles, Credentials(0, 0), 0))

    def judge_again(self) -> None:
        """The rules have changed."""
        for node in self._board:
            self.replica.believe(node.name, self._believed(node))

    # Telling

    def flush_later(self) -> None:
        """Own records changed: tell at the end of this turn, with what else changes in it."""
        if not self._flushing and not self._closed:
            self._flushing = True
            self._kernel.own_dispatch.at_turn_end(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._closed:
            return
        dispatch = self._kernel.own_dispatch
        now = dispatch.now()
        self._look_at_load(now)
        for name, data in self.replica.transmit(now):
            self._send(name, data)
        when = self.replica.next_timeout()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when is not None:
            self._timer = dispatch.call_at(when, self._flush)

    def _send(self, name: str, data: bytes) -> None:
        line = self._lines[name]
        if line.connection is None:
            line.connection = self._kernel.connect(line.nd, PID_SYSTEM, CHID_REPLICA, Credentials(0, 0))
        self.counters["names_sent"] += 1

        def done(status: int, reply: Buffer) -> None:
            if self._lines.get(name) is not line:
                return  # an answer of an earlier link
            self.replica.answered(name, status, self._kernel.own_dispatch.now())
            if status < 0 and line.connection is not None:
                connection, line.connection = line.connection, None
                connection.close()
            self.flush_later()

        line.connection.submit([data], 0, done)

    def _look_at_load(self, now: float) -> None:
        if self._load is None:
            return
        if self.replica.own and self._lines:
            if self._load_timer is None:
                self.replica.set_load(self._load())
                self._load_timer = self._kernel.own_dispatch.call_at(now + LOAD_EVERY, self._load_due)
        elif self._load_timer is not None:
            self._load_timer.cancel()
            self._load_timer = None

    def _load_due(self) -> None:
        self._load_timer = None
        self._flush()

    # Hearing

    def _receive(self, message: Message) -> None:
        """The channel's handler."""
        info = message.info
        if info.nd == ND_LOCAL or not info.credentials.of_daemon:
            message.error(errno.EPERM)
        elif message.msglen != len(message.data):
            message.error(errno.EMSGSIZE)
        else:
            code = self.replica.receive(info.node, message.data, self._kernel.own_dispatch.now())
            if code:
                message.error(code)
            else:
                message.reply()

    # For people

    def sizes(self) -> dict[str, int]:
        """For leak checks."""
        return {
            "names_own": len(self.replica.own),
            "names_of_others": len(self.replica) - len(self.replica.own),
            "names_due": sum(len(peer.due) for peer in self.replica.peers.values()),
        }

    def close(self) -> None:
        """Idempotent."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._timer, self._load_timer):
            if timer is not None:
                timer.cancel()
        if self._node in self._board.listeners:
            self._board.listeners.remove(self._node)
        for name in list(self._lines):
            self.replica.peer_down(name)
            line = self._lines.pop(name)
            if line.connection is not None:
                line.connection.close()
        self.channel.destroy()
        self.directory.destroy()
