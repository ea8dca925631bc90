"""A network manager inside a Trio program: dispatch, kernel, stack and modules put together, and taken apart again.

`io-pkt` (`stack.core.main`) is this in a process of its own. A program may open one itself instead (docs/howto/embed.md): its servers
and clients are then one local hop closer to the wire.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs

from resmgr.errors import Misuse
from resmgr.runner import SPIN_DEFAULT, TrioDispatch, open_dispatch
from resmgr.system import System
from stack.core.commandline import Load
from stack.core.errors import ModuleError
from stack.core.stack import Stack


@attrs.frozen
class Manager:
    """A network manager at work."""

    dispatch: TrioDispatch
    system: System
    stack: Stack


@asynccontextmanager
async def open_manager(
    loads: Sequence[Load],
    *,
    name: str = "io-pkt0",
    node_name: str = "",
    socket: str | None = None,
    spin: float = SPIN_DEFAULT,
    guest: bool = False,
) -> AsyncIterator[Manager]:
    """Load *loads* in order, then listen for programs at the path *socket* (None: for none), for the length of the block.

    *name*: of the stack, in logs. *node_name*: until a module knows better; the host's name if empty. *spin*, *guest*: see
    `resmgr.runner.open_dispatch`.
    ModuleError in one sentence for a module that cannot be loaded or a socket that cannot be made; then nothing is left behind. On the way
    out modules are unloaded, newest first.
    """
    async with open_dispatch(spin=spin, guest=guest) as dispatch:
        system = System(dispatch, node_name or os.uname().nodename)
        stack = Stack(system, os.urandom, name)
        try:
            for load in loads:
                try:
                    stack.load(load.name, load.options, kind=load.kind, wrap=load.wrap)
                except Misuse as error:
                    raise ModuleError(errno.EBUSY, f"cannot load {load.name}: {error}") from error
            if socket is not None:
                try:
                    # After the modules: who connects finds everything that was asked for.
                    system.listen(socket)
                except OSError as error:
                    where = os.path.dirname(socket)
                    raise ModuleError(error.errno or errno.EIO, f"cannot listen in {where}: {error.strerror}; see --run-dir") from error
            yield Manager(dispatch, system, stack)
        finally:
            stack.close()
            system.close()
