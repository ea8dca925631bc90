"""The objects of a tree: what a manager's author subclasses. Served by `resmgr.iofunc.node.TreeManager`.

Methods run in dispatch context and must not block. One that has nothing to answer yet returns None and calls `notify` when that may have
changed, or returns a `Later` (`waiting`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping

from resmgr.access import MappedUser
from resmgr.dispatch import Buffer
from resmgr.iofunc.devctl import Command, carry_out, commands_of
from resmgr.iofunc.handle import Handle
from resmgr.iofunc.waiting import Later, Waiters
from resmgr.iomsg import POLL_IN, POLL_OUT, Target
from resmgr.iorequest import SetAttr


class Node:
    """One object: a value, a device, a directory. Override what it can do. `mode` includes the type."""

    mode = 0o100444
    uid = 0
    gid = 0
    changed = 0.0
    """Seconds since the epoch, told as all three times; 0: the manager's start."""
    live = False
    """What it holds changes by itself, or `poll` depends on how far somebody has read: then nothing of it is kept at clients."""
    commands: Mapping[int, tuple[Command, str]] = {}
    """What `devctl` knows: the methods marked with `resmgr.iofunc.devctl.answers`."""
    waiters: Waiters | None = None
    """What waits for `notify`; the manager's."""

    def __init_subclass__(cls) -> None:
        cls.commands = commands_of(cls)

    def size(self) -> int:
        """Bytes, as stat tells. 0 is usual for what is made when it is opened."""
        return 0

    def open(self, user: MappedUser, flags: int) -> object | None:
        """Called at open, after the permission check. What it returns is given to `read`, `write` and `close` as *state*."""
        return None

    def read(self, state: object | None, offset: int, size: int) -> Buffer | Later[Buffer] | None:
        """At most *size* bytes (more is cut), b"" at the end; None: nothing now. Then the reader waits for `notify`, or gets EAGAIN if he
        does not want to."""
        raise OSError(errno.EINVAL, "cannot be read")

    def write(self, state: object | None, offset: int, data: Buffer) -> int | Later[int] | None:
        """Bytes taken; None: no room now, as for `read`. *offset* is OFFSET_APPEND for the end. *data* is only valid in this call."""
        raise OSError(errno.EINVAL, "cannot be written")

    def truncate(self, size: int) -> None:
        """A shell's `> name` comes as this and a write; by default it does nothing for something writable."""

    def change(self, change: SetAttr) -> None:
        raise PermissionError(errno.EPERM, "attributes are fixed")

    def devctl(self, state: object | None, command: int, data: Buffer) -> tuple[int, Buffer] | Later[tuple[int, Buffer]]:
        """(result, data back). QNX: an unknown command is ENOTTY. By default what `commands` says."""
        return carry_out(self, self.commands, state, command, data)

    def poll(self, state: object | None) -> int:
        """POLL_* conditions that hold now. By default as files are: always ready."""
        return POLL_IN | POLL_OUT

    def notify(self) -> None:
        """Something has changed: whoever waits for this node is looked at again. In dispatch context."""
        if self.waiters is not None:
            self.waiters.look()

    def close(self, state: object | None) -> None:
        """The last use of an open is gone, or its client is."""


class Value(Node):
    """Text made by a callable when it is opened, so that a reader sees one state however it reads."""

    def __init__(self, text: Callable[[], bytes], mode: int = 0o444) -> None:
        self._text = text
        self.mode = 0o100000 | mode

    def open(self, user: MappedUser, flags: int) -> object | None:
        return self._text()

    def read(self, state: object | None, offset: int, size: int) -> Buffer:
        text = state if isinstance(state, bytes) else b""
        return text[offset : offset + size]


class Setting(Value):
    """A one-value device: reading tells it, writing (a line) sets it. *put* may raise OSError, EINVAL for instance."""

    def __init__(self, get: Callable[[], bytes], put: Callable[[bytes], None], mode: int = 0o644) -> None:
        super().__init__(get, mode)
        self._put = put

    def write(self, state: object | None, offset: int, data: Buffer) -> int:
        self._put(bytes(data))
        return len(data)


class Link(Node):
    """A symbolic link."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.mode = 0o120777

    def size(self) -> int:
        return len(self.text)


class Elsewhere(Node):
    """A name served by somebody else: a walk that reaches it is answered with a redirect to *target*, base handle *handle*."""

    mode = 0o040555

    def __init__(self, target: Target, handle: int = 0) -> None:
        self.target = target
        self.handle = handle


class Directory(Node):
    """A directory. Override `lookup` and `entries` for one that is made on demand."""

    mode = 0o040555

    def __init__(self, nodes: dict[bytes, Node] | None = None) -> None:
        self.nodes = {} if nodes is None else nodes

    def lookup(self, name: bytes) -> Node | None:
        return self.nodes.get(name)

    def entries(self) -> Iterable[tuple[bytes, Node]]:
        """Names and nodes; called once per opening, so that a listing is of one moment."""
        return self.nodes.items()

    def create(self, name: bytes, user: MappedUser, mode: int) -> Node:
        """Make the node of a new *name*, which somebody opens with O_CREAT; *mode* are permissions. Called after the permission check."""
        raise OSError(errno.EROFS, "the tree is fixed")

    def remove(self, name: bytes, user: MappedUser) -> None:
        """Take away *name*, which is there and no directory. Who has it open keeps it."""
        raise OSError(errno.EROFS, "the tree is fixed")


class NodeHandle(Handle):
    """A base handle or OCB of a node. `path` gives it its inode number."""

    __slots__ = ("flags", "listing", "node", "opened", "path", "state")

    def __init__(self, node: Node, path: bytes) -> None:
        super().__init__()
        self.node = node
        self.path = path
        self.opened = False
        self.flags = 0
        self.state: object | None = None
        self.listing: list[tuple[bytes, Node]] | None = None

    def release(self) -> None:
        if self.opened:
            self.node.close(self.state)


def opened(handle: Handle) -> NodeHandle:
    """*handle*, if it is an open control block."""
    assert isinstance(handle, NodeHandle)
    if not handle.opened:
        raise OSError(errno.EBADF, "not open")
    return handle
