"""One boot of a simulated node: what a daemon is, on its own view of the world's clock. Made by `qnetpy.testing.world.World.start`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from qnetpy.discovery.lookup import LookupDiscovery
from qnetpy.discovery.several import SeveralDiscovery
from qnetpy.discovery.static import StaticDiscovery, StaticPeer
from qnetpy.identity.authority import NodeIdentity
from qnetpy.members.membership import Membership
from qnetpy.nodes import NodeState
from qnetpy.parameters import QnetSettings
from qnetpy.qnet import Qnet
from qnetpy.resume import ResumeWatch
from qnetpy.testing.cables import WatchedInternet
from qnetpy.testing.members import MemoryStore
from resmgr.access import Export, Grant, Policy, UserRule, Verb
from resmgr.channel import Connection, Credentials, Nd
from resmgr.system import System
from resmgr.testing.memfs import MemFs
from resmgr.testing.virtual import NodeView
from stack.core.loaded import Loaded
from stack.core.options import parse_options
from stack.core.stack import Stack
from stack.drivers.internet import MTU_DEFAULT
from stack.drivers.wrap.fault import FaultDriver, FaultOptions
from stack.wire.endpoint import PORT_DEFAULT

if TYPE_CHECKING:
    from qnetpy.testing.world import World

ELSEWHERE = 1000
"""Added to a node's number where it has another address than its own."""


@attrs.frozen
class Boot:
    """How a node is switched on."""

    links: Sequence[str]
    skew: float
    rate: float
    mtu: int
    fault: str
    settings: QnetSettings
    call: Sequence[str]
    """Nodes that it knows of."""
    store: MemoryStore | None


