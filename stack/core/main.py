"""`io-pkt`: a network manager (`stack.core.manager`) as a process of its own.

Start: lock of the instance, dispatch, kernel, modules in the order of the command line, then one line on standard output and `READY=1` on
the descriptor that was asked for. End: SIGTERM or SIGINT; modules are unloaded in reverse order. What goes wrong on the way is one line on
standard error: exit status 2 for a command line that is wrong, 1 for everything else.

Heavy imports wait until the command line is known to be good.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import TYPE_CHECKING

from stack.core.commandline import THREADS_MAX, USAGE, CommandLine, UsageError, parse_command_line
from stack.core.errors import ModuleError
from stack.rundir import SOCKET, default_run_dir

if TYPE_CHECKING:
    from stack.core.stack import Stack


def main(argv: list[str] | None = None) -> int:
    """The console script; *argv* without the program's name. Returns the exit status."""
    try:
        line = parse_command_line(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        return _fail(str(error), 2)
    if line.help:
        print(USAGE, end="")
        return 0
    try:
        if line.options_of is not None:
            _print_options(line.options_of)
            return 0
        return _run(line)
    except ModuleError as error:
        return _fail(str(error), 1)


def _fail(sentence: str, status: int) -> int:
    print(f"io-pkt: {sentence}", file=sys.stderr)
    return status


def _print_options(name: str) -> None:
    from stack.core.loader import find_module

    for option, default in find_module(name).usage():
        print(f"{option:32}{default}".rstrip())


def _run(line: CommandLine) -> int:
    import gc
    import time

    # Until all is loaded nothing becomes garbage, and looking for it takes a sixth of the start.
    gc.disable()
    import trio

    from resmgr import compiled
    from resmgr.heap import keep_freed_memory
    from stack.core import logs
    from stack.core.runlock import locked

    keep_freed_memory()
    with logs.written(line.verbose, time.monotonic):
        if compiled.problem():
            logging.getLogger(__name__).warning("the compiled modules are not used: %s", compiled.problem())
        run_dir = line.run_dir or default_run_dir(line.instance)
        kept = _rights_kept(line)
        with locked(run_dir, f"io-pkt{line.instance}", line.user):
            namespace = _own_mounts()
            _take_rights(line, kept)
            return trio.run(_manage, line, run_dir, namespace)


def _own_mounts() -> int | None:
    """Move into a mount namespace of our own while there are no other threads, which would stay behind: a module that mounts
    something and serves the machine's files must not find the one in the other, and it may be loaded at any time. None without the right:
    then such a module says so.
    """
    from resmgr.fuse.mount import MountError, private_namespace

    try:
        return private_namespace()
    except MountError:
        return None


def _rights_kept(line: CommandLine) -> frozenset[str]:
    """The capabilities that the user of `-U` needs. ModuleError when he cannot read what is imported later: modules import when they are
    loaded, and that is known before anything is changed."""
    import trio

    import stack
    from stack.core.loader import find_module
    from stack.rights import unreadable

    if line.user is None:
        return frozenset()
    modules = [(load.name, load.kind) for load in line.loads]
    needed = {name for one in modules for name in find_module(*one).capabilities}
    if line.scheduling is not None:
        needed.add("SYS_NICE")
    kept = frozenset(needed | set(line.keep))
    try:
        path = unreadable(line.user, kept, (os.__file__, trio.__file__, *(os.path.join(one, "rights.py") for one in stack.__path__)))
    except OSError as error:
        raise ModuleError(error.errno or errno.EPERM, error.strerror or str(error)) from error
    if path:
        raise ModuleError(
            errno.EACCES,
            f"user {line.user.uid} cannot read {path}, which Python imports from: -U needs an installation that he can read",
        )
    return kept


def _take_rights(line: CommandLine, kept: frozenset[str]) -> None:
    """Give up what is not needed, before there are threads and before a module runs."""
    from stack.rights import become, schedule

    if line.user is not None:
        try:
            become(line.user, kept)
        except OSError as error:
            raise ModuleError(error.errno or errno.EPERM, error.strerror or str(error)) from error
    if line.scheduling is not None:
        try:
            schedule(line.scheduling)
        except OSError as error:
            raise ModuleError(error.errno or errno.EPERM, error.strerror or str(error)) from error


async def _manage(line: CommandLine, run_dir: str, namespace: int | None) -> int:
    import gc
    import signal

    import trio

    from stack.core.manager import open_manager

    socket = os.path.join(run_dir, SOCKET)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        opened = open_manager(
            line.loads,
            name=f"io-pkt{line.instance}",
            socket=socket,
            spin=line.poll_us * 1e-6,
            prefix=line.prefix,
            group=line.group,
            workers=line.threads or min(os.cpu_count() or 1, THREADS_MAX),
            slow_after=line.slow_ms * 1e-3,
            namespace=namespace,
        )
        async with opened as manager:
            # What is there now stays. To look at all of it for garbage again and again would stop everything for 15 ms each time.
            gc.collect()
            gc.freeze()
            gc.enable()
            _tell_ready(manager.stack, line.ready_fd)
            async for _ in signals:
                break
    return 0


def _tell_ready(stack: Stack, ready_fd: int | None) -> None:
    from stack.wire.ethernet import mac_text

    links = [f"{one.name} {mac_text(one.mac)} mtu {one.mtu} {'up' if one.up else 'down'}" for one in stack.interfaces]
    print(f"{stack.name} ready: {'; '.join(links) or 'no interfaces'}; modules {' '.join(stack.statistics().modules)}", flush=True)
    if ready_fd is not None:
        try:
            os.write(ready_fd, b"READY=1\n")
            os.close(ready_fd)
        except OSError as error:
            raise ModuleError(error.errno or errno.EIO, f"cannot write to --ready-fd {ready_fd}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
