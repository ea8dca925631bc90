"""COPY_FILE_RANGE between files of two other nodes: the one with the source is asked for a ticket, the other one takes the data there with
it. docs/protocol/copies.md. What cannot be done so is EXDEV: the kernel then reads and writes.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from resmgr.copymsg import LENGTH_MAX, TICKET, Fetch, pack_fetch, pack_offer
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.ids import node_of

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.openfile import File
    from resmgr.fuse.request import Request, Step

AGAIN_AFTER = 10.0
"""Seconds after which a pair of servers that could not do it is asked again."""
SMALL = 128 * 1024
"""Bytes up to which it is quicker to read what came with OPEN and to write it behind than to send three messages one after the other."""
_NOT_TOLD = frozenset((-errno.EHOSTDOWN, -errno.EHOSTUNREACH, -errno.EINTR))
"""Of the source's node, when it is asked for a ticket: the program is told, instead of that it copies through here."""


class Pairs:
    """Which servers could not copy from which; a server that does not know the messages never can."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._not_before: dict[tuple[tuple[int, int, int], tuple[int, int, int]], float] = {}
        self._never: set[tuple[int, int, int]] = set()

    def names(self, source: File, there: File, start: int, length: int) -> tuple[str, str] | None:
        """Names of the two nodes, if it is worth while and may be tried."""
        if min(length, source.node.attr[6] - start) <= SMALL:
            return None
        one, other = node_of(source.connection.nd), node_of(there.connection.nd)
        if not one or not other or one == other:
            return None
        keys = source.node.server.key, there.node.server.key
        if self._never.intersection(keys) or self._not_before.get(keys, 0.0) > self._core.dispatch.now():
            return None
        first, second = self._core.name_of_node(one), self._core.name_of_node(other)
        return (first, second) if first and second else None

    def refused(self, source: File, there: File) -> None:
        now = self._core.dispatch.now()
        for keys in [keys for keys, when in self._not_before.items() if when <= now]:
            del self._not_before[keys]
        self._not_before[source.node.server.key, there.node.server.key] = now + AGAIN_AFTER

    def never(self, file: File) -> None:
        """Its server does not know how. Servers are those that the mount has met: as many as there are nodes and managers."""
        self._never.add(file.node.server.key)


def copy_between(core: Core, request: Request, source: File, there: File, start: int, to: int, length: int, copied: Step) -> bool:
    """Begin to copy; *copied* gets how many bytes were. False, and nothing begun: not between these."""
    names = core.pairs.names(source, there, start, length)
    if names is None:
        return False
    length = min(length, LENGTH_MAX)

    def refused(status: int, file: File) -> None:
        core.drops["copies_refused"] += 1
        if status == -errno.ENOSYS:
            core.pairs.never(file)
        else:
            core.pairs.refused(source, there)
        core.error(request, errno.EXDEV)

    def offered(request: Request, status: int, reply: Buffer) -> None:
        if request.answered:
            return
        if status in _NOT_TOLD or there.fh in core.reopening.lost:
            core.failed(request, status if status in _NOT_TOLD else -errno.EHOSTDOWN)
        elif status < 0:
            refused(status, source)
        elif len(reply) != TICKET:
            raise BadMessage("a ticket of another length")
        else:
            message = pack_fetch(there.ocb, Fetch(start, to, length, bytes(reply), names[0]))
            # Who waits for it is shown as waiting for that one from now on.
            request.connection = there.connection
            core.on_file(request, there, (message,), 0, fetched)

    def fetched(request: Request, status: int, reply: Buffer) -> None:
        if status in (-errno.ENOSYS, -errno.EXDEV) and not request.answered:
            refused(status, there)
        else:
            if status > 0:
                core.drops["copies_between"] += 1
            copied(request, status, reply)

    core.on_file(request, source, (pack_offer(source.ocb, start, length, names[1]),), TICKET + 1, offered)
    return True
