"""`/dev/name/local`: the names under which servers of this node can be found (QNX name_attach, without gns).

A directory with one entry per attached name. Looking a name up answers with the server's channel as `Entry.target`; the client
connects there and nothing of its messages passes through here. The server itself sees nothing of the lookup (QNX sends it an `_IO_CONNECT`
message, which every name server must know to answer).

Names are attached by messages to `(0, PID_SYSTEM, CHID_NAMES)`; see `protocol`. A name lives as long as the connection that attached it, so
it goes with its process.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from stat import S_IFSOCK

from resmgr.channel import CHID_NAMES, ND_LOCAL, PID_SYSTEM, PULSE_DISCONNECT, Channel, Kernel, Message, Pulse
from resmgr.iofunc.handle import Handle
from resmgr.iofunc.node import Directory, Node, NodeClient, TreeManager
from resmgr.iomsg import NAME_MAX, Entry, Target
from resmgr.iorequest import ConnectRequest
from resmgr.names.protocol import ATTACH, DETACH, REQUEST

NAMES_PER_CONNECTION = 256
"""Stops a process from filling the table."""
NAMES_MAX = 16384


class Name(Node):
    """A server that can be found. Listed as a socket: something that one connects to."""

    mode = S_IFSOCK | 0o666

    def __init__(self, target: Target, uid: int, gid: int, owner: int) -> None:
        self.target = target
        self.uid = uid
        self.gid = gid
        self.owner = owner
        """scoid of the connection that attached it; 0: this node itself."""


class NameDirectory(TreeManager):
    """Serves the directory, and the messages that attach names. Attach its `target` to `protocol.PREFIX`."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._names: dict[bytes, Node] = {}
        self._owned: dict[int, dict[bytes, None]] = {}
        super().__init__(kernel, Directory(self._names), name="names")
        self._requests = kernel.channel(self._request, on_pulse=self._pulse, pid=PID_SYSTEM, chid=CHID_NAMES, remote=False)

    def attach(self, name: bytes, channel: Channel) -> int:
        """Name a channel of the node itself. 0 or an errno."""
        return self._attach(name, Name(Target(ND_LOCAL, channel.pid, channel.chid), 0, 0, 0))

    def detach(self, name: bytes) -> int:
        """Take back a name of the node itself. 0 or an errno."""
        return self._detach(name, 0)

    def names(self) -> Iterator[bytes]:
        yield from self._names

    def destroy(self) -> None:
        super().destroy()
        self._requests.destroy()

    def _lookup(self, message: Message, client: NodeClient, request: ConnectRequest, base: Handle | None) -> None:
        node, path, _ = self._walk(client, base, request.path)
        if isinstance(node, Name):
            message.reply(0, Entry(node.target, 0, 0, self.attr(node, path)).pack())
        else:
            super()._lookup(message, client, request, base)

    def _request(self, message: Message) -> None:
        if message.info.nd != ND_LOCAL:
            message.error(errno.EPERM)
            return
        if not REQUEST.size < message.msglen == len(message.data) <= REQUEST.size + NAME_MAX:
            message.error(errno.EINVAL)
            return
        operation, _, chid = REQUEST.unpack_from(message.data)
        name = bytes(message.data[REQUEST.size :])
        who = message.info.credentials
        owner = message.info.scoid
        if operation == ATTACH:
            code = self._attach(name, Name(Target(ND_LOCAL, who.pid, chid), who.uid, who.gid, owner))
        elif operation == DETACH:
            code = self._detach(name, owner)
        else:
            code = errno.ENOSYS
        if code:
            message.error(code)
        else:
            message.reply()

    def _attach(self, name: bytes, node: Name) -> int:
        if not 0 < len(name) <= NAME_MAX or b"/" in name or b"\0" in name or name in (b".", b".."):
            return errno.EINVAL
        if name in self._names:
            return errno.EEXIST
        owned = self._owned.setdefault(node.owner, {})
        if (node.owner and len(owned) >= NAMES_PER_CONNECTION) or len(self._names) >= NAMES_MAX:
            return errno.EAGAIN
        node.changed = self._kernel.dispatch.wall()
        self.root.changed = node.changed
        self._names[name] = node
        owned[name] = None
        return 0

    def _detach(self, name: bytes, owner: int) -> int:
        owned = self._owned.get(owner, {})
        if name not in owned:
            return errno.ENOENT
        del owned[name]
        if not owned:
            del self._owned[owner]
        del self._names[name]
        self.root.changed = self._kernel.dispatch.wall()
        return 0

    def _pulse(self, pulse: Pulse) -> None:
        if pulse.code == PULSE_DISCONNECT:
            for name in list(self._owned.get(pulse.info.scoid, ())):
                self._detach(name, pulse.info.scoid)
