"""Watched directories of a file system in memory: what hostfs hears from the kernel, here told by the tree itself."""

from __future__ import annotations

from collections import Counter

from resmgr.channel import Message
from resmgr.dispatch import Dispatch
from resmgr.errors import BadMessage
from resmgr.handlelist import parse_drop
from resmgr.iofunc.events import Listener
from resmgr.iofunc.handle import Client
from resmgr.iomsg import WATCH_DROP, WATCH_NEXT
from resmgr.testing.memtree import Inode


class MemWatch:
    """Everything is told to every client that watches. `muted`: changes are not told, as if that were broken. `spares`: a client
    is not told what it did itself, and hears in the answers what is SURE."""

    def __init__(self, dispatch: Dispatch) -> None:
        self.muted = False
        self.spares = False
        self.maker: Client | None = None
        """Whose message is being carried out."""
        self.listeners: dict[Client, Listener[Client]] = {}
        self._dispatch = dispatch
        self._queued: Counter[int] = Counter()
        self._inodes: dict[int, Inode] = {}

    def add(self, client: Client, inode: Inode) -> bool:
        self._of(client).watched[inode.ino] = inode.ino
        self._inodes[inode.ino] = inode
        return True

    def tells(self, client: Client, directory: Inode) -> bool:
        """Whether *client* is told of what happens in *directory*."""
        listener = self.listeners.get(client)
        return listener is not None and directory.ino in listener.watched

    def message(self, message: Message, client: Client, subtype: int) -> None:
        """WATCH."""
        if subtype == WATCH_NEXT:
            self._of(client).next(message)
        elif subtype == WATCH_DROP:
            for ino in parse_drop(message.data):
                self._of(client).watched.pop(ino, None)
            message.reply(0)
        else:
            raise BadMessage("watch of an unknown kind")

    def gone(self, client: Client) -> None:
        listener = self.listeners.pop(client, None)
        if listener is not None:
            listener.end()

    def _of(self, client: Client) -> Listener[Client]:
        listener = self.listeners.get(client)
        if listener is None:
            listener = self.listeners[client] = Listener(client, self._dispatch, self._queued)
        return listener

    def sure(self, client: Client, inode: Inode) -> bool:
        """Whether *client* is told of every change of *inode* by others, by a name of it."""
        watched = {} if client not in self.listeners else self.listeners[client].watched
        return self.spares and any(
            any(other is inode for other, _ in directory.entries.values()) for ino, directory in self._inodes.items() if ino in watched
        )

    def name(self, directory: Inode, name: bytes, kind: int) -> None:
        """*name* in *directory* has changed."""
        if not self.muted:
            for listener in self.listeners.values():
                if directory.ino in listener.watched and not (self.spares and listener.client is self.maker):
                    listener.tell(directory.ino, kind, name)

    def inode(self, inode: Inode, kind: int) -> None:
        """The object has changed, by whatever names it has."""
        if self.muted:
            return
        for directory in self._inodes.values():
            for name, (other, _) in directory.entries.items():
                if other is inode:
                    self.name(directory, name, kind)
