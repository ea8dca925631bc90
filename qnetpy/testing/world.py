"""A whole cluster in one process, under virtual time, from one seed: the simulator. docs/howto/simulate.md shows how to use it.

Each node is what a daemon is: stack, Qnet, kernel, pathname space, a file manager (in memory), on its own view of one virtual clock. The
cables are hubs, with a fault wrapper at each interface of each node. Nothing in a node knows that it is simulated; keys, cookies and
certificates are real, their random numbers come from the seed. The same seed gives the same trace.

    world = World(seed=7, fault="drop=5%,reorder=5%")
    a, b = world.start("a"), world.start("b")
    world.until(world.settled)
    b.crash(); ...; world.start("b")          # the same identity, another boot
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32

from qnetpy.discovery.static import StaticDiscovery, StaticPeer
from qnetpy.identity.authority import NodeIdentity, issue_identity, make_authority
from qnetpy.link.testing import WatchedCrypto
from qnetpy.members.membership import Membership
from qnetpy.nodes import NodeState
from qnetpy.parameters import QnetSettings
from qnetpy.qnet import Qnet
from qnetpy.testing.members import MemoryStore
from resmgr.access import Export, Grant, Policy, UserRule, Verb
from resmgr.channel import Connection, Credentials, Nd
from resmgr.errors import Misuse
from resmgr.system import System
from resmgr.testing.memfs import MemFs
from resmgr.testing.virtual import NodeView, VirtualDispatch
from stack.core.options import parse_options
from stack.core.stack import Loaded, Stack
from stack.crypto.registry import Crypto
from stack.drivers.hub import Hub, HubPort
from stack.drivers.wrap.fault import FaultDriver, FaultOptions

DAY = 86400.0


class TracedHub(Hub):
    """A hub that leaves a line for each batch in the world's trace: who sent how many frames, and a checksum of them."""

    def __init__(self, dispatch: VirtualDispatch, name: str) -> None:
        super().__init__(dispatch)
        self._world = dispatch
        self._name = name

    def spread(self, sender: HubPort, frames: list[bytes]) -> None:
        if self._world.trace is not None:
            self._world.note(f"{self._name} {sender.mac.hex()} {len(frames)} {crc32(b''.join(frames)):08x}")
        super().spread(sender, frames)


