"""Tokens of directories: by them a server finds again what a program works in, wherever it is by then (docs/protocol/failures.md).

The kernel does not say in which directories programs stand. So each directory whose base handle is kept for a while is asked for its
token (`idle`), many of them by one message that nobody waits for. The token is used when the handle is not there any more: to walk
(`walk`), and to open again what was open (`reopen`).

A handle that came later, by a path, may be another directory's with the same inode number. So the token is asked for anew then; if it is
another one, and the server says that the first one's directory is not this one, the path leads to a new node from then on, and who stands
in the old one is told ESTALE.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from functools import partial
from os import O_DIRECTORY, O_PATH
from typing import TYPE_CHECKING

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse.request import GONE
from resmgr.fuse.walk import ENTRY_MAX
from resmgr.handlelist import pack_identify, parse_tokens
from resmgr.iomsg import IDENTIFY_MAX, REOPEN, REQUEST, TOKEN_MAX, Connect, Io

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node

TOKENS_MAX = 16384
"""Directories of which something is kept, 2 MB. The oldest go: they are found by their paths only. Stops a walk through a huge tree."""
_REPLY = IDENTIFY_MAX * (1 + TOKEN_MAX)
Kept = tuple["Node", int]
"""A directory and its base handle."""


class Tokens:
    """Those of one mount. Counts in `Core.drops`: `identified` (tokens that came), `directories_replaced`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._of: dict[Node, tuple[bytes, float]] = {}
        """The token, b"": there is none, and when it was asked for."""
        self._under_way: dict[Connection, int] = {}
        """Questions that are: a server that does not answer is asked no more."""

    def of(self, node: Node) -> bytes:
        """The token of directory *node*; b"": none."""
        known = self._of.get(node)
        return b"" if known is None else known[0]

    def asked(self, node: Node) -> float:
        """When it was asked for last and the server said what it is, or that there is none; 0: never."""
        known = self._of.get(node)
        return 0.0 if known is None else known[1]

    def set(self, node: Node, token: bytes, at: float) -> None:
        """*node*'s token, as of *at*."""
        self._of.pop(node, None)
        self._of[node] = (token, at)
        if len(self._of) > TOKENS_MAX:
            del self._of[next(iter(self._of))]

    def forget(self, node: Node) -> None:
        """The kernel has forgotten *node*."""
        self._of.pop(node, None)

    def ask(self, wanted: dict[Connection, list[Kept]]) -> None:
        """Ask for the tokens of directories by their base handles, on connections on which no such question is under way."""
        now = self._core.dispatch.now()
        for connection, kept in wanted.items():
            if connection in self._under_way:
                continue
            self._under_way[connection] = -(-len(kept) // IDENTIFY_MAX)
            for start in range(0, len(kept), IDENTIFY_MAX):
                batch = kept[start : start + IDENTIFY_MAX]
                message = pack_identify(*(handle for _, handle in batch))
                connection.submit((message,), _REPLY, partial(self._came, connection, batch, now))

    def _came(self, connection: Connection, batch: list[Kept], at: float, status: int, reply: Buffer) -> None:
        core = self._core
        left = self._under_way[connection] = self._under_way[connection] - 1
        if not left:
            del self._under_way[connection]
        if status in GONE:
            return
        server = batch[0][0].server
        tokens = [b""] * len(batch)
        if status == -errno.ENOSYS:
            server.no_tokens = True
        elif status == -errno.EOPNOTSUPP:
            # One that knows tokens of files only.
            server.no_directories = True
        if status >= 0:
            try:
                tokens = parse_tokens(reply, len(batch))
            except BadMessage:
                core.drops["bad_reply"] += 1
        for (node, handle), token in zip(batch, tokens, strict=True):
            if node.handles.get(connection) != handle:
                continue
            before = self.of(node)
            core.drops["identified"] += bool(token)
            if before and token and before != token:
                self.set(node, before, at)
                head = REQUEST.pack(Io.CONNECT, Connect.REOPEN, O_PATH | O_DIRECTORY, handle)
                done = partial(self._compared, connection, node, token, at)
                connection.submit((head, REOPEN.pack(len(before)), before), ENTRY_MAX, done)
            else:
                # A server that cannot say now takes nothing away.
                self.set(node, token or before, at)

    def _compared(self, connection: Connection, node: Node, token: bytes, at: float, status: int, reply: Buffer) -> None:
        """Whether what *node*'s path leads to, whose token is *token*, is what it led to before."""
        core = self._core
        if core.nodes.get(node.nodeid) is not node or (status < 0 and status != -errno.ESTALE):
            return
        if status == 0:
            # As after another boot of the server's machine.
            self.set(node, token, at)
            with suppress(BadMessage):
                found = core.parse_entry(connection, next(iter(node.server.connections), (0, 0)), reply)
                core.handles.close_later(found.connection, found.handle)
            return
        core.drops["directories_replaced"] += 1
        core.handles.drop_all(node)
        core.leases.ended(node)
        if node.named and node.parent is not None:
            parent, name = node.parent, node.name
            core.nodes.unname(node, parent, name)
            core.leases.forget(parent, name)
