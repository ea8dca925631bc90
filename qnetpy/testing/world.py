"""A whole cluster in one process, under virtual time, from one seed: the simulator.

Each node is what a daemon is: stack, Qnet, kernel, pathname space, a file manager (in memory), on its own view of one virtual clock. The
cable is a hub with a fault wrapper at each node. Nothing in a node knows that it is simulated; keys, cookies and certificates are real,
their random numbers come from the seed. The same seed gives the same trace.

    world = World(seed=7, fault="drop=5%,reorder=5%")
    a, b = world.start("a"), world.start("b")
    world.until(lambda: a.sees("b") and b.sees("a"))
    b.crash(); ...; world.start("b")          # the same identity, another boot
"""

from __future__ import annotations

from collections.abc import Callable

from qnetpy.discovery.static import StaticDiscovery, StaticPeer
from qnetpy.identity.authority import NodeIdentity, issue_identity, make_authority
from qnetpy.nodes import NodeState
from qnetpy.qnet import Qnet, QnetSettings
from resmgr.access import Export, Grant, Policy, UserRule, Verb
from resmgr.channel import Connection, Credentials, Nd
from resmgr.system import System
from resmgr.testing.memfs import MemFs
from resmgr.testing.virtual import VirtualDispatch
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.drivers.wrap.fault import FaultDriver

DAY = 86400.0


class World:
    """The clock, the cable, the cluster's authority, and the nodes by name. *fault*: options of the fault wrapper of every node."""

    def __init__(self, seed: int, *, fault: str = "", settings: QnetSettings | None = None, trace: bool = False) -> None:
        self.seed = seed
        self.dispatch = VirtualDispatch(seed, name="world", trace=trace)
        self.hub = Hub(self.dispatch)
        self.fault = fault
        self.settings = QnetSettings() if settings is None else settings
        self.nodes: dict[str, SimNode] = {}
        self._random = self.dispatch.random("keys")
        self.authority = make_authority("sim", self.dispatch.wall(), random=self._random.randbytes)
        self._identities: dict[str, NodeIdentity] = {}
        self._macs: dict[str, bytes] = {}
        self._boots = 0

    def identity(self, name: str) -> NodeIdentity:
        """The node's certificate and key, issued at first use."""
        known = self._identities.get(name)
        if known is None:
            known = self._identities[name] = issue_identity(
                self.authority, name, ("member",), self.dispatch.wall(), 30 * DAY, self._random.randbytes
            )
        return known

    def join(self, *names: str) -> None:
        """Make the nodes' addresses known, so that each is every other's static peer."""
        for name in names:
            self._macs.setdefault(name, bytes((2, 0, 0, 0, 0, len(self._macs) + 1)))

    def start(self, name: str, identity: NodeIdentity | None = None) -> SimNode:
        """Switch a node on: a new boot of it, with empty memory."""
        self.join(name)
        self._boots += 1
        node = SimNode(self, name, self.identity(name) if identity is None else identity, self._macs[name], self._boots)
        self.nodes[name] = node
        return node

    def peers_of(self, name: str) -> list[StaticPeer]:
        return [StaticPeer(mac) for other, mac in self._macs.items() if other != name]

    def until(self, goal: Callable[[], bool], limit: float = 30.0) -> bool:
        """Run until *goal*; False when it did not come true within *limit* virtual seconds."""
        return self.dispatch.run_until(goal, limit=limit)

    def run(self, seconds: float) -> None:
        self.dispatch.run_for(seconds)

    def settled(self) -> bool:
        """Every live node sees every other live node."""
        live = [node for node in self.nodes.values() if not node.dead]
        return all(node.sees(other.name) for node in live for other in live if other is not node)


class SimNode:
    """One boot of a node."""

    def __init__(self, world: World, name: str, identity: NodeIdentity, mac: bytes, boot: int) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self.view = world.dispatch.node(name)
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
        self.system.attach(b"", self.files.manager.channel)
        self.system.guard(self.files.manager.channel)
        self.stack = Stack(self.system, random.randbytes, name=f"{name}/io-pkt0")
        text = ",".join(part for part in (f"seed={random.getrandbits(31)}", world.fault) if part)
        self.driver = self.stack.load(world.hub.module(), f"mac={mac.hex(':')}", wrap=[("fault", text)])
        fault = self.driver.attached
        assert isinstance(fault, FaultDriver)
        self.fault = fault
        """Its cable: `cut`, `set_carrier`, `options`."""
        self.qnet = Qnet(self.stack, self.system, identity, world.settings, StaticDiscovery(world.peers_of(name)), random.randbytes)

    def sees(self, name: str) -> bool:
        """The other node is up, as this one knows."""
        node = self.qnet.nodes.get(name)
        return node is not None and node.state is NodeState.UP

    def nd(self, name: str) -> Nd:
        node = self.qnet.nodes.get(name)
        if node is None:
            raise LookupError(f"{self.name} never met {name}")
        return node.nd

    def connect(self, node: str, pid: int, chid: int, uid: int = 0) -> Connection:
        """A connection to a channel of another node, or of this one."""
        nd = Nd(0) if node == self.name else self.nd(node)
        return self.system.kernel.connect(nd, pid, chid, Credentials(uid, uid))

    def crash(self) -> None:
        """Power off: nothing is said, nothing more runs."""
        self.dead = True
        self.view.stop()
        self.driver.attached.detach()

    def stop(self) -> None:
        """A clean stop: goodbye is said."""
        self.dead = True
        self.qnet.detach()
        self.stack.close()
        self.system.close()
        self.view.stop()