class SimNode:
    """See the head of this file."""

    def __init__(self, world: World, name: str, identity: NodeIdentity, number: int, boot: Boot) -> None:
        self.world = world
        self.name = name
        self.boot = number
        """Unique in the world; later boots have greater numbers."""
        self.dead = False
        self.view: NodeView = world.dispatch.node(name, skew=boot.skew, rate=boot.rate)
        self._random = world.dispatch.random(f"{name}/{number}")
        self.system = System(self.view, name)
        self.system.set_policy(
            Policy(
                self.system.accounts,
                users=(UserRule("identity", root="root"),),
                exports=(Export("/", ("read", "write")),),
                grants=(Grant(Verb.SEND), Grant(Verb.ANNOUNCE)),
            )
        )
        self.files = MemFs(self.system.kernel)
        """What is at `/`; gone with the boot."""
        self.system.attach(b"", self.files.manager.channel)
        self.system.guard(self.files.manager.channel)
        self.names = self.system.serve_names()
        self.stack = Stack(self.system, self._random.randbytes, name=f"{name}/io-pkt0", crypto=world.crypto)
        self.cables: dict[str, FaultDriver] = {}
        """By interface: `cut`, `set_carrier`, `options`."""
        self.links = {world.interfaces[link]: link for link in boot.links}
        """The cable of each interface, plugged in or not."""
        self.moved: set[str] = set()
        """Interfaces that have another address than the node's own."""
        self._loaded: dict[str, Loaded] = {}
        self._mtu = boot.mtu
        peers: list[StaticPeer] = []
        places: list[tuple[str, int]] = []
        for interface, link in self.links.items():
            self.plug(interface, fault=boot.fault)
            if isinstance(world.hubs[link], WatchedInternet):
                places += [(world.public(other, link), PORT_DEFAULT) for other in boot.call if other not in world.behind]
            else:
                peers += [StaticPeer(world.mac(other, link), interface) for other in boot.call]
        self.membership: Membership | None = None
        if boot.store is not None:
            self.membership = Membership(self.view, self.system.kernel, boot.store.kept, boot.store, self._random.randbytes)
        sources = SeveralDiscovery([StaticDiscovery(peers), LookupDiscovery(places)]) if places else StaticDiscovery(peers)
        self.qnet = Qnet(self.stack, self.system, identity, boot.settings, sources, self._random.randbytes, self.membership)
        self.watch = ResumeWatch(self.view, self.resumed, lambda seconds: self.qnet.rekey(), uevents=False)
        if world.dispatch.trace is not None:
            self.qnet.netfs.listeners.append(self._note)

    def _note(self, name: bytes) -> None:
        other = self.qnet.nodes.get(name.decode())
        if other is not None:
            self.world.dispatch.note(f"{self.name}: {other.name} is {other.state.value}{f': {other.reason}' if other.reason else ''}")

    # Interfaces

    def plug(self, interface: str, elsewhere: int | None = None, fault: str = "") -> None:
        """Add an interface on its cable, with the node's own address, or with another, the one of that number. Nothing happens when it is
        there."""
        if interface in self.cables:
            return
        world, link = self.world, self.links[interface]
        hub = world.hubs[link]
        self.moved.discard(interface)
        if elsewhere is not None:
            self.moved.add(interface)
        text = ",".join(part for part in (f"seed={self._random.getrandbits(31)}", fault) if part)
        if isinstance(hub, WatchedInternet):
            address = world.address(self.name, link, 0 if elsewhere is None else ELSEWHERE + elsewhere)
            options = f"name={interface},address={address},mtu={min(self._mtu, MTU_DEFAULT)}"
            loaded = self.stack.load(hub.module(world.routers.get(self.name)), options, wrap=[("fault", text)])
        else:
            own = world.mac(self.name, link) if elsewhere is None else world.other_mac(self.name, link, elsewhere)
            loaded = self.stack.load(hub.module(), f"name={interface},mac={own.hex(':')},mtu={self._mtu}", wrap=[("fault", text)])
        assert isinstance(loaded.attached, FaultDriver)
        self._loaded[interface] = loaded
        self.cables[interface] = loaded.attached
        hub.own(loaded.attached.mac, self.name)

    def cable(self, interface: str) -> FaultDriver:
        """The end of the cable at an interface; an interface that is removed is plugged in for it."""
        self.plug(interface)
        return self.cables[interface]

    def unplug(self, interface: str) -> None:
        """Remove an interface. Nothing happens when it is not there."""
        if self.cables.pop(interface, None) is not None:
            self.stack.unload(self._loaded.pop(interface))

    def exchange(self, interface: str, elsewhere: int | None = None) -> None:
        """Another card on the same cable, or another address on the internet; without a number, the node's own."""
        self.unplug(interface)
        self.plug(interface, elsewhere)

    @property
    def fault(self) -> FaultDriver:
        """Its first cable."""
        return next(iter(self.cables.values()))

    def set_fault(self, text: str, interface: str | None = None) -> None:
        """Other faults from now on, on one interface or all; "" for a good cable."""
        for name, cable in self.cables.items():
            if interface in (None, name):
                cable.options = parse_options(FaultOptions, text, "fault")

    # What it knows, what it is asked

    def sees(self, name: str) -> bool:
        """The other node is up, as this one knows."""
        node = self.qnet.nodes.get(name)
        return node is not None and node.state is NodeState.UP

    def nd(self, name: str) -> Nd:
        """The descriptor of another node, 0 of this one. LookupError for one that it never met."""
        if name == self.name:
            return Nd(0)
        node = self.qnet.nodes.get(name)
        if node is None:
            raise LookupError(f"{self.name} never met {name}")
        return node.nd

    def connect(self, node: str, pid: int, chid: int, uid: int = 0) -> Connection:
        """A connection to a channel of another node, or of this one."""
        return self.system.kernel.connect(self.nd(node), pid, chid, Credentials(uid, uid))

    # Its end, and what is like one

    def resumed(self) -> None:
        """The kernel says that this machine was resumed from a snapshot, or is a copy."""
        self.qnet.begin_anew("resumed from a snapshot")

    def crash(self) -> None:
        """Power off: nothing is said, nothing more runs."""
        self.dead = True
        self.view.stop()
        for cable in self.cables.values():
            cable.detach()

    def stop(self) -> None:
        """A clean stop: goodbye is said."""
        self.dead = True
        self.watch.close()
        if self.membership is not None:
            self.membership.close()
        self.qnet.detach()
        self.stack.close()
        self.system.close()
        self.view.stop()
