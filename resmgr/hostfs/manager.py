"""HostFs: the channel that serves a directory of the Linux file system to local and remote clients.

A request becomes an operation on names (`connects`) or on something open (`inout`, `writing`); `running` carries it out as the client's
mapped user.

What a client may see is its export scope (`resmgr.access.Scope`), taken when a handle is made and inherited along walks. A handle follows
its object like any open descriptor: a directory that somebody moves out of an export stays open for the client that has it. A new policy
closes the handles of all remote clients, so what was taken away is gone at once.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from functools import partial

from resmgr.access import SCOPE_NONE, Policy
from resmgr.channel import PID_SYSTEM, Kernel
from resmgr.hostfs import connects, inout
from resmgr.hostfs.delegating import HostDelegations
from resmgr.hostfs.device import Devices
from resmgr.hostfs.fetches import Fetches
from resmgr.hostfs.grace import Entry
from resmgr.hostfs.identity import Switch
from resmgr.hostfs.locks import HostLocks
from resmgr.hostfs.mountpoints import MountPoints
from resmgr.hostfs.objects import HostClient, HostHandle
from resmgr.hostfs.offers import Offers
from resmgr.hostfs.operations import Operations
from resmgr.hostfs.reopen import Reopening, boot_id
from resmgr.hostfs.running import Running
from resmgr.hostfs.streams import DeviceIo
from resmgr.hostfs.syscalls import process_umask
from resmgr.hostfs.watching import Watching
from resmgr.hostfs.writing import FIRST_PART
from resmgr.iofunc.handletable import HANDLES_PER_CLIENT, HANDLES_PER_MANAGER
from resmgr.iofunc.lanes import Lanes
from resmgr.iofunc.manager import Manager
from resmgr.iomsg import Target
from resmgr.refusals import Refusals


class HostFs(Running):
    """Serves directory *root*; *prefix* is where the pathname space shows it, and what export paths are relative to.

    The caller raises RLIMIT_NOFILE and should set the process's umask to 0 (then default ACLs work as at home); another umask is made good
    for, file by file. `counters` are named events; `switch.problem` says which identities cannot be served here.
    """

    def __init__(
        self,
        kernel: Kernel,
        policy: Policy,
        *,
        root: bytes | str = b"/",
        prefix: bytes = b"/",
        pid: int = PID_SYSTEM,
        chid: int | None = None,
        handles_per_client: int | None = None,
    ) -> None:
        self.switch = Switch()
        self.policy = policy
        self.prefix = prefix
        self.dispatch = kernel.own_dispatch
        self.refusals = Refusals(kernel.own_dispatch.now)
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.lanes = Lanes(kernel.own_dispatch)
        self.devices = Devices(os.fstat(fd).st_dev, self.lanes)
        self.root = HostHandle(fd, SCOPE_NONE, self.devices.root, True)
        self.root.inode = os.fstat(fd).st_ino
        self.mounts = MountPoints()
        self.looked = -1.0
        # A handle is a descriptor; a quarter of them is left to the rest of the process. Nodes and users have their shares (HandleTable).
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        handles_max = min(HANDLES_PER_MANAGER, soft * 3 // 4) if soft > 0 else HANDLES_PER_MANAGER
        if handles_per_client is None:
            handles_per_client = min(HANDLES_PER_CLIENT, handles_max)
        self.locks = HostLocks(kernel.own_dispatch)
        self.special = DeviceIo(kernel.own_dispatch, self.lanes, self.devices, self.switch, self.identity, self.finish)
        self.ops = Operations(self.devices, process_umask())
        self.reopening = Reopening(self, os.urandom(32), boot_id())
        self.offers = Offers(self, kernel)
        self.fetches = Fetches(self, kernel)
        self.manager = Manager(
            kernel,
            name="hostfs",
            make_client=HostClient,
            connect=connects.handlers(self),
            io=inout.handlers(self),
            watch=partial(inout.watch, self),
            on_gone=lambda client: self.watching.leave(client),
            pid=pid,
            chid=chid,
            first_part=FIRST_PART,
            handles_per_client=handles_per_client,
            handles_max=handles_max,
            # Below half of what the counter has: it never ends.
            first_handle=1 + (int.from_bytes(os.urandom(4)) << 7),
        )
        self.channel = self.manager.channel
        self.target = Target(0, pid, self.channel.chid)
        self.ops.head = (0, pid, self.channel.chid)
        self.counters = self.manager.counters
        self.counters.update({"threaded": 0, "read_blocked": 0, "identity_refused": 0, "user_refused": 0})
        self.counters.update({"reopen_forged": 0, "reopen_other_boot": 0})
        self.counters.update({"offers": 0, "offers_full": 0, "takes": 0, "takes_refused": 0})
        self.counters.update({"fetches": 0, "fetches_full": 0, "fetches_no_way": 0, "fetches_silent": 0})
        self.watching = Watching(kernel.own_dispatch, self.devices.ino, self.mounts, self.counters)
        self.mounts.on_change = self._mounts_changed
        self.locks.count_in(self.counters)
        self.delegations = HostDelegations(self)
        self.ops.leased = self.delegations.leased
        self.special.serve(self.manager, self.ops)

    def remember_locks(self, path: str, noted: Iterable[Entry]) -> None:
        """Note in the file *path* what other nodes have locked. Who had locks when an earlier daemon ended, as *noted* (`grace.read`), gets
        them before others."""
        self.locks.remember(path, boot_id(), noted)

    def _mounts_changed(self) -> None:
        self.devices.mounts_changed()
        self.watching.mounts_changed()

    def set_policy(self, policy: Policy) -> None:
        """Use *policy* from now on. Handles of remote clients are closed (EBADF): they were given under the old one."""
        self.policy = policy
        for client in self.manager.table.clients.values():
            client.expires = 0.0
            if client.info.nd != 0:
                for handle in list(client.handles):
                    self.manager.table.close(handle)
        self.special.forget_remote()
        self.watching.forget_remote()

    def destroy(self) -> None:
        """Close the channel, every handle and the root."""
        self.watching.close()
        self.fetches.close()
        self.offers.close()
        self.manager.destroy()
        self.delegations.close()
        self.locks.close()
        self.special.close()
        self.root.close()
        self.mounts.close()
