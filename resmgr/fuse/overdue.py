"""What changes a file and was given up while its message was at the server: nothing that comes later may overtake it.

A program that has a signal is told EINTR though its server says nothing (`interrupts`). What it does next to the same file waits, as for
writes on the way (`behind`), until the server has answered or its connection is gone.
"""

from __future__ import annotations

from os import O_TRUNC
from stat import S_IFREG
from typing import TYPE_CHECKING, Final

from resmgr.fuse.behind import OVERHEAD, Behind
from resmgr.fuse.formats import Opcode
from resmgr.iomsg import SET_SIZE

if TYPE_CHECKING:
    from resmgr.fuse.request import Request

_WRITE: Final = int(Opcode.WRITE)
_FALLOCATE: Final = int(Opcode.FALLOCATE)
_COPY: Final = int(Opcode.COPY_FILE_RANGE)
_OPEN: Final = int(Opcode.OPEN)
_SETATTR: Final = int(Opcode.SETATTR)


def given_up(request: Request) -> None:
    """The request is being answered while its message is at the server."""
    opcode, node, core = request.opcode, request.node, request.core
    changes = (
        opcode in (_WRITE, _FALLOCATE, _COPY)
        or (opcode == _SETATTR and request.extra & SET_SIZE)
        or (opcode == _OPEN and request.extra & O_TRUNC)
    )
    if opcode == _COPY:
        # The request's own node is what is copied.
        node = next((change.node for change in request.changes if change.node is not None), node)
    if not changes or node.mode & 0o170000 != S_IFREG:
        return
    if node.behind is None:
        node.behind = Behind()
    behind = node.behind
    number = behind.begin_unknown()
    core.behind_cost += OVERHEAD
    core.drops["given_up_at_server"] += 1

    def arrived() -> None:
        core.behind_cost -= OVERHEAD
        behind.finish(number, core.dispatch.now())

    request.overdue = arrived
