"""A network manager inside a Trio program: dispatch, kernel, stack and modules put together, and taken apart again.

`io-pkt` (`stack.core.main`) is this in a process of its own. A program may open one itself instead (docs/howto/embed.md): its servers
and clients are then one local hop closer to the wire.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager

import attrs

from resmgr.errors import Misuse
from resmgr.runner import SPIN_DEFAULT, TrioDispatch, open_dispatch
from resmgr.system import System
from stack.core.addresses import AddressWatch
from stack.core.commandline import Load
from stack.core.errors import ModuleError
from stack.core.ifnet import InterfaceEvent
from stack.core.isolation import SLOW_DEFAULT
from stack.core.stack import Stack
from stack.managers.iopkt import IoPktManager
from stack.managers.netdir import NetDirectory
from stack.managers.share import Share

log = logging.getLogger(__name__)


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
    prefix: str = "",
    group: int | None = None,
    workers: int = 1,
    slow_after: float = SLOW_DEFAULT,
    namespace: int | None = None,
) -> AsyncIterator[Manager]:
    """Load *loads* in order, then listen for programs at the path *socket* (None: for none), for the length of the block.

    *name*: of the stack, in logs. *node_name*: until a module knows better; the host's name if empty. *spin*, *guest*: see
    `resmgr.runner.open_dispatch`. *prefix*, *workers*: see `Stack`. *group*: whose members may mount and unmount modules, beside root and
    this process's user. *slow_after*: seconds from which on a callback is slow; 0: not measured. *namespace*: see `System.namespace`.
    ModuleError in one sentence for a module that cannot be loaded or a socket that cannot be made; then nothing is left behind. On the way
    out modules are unloaded, newest first.
    """
    async with open_dispatch(spin=spin, guest=guest) as dispatch:
        system = System(dispatch, node_name or os.uname().nodename)
        system.namespace = namespace
        clock = time.monotonic if slow_after else None
        stack = Stack(system, os.urandom, name, prefix=prefix, workers=workers, clock=clock, slow_after=slow_after)
        # Each end is gone through whatever another raises.
        with ExitStack() as ends:
            ends.callback(system.close)
            ends.callback(stack.close)
            share = Share(time.monotonic)
            ends.callback(IoPktManager(stack, os.geteuid(), group, share).close)
            ends.callback(NetDirectory(stack, share).close)
            ends.callback(_watch_addresses(stack))
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


def _watch_addresses(stack: Stack) -> Callable[[], None]:
    """Interfaces hear of their addresses from now on. Returns what ends it."""
    try:
        watch = AddressWatch(stack.dispatch, lambda: stack.interfaces)
    except OSError as error:
        log.warning("%s: no addresses of interfaces: %s", stack.name, error.strerror)
        return lambda: None
    told = (InterfaceEvent.ATTACHED, InterfaceEvent.UP)
    stack.on_interface(lambda event, interface: watch.look() if event in told else None)
    return watch.close
