"""A node inside a Trio program: `open_node`. docs/howto/embed.md shows how to use it.

    async with open_node(interfaces=["eth0"], key_dir="/etc/app-node") as node:
        await node.up("B")
        with node.serve(chid=7) as channel: ...
        connection = node.connect("B", PID_SYSTEM, 7)
        reply = await send(connection, [b"ping"], reply_len=64)

The same modules as in the daemon, in this process: a message goes from the caller's task to the driver without another program in between.
Such a node has its own identity, is seen and listed by the others as any node, and serves what its program serves: channels and names.
It serves no files and starts no programs unless asked to (`files`), mounts nothing, and leaves umask and limits of its program alone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal

import attrs
import trio

from qnetpy import config as configuration
from qnetpy.channels import CHID_FIRST
from qnetpy.config import Config
from qnetpy.ethernets import HINT, NONE, ethernets
from qnetpy.lsm import LsmQnet
from qnetpy.nodes import NodeState
from qnetpy.qnet import Qnet
from qnetpy.qos import split
from qnetpy.settings import SettingsError
from resmgr.aio import ReceiveChannel, enter
from resmgr.changes import Changes, watch_directory
from resmgr.channel import FIRST_PART_DEFAULT, ND_LOCAL, PID_SYSTEM, Connection, Credentials, Nd
from resmgr.errors import ResmgrError
from resmgr.ids import ND_BITS
from resmgr.names import aio as names
from resmgr.names.client import PolicyName, ScopeName
from resmgr.names.load import load_average
from resmgr.names.manager import NameDirectory
from resmgr.names.protocol import NameEvent
from resmgr.nodes.aio import node_events
from resmgr.nodes.protocol import NodeEvent
from resmgr.runner import SPIN_DEFAULT
from resmgr.subscriptionaio import AsyncEvents
from resmgr.system import System
from stack.core.commandline import Load
from stack.core.errors import ModuleError
from stack.core.manager import Manager, open_manager
from stack.core.module import Kind
from stack.core.stack import Stack


@attrs.frozen
class EmbeddedNode:
    """A node at work in this program. Made by `open_node`; everything is used from the Trio thread."""

    manager: Manager
    qnet: Qnet
    credentials: Credentials
    """Who the program is to the servers it sends to."""

    @property
    def name(self) -> str:
        return self.qnet.identity.name

    @property
    def system(self) -> System:
        return self.manager.system

    @property
    def stack(self) -> Stack:
        return self.manager.stack

    def nd(self, node: str) -> Nd:
        """The descriptor of *node*, 0 for this one. With a choice of paths, `B~preferred:eth1`, messages to the descriptor go by it.

        ResmgrError: EHOSTUNREACH for a node that was never met, EINVAL for no policy, ENXIO for no interface that this node uses.
        """
        name, choice = split(node)
        try:
            route = 0 if choice is None else self.qnet.route_by(choice)
        except OSError as error:
            raise ResmgrError(error.errno or errno.EINVAL, f"{node}: {error.strerror}") from None
        if name in ("", self.name):
            return ND_LOCAL
        found = self.qnet.nodes.get(name)
        if found is None:
            raise ResmgrError(errno.EHOSTUNREACH, f"no node {name} was met yet")
        return Nd(found.nd | route << ND_BITS)

    async def up(self, *nodes: str) -> None:
        """Wait until all of *nodes* can be reached. Without end: put a Trio time limit around it."""
        waiting = {node for node in nodes if node != self.name}
        came = trio.Event()

        def changed(name: bytes) -> None:
            came.set()

        listeners = self.qnet.netfs.listeners
        listeners.append(changed)
        try:
            while not all((node := self.qnet.nodes.get(name)) is not None and node.state is NodeState.UP for name in waiting):
                await came.wait()
                came = trio.Event()
            await trio.lowlevel.checkpoint()
        finally:
            if changed in listeners:  # not when the node has ended meanwhile
                listeners.remove(changed)

    def connect(self, node: str, pid: int, chid: int, *, priority: int | None = None) -> Connection:
        """Attach to a channel of *node* ("" is this one; see `nd`).
        Says nothing to the other side before the first message. *priority*: see `resmgr.channel.Kernel.connect`.
        """
        return self.system.kernel.connect(self.nd(node), pid, chid, self.credentials, priority=priority)

    def serve(self, *, chid: int | None = None, first_part: int = FIRST_PART_DEFAULT, remote: bool = True) -> ReceiveChannel:
        """A channel of this node, for a task to receive from; others reach it as (this node, PID_SYSTEM, its `chid`), or by a name.

        *first_part*: bytes of a message that come unasked. *remote*: whether other nodes may connect (and access rules let them).
        """
        if chid is not None and chid < CHID_FIRST:
            raise ResmgrError(errno.EINVAL, f"channels below {CHID_FIRST} are the system's")
        return ReceiveChannel(self.system.kernel, pid=PID_SYSTEM, chid=chid, first_part=first_part, remote=remote)

    def name_attach(self, name: str, channel: ReceiveChannel, *, scope: ScopeName = "local") -> None:
        """Let others find *channel* by *name*, until `name_detach` or the end of the node; with *scope* "global" on all nodes, which may
        have owners of that name, too. ResmgrError: EEXIST if it is taken, EINVAL.
        """
        if scope == "global":
            self._name(lambda directory: directory.attach_global(name.encode(), channel.channel))
        else:
            self._name(lambda directory: directory.attach(name.encode(), channel.channel))

    def name_detach(self, name: str, *, scope: ScopeName = "local") -> None:
        """Take a name back. Connections made by it stay. ResmgrError(ENOENT)."""
        if scope == "global":
            self._name(lambda directory: directory.detach_global(name.encode()))
        else:
            self._name(lambda directory: directory.detach(name.encode()))

    def _name(self, change: Callable[[NameDirectory], int]) -> None:
        assert self.system.names is not None
        code = [0]
        directory = self.system.names

        def run() -> None:
            code[0] = change(directory)

        enter(self.system.kernel, run)
        if code[0]:
            raise ResmgrError(code[0])

    async def name_open(
        self, name: str, *, node: str = "", scope: ScopeName = "local", policy: PolicyName = "", wait: bool = False
    ) -> Connection:
        """A connection to the server that attached *name* on *node* (empty: this one); with *scope* "global" to one of its owners on all
        nodes, chosen by *node* or *policy*. ResmgrError(ENOENT) if nobody has; *wait*: until somebody has.
        """
        return await names.name_open(self.system.kernel, self.credentials, name, node=node, scope=scope, policy=policy, wait=wait)

    def names(self, pattern: str = "*", *, scope: Literal["local", "global", "both"] = "global") -> AsyncEvents[NameEvent]:
        """Subscribe to names: `with node.names("clock*") as events: async for event in events`. First what there is, then CURRENT."""
        return names.name_events(self.system.kernel, self.credentials, pattern, scope=scope)

    async def changes(self, path: str | bytes) -> Changes:
        """Hear of changes of a directory, here or on another node: `with await node.changes("/net/B/srv") as changes: async for change in
        changes`. What happens after this returns is told. ResmgrError(EOPNOTSUPP): its server cannot tell (docs/howto/changes.md).
        """
        return await watch_directory(self.system.kernel, self.credentials, os.fsencode(path))

    def events(self) -> AsyncEvents[NodeEvent]:
        """Subscribe to nodes: `with node.events() as events: async for event in events`. First what there is, then CURRENT."""
        return node_events(self.system.kernel, self.credentials)


def configured(settings: Config, interfaces: Sequence[str] = ()) -> list[Load]:
    """The drivers that *settings* ask for, the packet driver being for *interfaces*, else for those it names, else for all that are up.

    Without *interfaces*, [stack] drivers come first, as in `qnet up`. ModuleError(ENODEV) when Ethernet is asked for and none is up.
    """
    wanted = settings.stack.drivers
    if interfaces or not wanted:
        names = list(interfaces)
        if not names and "ethernet" in settings.qnet.bearers:
            try:
                names = list(settings.qnet.interfaces) or ethernets()
            except OSError as error:
                raise ModuleError(error.errno or errno.EIO, f"cannot list the network interfaces: {error.strerror}") from None
            if not names:
                raise ModuleError(errno.ENODEV, f"{NONE}: {HINT}")
        wanted = configuration.drivers(settings, names)
    return [Load(Kind.DRIVER, one.driver, one.options, [("fault", one.fault)] if one.fault else []) for one in wanted]


def _settings(config: str | os.PathLike[str] | None) -> Config:
    try:
        return configuration.load(None if config is None else os.fspath(config))
    except (SettingsError, OSError) as error:
        raise ModuleError(errno.EINVAL, str(error)) from None


@asynccontextmanager
async def open_node(
    *,
    config: str | os.PathLike[str] | None = None,
    key_dir: str | os.PathLike[str] | None = None,
    interfaces: Sequence[str] = (),
    drivers: Sequence[Load] = (),
    files: bool = False,
    socket: str | None = None,
    spin: float = SPIN_DEFAULT,
    guest: bool = False,
) -> AsyncIterator[EmbeddedNode]:
    """Be a node of the cluster for the length of the block. On the way out goodbye is said and nothing is left behind.

    *config*: a configuration file (default: /etc/qnet/qnet.toml if there is one); *key_dir* overrides where it says the identity lies.
    *interfaces*: Linux interfaces, in place of the configuration's, for the packet driver; when neither names any, all that are up, as with
    `qnet up`. What else [qnet] bearers asks for is loaded too. *drivers*: instead, any drivers, as on io-pkt's command line. *files*: serve
    this machine's files and programs to other nodes under the configuration's access rules, as the daemon does; that changes the umask
    and the descriptor limit of this process. *socket*: a path where local programs may join. ModuleError when anything is missing.
    """
    chosen = drivers or configured(_settings(config), interfaces)
    options = [f"config={os.fspath(config)}"] if config is not None else []
    options += [f"keys={os.fspath(key_dir)}"] if key_dir is not None else []
    options += ["mount=none", *(() if files else ("serve=false",))]
    loads = [*chosen, Load(Kind.PROTOCOL, "qnet", ",".join(options))]
    async with open_manager(loads, socket=socket, spin=spin, guest=guest) as manager:
        if manager.system.names is None:
            manager.system.serve_names(load_average)
        [module] = [one.attached for one in manager.stack.loaded if isinstance(one.attached, LsmQnet)]
        assert module.qnet is not None
        who = Credentials(os.geteuid(), os.getegid(), tuple(os.getgroups()), os.getpid())
        yield EmbeddedNode(manager, module.qnet, who)
