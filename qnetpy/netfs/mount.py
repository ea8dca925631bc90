"""/net as a directory that every program of the machine can use: the FUSE front end over the /net manager.

The daemon lives in a mount namespace of its own, in which this mount does not exist, so that the files it serves can never lead back into
itself; the mount is made in the namespace that the daemon came from. Copies of it that others make are kept out (`resmgr.fuse.copies`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from resmgr.channel import Connection, Kernel
from resmgr.dispatch import Dispatch
from resmgr.fuse import handover
from resmgr.fuse.copies import CopyWatch
from resmgr.fuse.machine import Machine
from resmgr.fuse.mount import Mount, MountError
from resmgr.fuse.openfile import File
from resmgr.fuse.options import WHOLE, FuseOptions, Part, Permissions, reference_page
from resmgr.fuse.servers import KernelResolver
from resmgr.fuse.session import Session
from resmgr.fuse.state import State
from resmgr.fuse.usergroups import UserGroups
from resmgr.iomsg import Target
from resmgr.users import Accounts

log = logging.getLogger(__name__)


class NetMount:
    """Serves one mount of /net, that was made before, until the kernel ends it, `end` or `close`. `detach` removes it."""

    def __init__(
        self,
        dispatch: Dispatch,
        kernel: Kernel,
        accounts: Accounts,
        root: Target,
        mount: Mount,
        device: int,
        on_end: Callable[[str], None],
        part: Part = WHOLE,
    ) -> None:
        """*mount* and *device*, its open /dev/fuse, are this object's from now on. `start` begins to serve."""
        self.point = mount.mountpoint
        self.part = part
        self.options = mount.options
        self.device = mount.device
        groups = UserGroups(accounts)
        self._mount = mount
        self._locked: list[File] = []
        self.machine = Machine(
            dispatch, KernelResolver(kernel, groups.of), root, mount.options, os.fsencode(mount.mountpoint), part, groups=groups
        )
        self.machine.name_of_node = lambda nd: kernel.name_of_node(nd)
        self._on_end = on_end
        self._session = Session(dispatch, device, self.machine, on_end, mount.namespace)
        self._copies = CopyWatch(mount)

    def start(self) -> None:
        """Begin to serve."""
        self._session.start()

    def take(self, state: State, numbers: Callable[[str], int | None], gone: Callable[[int, int], Connection]) -> None:
        """Know what another daemon knew of this mount, as of `handover.resume`; `BadState`."""
        self._locked = handover.resume(self.machine, state, numbers, gone)

    def resume(self) -> None:
        """Begin to serve what was taken."""
        self._session.resume()
        for file in self._locked:
            self.machine.reclaim(file)

    def hand_over(self, name_of: Callable[[int], str | None], done: Callable[[int, State], None]) -> None:
        """As `Session.hand_over`; the mount stays."""
        self._copies.close()
        self._session.hand_over(name_of, done)

    def forget(self, name: bytes) -> None:
        """What the kernel believes of the entry *name* of /net is not to be believed any more."""
        if not self.part.names:
            self.machine.leases.forget(self.machine.nodes.root, name)

    def silent(self, nd: int, silent: bool) -> None:
        """Node *nd* tells nothing at the moment, or does again."""
        self.machine.leases.silent(nd, silent)

    def gone(self) -> None:
        """The kernel has ended it: nothing is looked after any more."""
        self._copies.close()

    def detach(self, *, abort: bool = False) -> None:
        """Unmount, also while in use. *abort*: `close` was called, and nothing may wait any more. Blocks, for as long as the file systems
        on the way to the mountpoint take to answer: while a mount of this node is served, which may be one of them, in a worker thread."""
        try:
            self._mount.detach(abort=abort)
        except MountError as error:
            log.warning("%s", error.strerror)

    def end(self) -> None:
        """Stop serving, as if the kernel had ended it: programs inside get ENOTCONN. Nothing if it has ended."""
        if not self._session.closed:
            self._session.close()
            self._on_end("unmounted")

    def close(self) -> None:
        """Stop serving, and tell nobody: programs inside get ENOTCONN. Idempotent."""
        self._copies.close()
        self._session.close()


NET_OPTIONS = FuseOptions(permissions=Permissions.SERVER, source="qnet", subtype="qnet")
"""Defaults of a mount of /net: owners are numbers of the far side, so only the far side checks permissions."""


def options_page() -> str:
    """docs/reference/mount-options.md; a test compares."""
    return (
        "# Mount options\n\n"
        "Of `-o` of `qnet mount` and `mount -t qnet`, of `options` of `[qnet.mount]` and `[[qnet.mounts]]` in the configuration: words\n"
        "and `name=value`, separated by commas, later ones win. Made from `resmgr/fuse/options.py`, the one table of them. Times are\n"
        "seconds, sizes bytes or with K and M. nosuid and nodev always hold: what another machine says of its files gives no rights here.\n"
        "How to mount: [howto/mounts.md](../howto/mounts.md).\n\n" + reference_page(NET_OPTIONS)
    )
