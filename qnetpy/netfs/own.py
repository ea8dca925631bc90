"""A mount of a user's own, without any right: /net for one command and what it starts, in a namespace of theirs.

The process moves into a user namespace of its own, in which it may mount and its user is who he was, and into a mount namespace; so nobody
else sees the mount, and it ends with the last program in there. It asks the node by the daemon's socket, as every program does: the
daemon knows by the socket who it is, so whatever the kernel says of users in there, the far side hears of this user alone.

Everything is shown as belonging to this user: no other has a number in there, and a kernel lets nobody write to what belongs to a number
that its namespace does not have. What may be done, the far side decides as ever.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Sequence

import attrs
import trio

from resmgr.aio import Process, open_process
from resmgr.channel import CHID_PATHMGR, ND_LOCAL, PID_SYSTEM, Connection, Nd
from resmgr.errors import ResmgrError
from resmgr.fuse.machine import Machine
from resmgr.fuse.mount import Mount
from resmgr.fuse.options import FuseOptions, Part
from resmgr.fuse.options import parse_options as parse_options
from resmgr.fuse.session import Session
from resmgr.iomsg import Target
from resmgr.nodes.aio import node_events

CLONE_NEWUSER = 0x10000000
CLONE_NEWNS = 0x20000
NET = (b"net",)
"""Where /net is in the node's pathname space."""


@attrs.frozen
class NotStarted(Exception):
    """The command could not be started, with that *errno*; *why* in words."""

    errno: int
    why: str


class OwnResolver:
    """Every connection is this process's own."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def connection(self, target: Target, via: Connection | None, uid: int, gid: int) -> Connection:
        nd = ND_LOCAL if via is None else via.nd
        return self._process.connect(Nd(target.nd) if target.nd else nd, target.pid, target.chid)


def move() -> None:
    """Into namespaces of this user's own. Before any other thread is there. OSError in one sentence."""
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        code = ctypes.get_errno()
        hint = "; this machine lets no ordinary user have a user namespace" if code in (errno.EPERM, errno.ENOSPC) else ""
        raise OSError(code, f"no namespace of our own: {os.strerror(code)}{hint}")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def run(socket: str, names: tuple[bytes, ...], point: str, options: FuseOptions, command: Sequence[str]) -> int:
    """Mount what *names* lead to from /net on the directory *point*, run *command* there, and return its exit status. Moves this process.
    OSError when it cannot be mounted; `NotStarted`."""
    move()
    mount = Mount(point, attrs.evolve(options, owner=(os.geteuid(), os.getegid())))
    device = mount.attach()
    return trio.run(_serve, socket, Part(NET + names, os.fsencode(point) if not names else b""), mount, device, command)


async def _serve(socket: str, part: Part, mount: Mount, device: int, command: Sequence[str]) -> int:
    # A command that is ended from the terminal ends; who serves it its files goes on until then. Handlers are not inherited by it.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)
    async with open_process(socket) as process:
        machine = Machine(
            process.dispatch,
            OwnResolver(process),
            Target(ND_LOCAL, PID_SYSTEM, CHID_PATHMGR),
            mount.options,
            os.fsencode(mount.mountpoint),
            part,
        )
        names: dict[int, str] = {}
        machine.name_of_node = lambda nd: names.get(nd, "")
        session = Session(process.dispatch, device, machine, lambda reason: None)
        session.start()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_learn_names, process, names)
                status = await _run(command)
                nursery.cancel_scope.cancel()
        finally:
            mount.detach()
            session.close()
    if isinstance(status, NotStarted):
        raise status
    return status if status >= 0 else 128 - status


async def _run(command: Sequence[str]) -> int | NotStarted:
    """Run it away from this thread, which answers the kernel: starting looks at the program, which may lie on the mount."""
    try:
        return (await trio.to_thread.run_sync(lambda: subprocess.run(command, check=False))).returncode
    except RuntimeError:
        # Of the thread.
        code = errno.EAGAIN
    except OSError as error:
        code = error.errno or errno.EIO
    if code != errno.EAGAIN:
        return NotStarted(code, os.strerror(code).lower())
    most, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    limit = "" if most == resource.RLIM_INFINITY else f", of which this user may have {most}"
    return NotStarted(code, f"no room for a process or thread{limit}")


async def _learn_names(process: Process, names: dict[int, str]) -> None:
    """Keep *names*, of nodes by their numbers, for copies between them."""
    try:
        with node_events(process.kernel, process.credentials) as events:
            async for event in events:
                if event.node:
                    names[event.nd] = event.node
    except ResmgrError:
        # The daemon is gone, and with it the mount.
        return
