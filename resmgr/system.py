"""The system part of a node, what procnto is to QNX: the message kernel, the pathname space, host files, processes, the local socket.

A daemon makes one of everything; a simulated node makes the kernel and the pathname space and attaches managers of its own. All parts that
act for clients of other nodes share one `Policy`, which is replaced as a whole by `set_policy`. Until somebody sets one, other nodes
may do nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from resmgr.access import Policy, Verb
from resmgr.channel import CHID_PROCMGR, PID_SYSTEM, Channel, ClientInfo, Kernel
from resmgr.dispatch import Dispatch
from resmgr.iomsg import Target
from resmgr.nodes.board import NodeBoard
from resmgr.owndispatch import OwnDispatch
from resmgr.pathmgr import PathManager
from resmgr.pathspace import Attach
from resmgr.rosters import Rosters
from resmgr.shield import OwnShield
from resmgr.users import Accounts

if TYPE_CHECKING:
    from resmgr.attachments import Attachments, AttachRule
    from resmgr.hostfs.manager import HostFs
    from resmgr.names.manager import NameDirectory
    from resmgr.names.reserved import ReservedName
    from resmgr.procmgr.manager import ProcessManager
    from resmgr.procmgr.rules import SpawnRules
    from resmgr.transport.unix import UnixServer


class System:
    """See the head of this file. Everything is used from dispatch context; `close` undoes what was started, newest first."""

    def __init__(self, dispatch: Dispatch, node_name: str) -> None:
        self.dispatch = dispatch
        self.kernel = Kernel(dispatch, node_name)
        self.shield = self.kernel.running.own = OwnShield(node_name)
        """Lets no exception of the node's own managers out."""
        self.kernel.own_dispatch = OwnDispatch(dispatch, self.shield)
        self.accounts = Accounts(dispatch.now)
        self.rosters = Rosters(self.kernel)
        """Users of other nodes by name, for the mapping `names`; and this machine's, told to others."""
        self.accounts.far = self.rosters
        self.policy = Policy(self.accounts)
        self.paths = PathManager(self.kernel)
        self.nodes = NodeBoard(self.kernel)
        """Which other nodes are up; written by the network module."""
        self.files: HostFs | None = None
        self.processes: ProcessManager | None = None
        self.names: NameDirectory | None = None
        self.managers: Attachments | None = None
        self.attach_rules: tuple[AttachRule, ...] = ()
        """Who may attach managers besides root. Replaced as a whole."""
        self.server: UnixServer | None = None
        self.namespace: int | None = None
        """Descriptor of the mount namespace of this node's users, when the daemon has one of its own. Closed by `close` only: a process
        that has moved stays there, because its threads do."""
        self.open_files: tuple[int, int] | None = None
        """Soft and hard limit of open files with which this process was started; set by who raised them."""
        self._reserved: tuple[ReservedName, ...] = ()
        self._announcers: frozenset[int] | None = frozenset({0, os.geteuid()})
        self._guarded: set[tuple[int, int]] = set()
        self._on_policy: list[Callable[[Policy], None]] = []
        self._services: dict[str, Callable[[], None]] = {}
        """What ends the file and process managers."""
        self._ends: list[Callable[[], None]] = [self.paths.destroy, self.nodes.destroy, self.rosters.close, self.accounts.close]
        self.guard(self.paths.channel)
        self.guard(self.rosters.channel)

    def guard(self, channel: Channel) -> None:
        """*channel*'s manager asks the policy itself for each thing that a remote client wants: whoever is in the cluster may connect."""
        self._guarded.add((channel.pid, channel.chid))

    def unguard(self, channel: Channel) -> None:
        """Undo `guard`, of a manager that ends before the system does."""
        self._guarded.discard((channel.pid, channel.chid))

    def guarded(self, pid: int, chid: int) -> bool:
        """Whether that channel's manager asks the policy itself."""
        return (pid, chid) in self._guarded

    def admit(self, info: ClientInfo, pid: int, chid: int) -> ClientInfo | int:
        """May a client of another node connect to a channel of this one? 0 or an errno; for a process's manager, as whom. The node's
        own managers ask the policy per operation."""
        if self.guarded(pid, chid):
            return 0
        admitted = None if self.managers is None else self.managers.admit(info, pid, chid)
        if admitted is not None:
            return admitted
        return 0 if self.policy.may(info, Verb.SEND) else errno.EACCES

    def set_policy(self, policy: Policy) -> None:
        """Use *policy* from now on; what remote clients hold under the old one is taken away where it might not be given again."""
        self.policy = policy
        for tell in self._on_policy:
            tell(policy)

    @property
    def reserved_names(self) -> tuple[ReservedName, ...]:
        """Names that are not for everybody."""
        return self._reserved

    @reserved_names.setter
    def reserved_names(self, reserved: tuple[ReservedName, ...]) -> None:
        self._reserved = reserved
        if self.names is not None:
            self.names.reserved = reserved

    @property
    def announcers(self) -> frozenset[int] | None:
        """Users of this machine that may attach global names; None: all of them. Names that are attached stay."""
        return self._announcers

    @announcers.setter
    def announcers(self, users: frozenset[int] | None) -> None:
        self._announcers = users
        if self.names is not None:
            self.names.announcers = users

    def serve_files(self, root: bytes | str = b"/", prefix: bytes = b"") -> HostFs:
        """Attach the Linux directory *root* at *prefix* of the pathname space."""
        from resmgr.hostfs.manager import HostFs

        files = self.files = HostFs(self.kernel, self.policy, root=root, prefix=b"/" + prefix)
        self._on_policy.append(files.set_policy)
        attached = self.paths.attach(prefix, Target(0, files.channel.pid, files.channel.chid))
        self.guard(files.channel)
        copies = files.offers.listen()
        self.guard(copies)

        def end() -> None:
            self.paths.detach(attached)
            self._on_policy.remove(files.set_policy)
            self._guarded.discard((files.channel.pid, files.channel.chid))
            self.unguard(copies)
            files.destroy()
            self.files = None

        self._services["files"] = end
        return files

    def stop_serving(self) -> None:
        """End the file and the process manager, if there are any: open files with ESRCH, programs of clients by SIGHUP or SIGKILL."""
        while self._services:
            self._services.popitem()[1]()

    def serve_processes(self, rules: SpawnRules, audit: str = "") -> ProcessManager:
        """Let clients that the policy allows start and signal processes, which see the mounts of `namespace` and have `open_files`.
        *audit*: the file in which that is told (empty: the log)."""
        from resmgr.procmgr.manager import ProcessManager

        mounts = None if self.namespace is None else f"/proc/self/fd/{self.namespace}"
        processes = self.processes = ProcessManager(
            self.kernel, self.kernel.own_dispatch, self.policy, rules, namespace=mounts, open_files=self.open_files, audit=audit
        )

        def use(policy: Policy) -> None:
            processes.policy = policy

        self._on_policy.append(use)
        self._guarded.add((PID_SYSTEM, CHID_PROCMGR))

        def end() -> None:
            self._on_policy.remove(use)
            self._guarded.discard((PID_SYSTEM, CHID_PROCMGR))
            processes.close()
            self.processes = None

        self._services["processes"] = end
        return processes

    def serve_names(self, load: Callable[[], int] | None = None) -> NameDirectory:
        """Let servers attach names, which others find under /dev/name/local and, of all nodes that are believed, /dev/name/global.

        *load*: how busy this node is, in hundredths of a processor; None keeps that to itself.
        """
        from resmgr.names.manager import NameDirectory
        from resmgr.names.protocol import PREFIX, PREFIX_GLOBAL

        names = self.names = NameDirectory(self.kernel, self.nodes, believes=lambda info: self.policy.may(info, Verb.ANNOUNCE), load=load)
        names.announcers = self._announcers
        names.reserved = self._reserved
        self.paths.attach(PREFIX, names.target)
        self.paths.attach(PREFIX_GLOBAL, names.globals.directory.target)
        self.guard(names.globals.channel)
        self._on_policy.append(lambda policy: names.globals.judge_again())
        self._ends.append(names.destroy)
        return names

    def listen(self, path: str | os.PathLike[str]) -> UnixServer:
        """Serve the programs of this machine on a local socket, and keep their names and what they attach."""
        self.accounts.ask_in_threads(self.kernel.own_dispatch)
        if self.names is None:
            from resmgr.names.load import load_average

            self.serve_names(load_average)
        from resmgr.attachments import Attachments
        from resmgr.transport.unix import UnixServer

        self.paths.admit = self.admit
        managers = self.managers = Attachments(self.kernel, self.paths, self.accounts, lambda: self.policy, lambda: self.attach_rules)
        self.guard(managers.channel)
        self._ends.append(managers.destroy)
        server = self.server = UnixServer(self.dispatch, self.kernel, path)
        self._ends.append(server.close)
        return server

    def attach(self, path: bytes, channel: Channel, flags: Attach = Attach.DEFAULT) -> None:
        """Attach a manager of this kernel to a path for as long as the system lives."""
        self.paths.attach(path, Target(0, channel.pid, channel.chid), flags)

    def close(self) -> None:
        """End everything. Idempotent."""
        self.stop_serving()
        while self._ends:
            self._ends.pop()()
        if self.namespace is not None:
            os.close(self.namespace)
            self.namespace = None
