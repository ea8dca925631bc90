"""`resmgr.manage` for the machine's own daemon: a resource manager is

    from qnetpy.manage import Directory, Node, Value, serve

    serve("/dev/clock", Value(lambda: time.ctime().encode() + b"\\n"))

The daemon's socket is `socket` in $QNET_RUN_DIR, else in /run/qnet; a machine with another run_dir passes *socket*.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from resmgr import manage
from resmgr.iofunc.devctl import Values as Values
from resmgr.iofunc.devctl import answers as answers
from resmgr.iofunc.devctl import command as command
from resmgr.iofunc.devctl import command_both as command_both
from resmgr.iofunc.devctl import command_from as command_from
from resmgr.iofunc.devctl import command_to as command_to
from resmgr.iofunc.nodes import Directory as Directory
from resmgr.iofunc.nodes import Link as Link
from resmgr.iofunc.nodes import Node as Node
from resmgr.iofunc.nodes import Setting as Setting
from resmgr.iofunc.nodes import Value as Value
from resmgr.iofunc.static import StaticDirectory as StaticDirectory
from resmgr.iofunc.waiting import Later as Later
from resmgr.iomsg import OFFSET_APPEND as OFFSET_APPEND
from resmgr.iomsg import POLL_HUP as POLL_HUP
from resmgr.iomsg import POLL_IN as POLL_IN
from resmgr.iomsg import POLL_OUT as POLL_OUT
from resmgr.iomsg import POLL_PRI as POLL_PRI
from resmgr.manage import Managed as Managed
from resmgr.pathspace import Attach as Attach


def daemon_socket() -> str:
    """Where this machine's daemon listens."""
    return os.path.join(os.environ.get("QNET_RUN_DIR") or "/run/qnet", "socket")


@asynccontextmanager
async def manager(
    path: str | Sequence[str], node: Node, *, flags: Attach = Attach.DEFAULT, local: bool = False, socket: str = ""
) -> AsyncIterator[Managed]:
    """See `resmgr.manage.manager`."""
    async with manage.manager(socket or daemon_socket(), path, node, flags=flags, local=local) as managed:
        yield managed


def serve(
    path: str | Sequence[str],
    node: Node,
    *,
    flags: Attach = Attach.DEFAULT,
    local: bool = False,
    ready: Callable[[Managed], None] | None = None,
    socket: str = "",
) -> None:
    """See `resmgr.manage.serve`."""
    manage.serve(socket or daemon_socket(), path, node, flags=flags, local=local, ready=ready)
