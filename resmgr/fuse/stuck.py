"""Requests that the kernel waits for: who waits, for what, on whom; their end by command; and what is written and not there yet.

A request waits for the server that its message went to, which after a redirect is not the one that its directory belongs to. One that is
ended here is answered first and its server asked to unblock then, so that the program hears the errno that was chosen; what the server
says later is thrown away, and what it opened is closed (`Core.late`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.fuse.formats import Opcode
from resmgr.fuse.request import Outstanding, Request

if TYPE_CHECKING:
    from resmgr.fuse.core import Core

HELD_AGAIN: Final = 0.05
"""Seconds after which a request whose program's memory is being read or written is ended once more."""


def waiting(core: Core) -> list[Outstanding]:
    """Every request that the kernel waits for, oldest first."""
    now = core.dispatch.now()
    return [
        Outstanding(
            request.unique,
            Opcode(request.opcode).name,
            now - request.came,
            _path(request),
            _server(request),
            request.user[0],
            request.pid,
            request.interrupted,
            _first(core, request),
        )
        for request in sorted(core.outstanding.values(), key=lambda request: request.came)
    ]


def _path(request: Request) -> str:
    path = request.node.path()
    if request.name:
        path = path.rstrip(b"/") + b"/" + request.name
    return path.decode("utf-8", "backslashreplace")


def _server(request: Request) -> tuple[int, int, int]:
    # Not there before its first message with a base handle.
    connection: Connection | None = getattr(request, "connection", None)
    return request.node.server.key if connection is None else (connection.nd, connection.pid, connection.chid)


def _first(core: Core, request: Request) -> str:
    if _server(request) != core.servers.root.key:
        return ""
    above = core.nodes.root.above
    return (above[0].decode("utf-8", "backslashreplace") if above else _path(request).lstrip("/")).partition("/")[0]


def abort(core: Core, unique: int, code: int) -> bool:
    """Answer a request with errno *code* now, whatever its server does. False when nobody waits for it (any more)."""
    request = core.outstanding.get(unique)
    if request is None or request.answered:
        return False
    if request.held:
        core.dispatch.call_at(core.dispatch.now() + HELD_AGAIN, lambda: _end(core, unique, code))
        return True
    core.drops["aborted"] += 1
    pending = request.pending
    core.error(request, code)
    if pending is not None:
        pending.unblock()
    return True


def _end(core: Core, unique: int, code: int) -> None:
    abort(core, unique, code)


def unwritten(core: Core) -> dict[int, tuple[int, int]]:
    """Files with writes on the way that their programs were told are done, and bytes of these, by the number of the server's node."""
    found: dict[int, tuple[int, int]] = {}
    seen = set()
    for file in core.files.values():
        behind = file.node.behind
        if behind is None or not behind.outstanding or file.node in seen:
            continue
        seen.add(file.node)
        nd = int(file.connection.nd)
        files, size = found.get(nd, (0, 0))
        found[nd] = files + 1, size + sum(end - start for start, end in behind.outstanding.values())
    return found