class World:
    """The clock, the cables, the cluster's authority, and the nodes by name.

    *fault*: options of the fault wrapper of every interface of every node. *links*: names of the cables; a node has one interface on each
    that it is started with, `en0` on the first. *watch*: every key of every node is watched, and a nonce that comes twice raises.
    """

    def __init__(
        self,
        seed: int,
        *,
        fault: str = "",
        settings: QnetSettings | None = None,
        links: Sequence[str] = ("lan",),
        trace: bool = False,
        watch: bool = True,
    ) -> None:
        self.seed = seed
        self.dispatch = VirtualDispatch(seed, name="world", trace=trace)
        self.hubs: dict[str, TracedHub] = {name: TracedHub(self.dispatch, name) for name in links}
        self.fault = fault
        self.settings = QnetSettings() if settings is None else settings
        self.crypto: Crypto | None = WatchedCrypto() if watch else None
        self.nodes: dict[str, SimNode] = {}
        """The latest boot of each node, dead or alive."""
        self._random = self.dispatch.random("keys")
        self.authority = make_authority("sim", self.dispatch.wall(), random=self._random.randbytes)
        self._identities: dict[str, NodeIdentity] = {}
        self._numbers: dict[str, int] = {}
        self._boots = 0

    @property
    def hub(self) -> TracedHub:
        """The first cable."""
        return next(iter(self.hubs.values()))

    @property
    def now(self) -> float:
        """Virtual monotonic seconds."""
        return self.dispatch.time

    def identity(self, name: str) -> NodeIdentity:
        """The node's certificate and key, issued at first use."""
        known = self._identities.get(name)
        if known is None:
            known = self._identities[name] = issue_identity(
                self.authority, name, ("member",), self.dispatch.wall(), 30 * DAY, self._random.randbytes
            )
        return known

    def join(self, *names: str) -> None:
        """Make the nodes' addresses known, so that each is every other's static peer. Nodes that were started have joined."""
        for name in names:
            self._numbers.setdefault(name, len(self._numbers) + 1)

    def mac(self, name: str, link: str) -> bytes:
        """The address of a node that has joined on that cable."""
        return bytes((2, 0, 0, list(self.hubs).index(link))) + self._numbers[name].to_bytes(2, "big")

    def start(
        self,
        name: str,
        identity: NodeIdentity | None = None,
        *,
        links: Sequence[str] | None = None,
        skew: float = 0.0,
        mtu: int = 1500,
        fault: str | None = None,
        settings: QnetSettings | None = None,
        call: Sequence[str] | None = None,
        store: MemoryStore | None = None,
    ) -> SimNode:
        """Switch a node on: a new boot of it, with empty memory, on the named cables (default: all).

        *skew* is by how many seconds its wall clock is wrong. *call*: the nodes that it knows of; default are all that have joined. Misuse
        when it is on already. *store*: what the node keeps, for a node whose membership changes; its identity is the one in there.
        """
        before = self.nodes.get(name)
        if before is not None and not before.dead:
            raise Misuse(f"node {name} is on")
        self.join(name)
        self._boots += 1
        node = self.nodes[name] = SimNode(
            self,
            name,
            store.kept.identity if store is not None else self.identity(name) if identity is None else identity,
            self._boots,
            list(self.hubs) if links is None else links,
            skew,
            mtu,
            self.fault if fault is None else fault,
            self.settings if settings is None else settings,
            [other for other in self._numbers if other != name] if call is None else call,
            store,
        )
        return node

    @property
    def live(self) -> list[SimNode]:
        """Nodes that are on."""
        return [node for node in self.nodes.values() if not node.dead]

    def until(self, goal: Callable[[], bool], limit: float = 30.0) -> bool:
        """Run until *goal*; False when it did not come true within *limit* virtual seconds."""
        return self.dispatch.run_until(goal, limit=limit)

    def run(self, seconds: float) -> None:
        self.dispatch.run_for(seconds)

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Run *call* at a virtual time, outside all nodes."""
        self.dispatch.call_at(when, call)

    def settled(self) -> bool:
        """Every live node sees every other live node, and no dead one."""
        up = {node.name for node in self.live}
        return all({other.name for other in node.qnet.nodes if other.state is NodeState.UP} == up - {node.name} for node in self.live)


class SimNode:
    """One boot of a node. Made by `World.start`."""

    def __init__(
        self,
        world: World,
        name: str,
        identity: NodeIdentity,
        boot: int,
        links: Sequence[str],
        skew: float,
        mtu: int,
        fault: str,
        settings: QnetSettings,
        call: Sequence[str],
        store: MemoryStore | None,
    ) -> None:
        self.world = world
        self.name = name
        self.boot = boot
        """Unique in the world; later boots have greater numbers."""
        self.dead = False
        self.view: NodeView = world.dispatch.node(name, skew=skew)
        random = world.dispatch.random(f"{name}/{boot}")
        self.system = System(self.view, name)
        self.system.set_policy(
            Policy(
                self.system.accounts,
                users=(UserRule("identity", root="root"),),
                exports=(Export("/", ("read", "write")),),
                grants=(Grant(Verb.SEND),),
            )
        )
        self.files = MemFs(self.system.kernel)
        """What is at `/`; gone with the boot."""
        self.system.attach(b"", self.files.manager.channel)
        self.system.guard(self.files.manager.channel)
        self.stack = Stack(self.system, random.randbytes, name=f"{name}/io-pkt0", crypto=world.crypto)
        self.cables: dict[str, FaultDriver] = {}
        """By interface: `cut`, `set_carrier`, `options`."""
        peers: list[StaticPeer] = []
        self.links = {f"en{list(world.hubs).index(link)}": link for link in links}
        """The cable of each interface, plugged in or not."""
        self._loaded: dict[str, Loaded] = {}
        self._mtu = mtu
        self._random = random
        for interface, link in self.links.items():
            self.plug(interface, fault=fault)
            peers += [StaticPeer(world.mac(other, link), interface) for other in call]
        self.membership: Membership | None = None
        if store is not None:
            self.membership = Membership(self.view, self.system.kernel, store.kept, store, random.randbytes)
        self.qnet = Qnet(self.stack, self.system, identity, settings, StaticDiscovery(peers), random.randbytes, self.membership)

    def plug(self, interface: str, mac: bytes | None = None, fault: str = "") -> None:
        """Add an interface on its cable, with its own address or another. Nothing happens when it is there."""
        if interface in self.cables:
            return
        hub = self.world.hubs[self.links[interface]]
        own = self.world.mac(self.name, self.links[interface]) if mac is None else mac
        text = ",".join(part for part in (f"seed={self._random.getrandbits(31)}", fault) if part)
        loaded = self.stack.load(hub.module(), f"name={interface},mac={own.hex(':')},mtu={self._mtu}", wrap=[("fault", text)])
        assert isinstance(loaded.attached, FaultDriver)
        self._loaded[interface] = loaded
        self.cables[interface] = loaded.attached

    def cable(self, interface: str) -> FaultDriver:
        """The end of the cable at an interface; an interface that is removed is plugged in for it."""
        self.plug(interface)
        return self.cables[interface]

    def unplug(self, interface: str) -> None:
        """Remove an interface. Nothing happens when it is not there."""
        if self.cables.pop(interface, None) is not None:
            self.stack.unload(self._loaded.pop(interface))

    def exchange(self, interface: str, mac: bytes) -> None:
        """Another card on the same cable."""
        self.unplug(interface)
        self.plug(interface, mac)

    @property
    def fault(self) -> FaultDriver:
        """Its first cable."""
        return next(iter(self.cables.values()))

    def set_fault(self, text: str, interface: str | None = None) -> None:
        """Other faults from now on, on one interface or all; "" for a good cable."""
        for name, cable in self.cables.items():
            if interface in (None, name):
                cable.options = parse_options(FaultOptions, text, "fault")

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

    def crash(self) -> None:
        """Power off: nothing is said, nothing more runs."""
        self.dead = True
        self.view.stop()
        for cable in self.cables.values():
            cable.detach()

    def stop(self) -> None:
        """A clean stop: goodbye is said."""
        self.dead = True
        if self.membership is not None:
            self.membership.close()
        self.qnet.detach()
        self.stack.close()
        self.system.close()
        self.view.stop()
