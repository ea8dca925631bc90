"""A whole cluster in one process, under virtual time, from one seed: the simulator. docs/howto/simulate.md shows how to use it.

Each node is what a daemon is: stack, Qnet, kernel, pathname space, a file manager (in memory), on its own view of one virtual clock. The
cables are hubs, and internets for the UDP bearer, with a fault wrapper at each interface of each node. Nothing in a node knows that it is
simulated; keys, cookies and certificates are real, their random numbers come from the seed. The same seed gives the same trace.

    world = World(seed=7, fault="drop=5%,reorder=5%")
    a, b = world.start("a"), world.start("b")
    world.until(world.settled)
    b.crash(); ...; world.start("b")          # the same identity, another boot
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence

from qnetpy.identity.authority import NodeIdentity, issue_identity, make_authority
from qnetpy.link.cookie import ClusterMac
from qnetpy.link.testing import WatchedCrypto
from qnetpy.nodes import NodeState
from qnetpy.parameters import QnetSettings
from qnetpy.testing.cables import WatchedHub, WatchedInternet
from qnetpy.testing.members import MemoryStore
from qnetpy.testing.node import Boot, SimNode
from resmgr.errors import Misuse
from resmgr.testing.virtual import START, VirtualDispatch
from stack.crypto.registry import Crypto
from stack.drivers.internet import Router

DAY = 86400.0
AGE = 3 * DAY
"""How old the cluster is: clocks may be late by less than that."""


class World:
    """The clock, the cables, the cluster's authority, and the nodes by name.

    *fault*: options of the fault wrapper of every interface of every node. *links*: names of the cables; a node has one interface on each
    that it is started with, `en0` on the first. *internets*: names of internets, with interfaces `udp0`, `udp1`, ... *behind*: nodes whose
    addresses a router of their own translates; nobody can call them. *watch*: every key of every node is watched, and a nonce that comes
    twice raises.
    """

    def __init__(
        self,
        seed: int,
        *,
        fault: str = "",
        settings: QnetSettings | None = None,
        links: Sequence[str] = ("lan",),
        internets: Sequence[str] = (),
        behind: Sequence[str] = (),
        trace: bool = False,
        watch: bool = True,
    ) -> None:
        self.seed = seed
        self.dispatch = VirtualDispatch(seed, name="world", trace=trace)
        self._random = self.dispatch.random("keys")
        self.authority = make_authority("sim", self.identity_wall, random=self._random.randbytes)
        mac = ClusterMac(self.authority.secret) if watch else None
        self.hubs: dict[str, WatchedHub | WatchedInternet] = {}
        for name in links:
            self.hubs[name] = WatchedHub(self.dispatch, name, self._handshakes, mac)
        for name in internets:
            self.hubs[name] = WatchedInternet(self.dispatch, name, self._handshakes, mac)
        self.interfaces = {name: f"en{number}" for number, name in enumerate(links)}
        """By link: what every node calls its interface on it."""
        self.interfaces |= {name: f"udp{number}" for number, name in enumerate(internets)}
        self.interfaces_links = {interface: link for link, interface in self.interfaces.items()}
        """The reverse."""
        self.behind = frozenset(behind)
        self.routers: dict[str, Router] = {}
        """By node."""
        self.on_handshake: Callable[[], None] | None = None
        """Called for each handshake frame that a node sends, before it arrives."""
        self.fault = fault
        self.settings = QnetSettings() if settings is None else settings
        self.crypto: Crypto | None = WatchedCrypto() if watch else None
        self.nodes: dict[str, SimNode] = {}
        """The latest boot of each node, dead or alive."""
        self._identities: dict[str, NodeIdentity] = {}
        self._numbers: dict[str, int] = {}
        self._boots = 0

    def _handshakes(self, count: int) -> None:
        for _ in range(count):
            if self.on_handshake is not None:
                self.on_handshake()

    @property
    def hub(self) -> WatchedHub:
        """The first cable."""
        first = next(iter(self.hubs.values()))
        assert isinstance(first, WatchedHub)
        return first

    @property
    def now(self) -> float:
        """Virtual monotonic seconds."""
        return self.dispatch.time

    @property
    def identity_wall(self) -> float:
        """When the cluster was made and its first nodes joined."""
        return self.dispatch.wall() - (self.now - START) - AGE

    def identity(self, name: str) -> NodeIdentity:
        """The node's certificate and key, issued at first use."""
        known = self._identities.get(name)
        if known is None:
            known = self._identities[name] = issue_identity(
                self.authority, name, ("member",), self.identity_wall, 30 * DAY, self._random.randbytes
            )
        return known

    def join(self, *names: str) -> None:
        """Make the nodes' addresses known, so that each is every other's static peer. Nodes that were started have joined."""
        for name in names:
            if name not in self._numbers:
                self._numbers[name] = max(self._numbers.values(), default=0) + 1
                if name in self.behind:
                    internet = next(hub for hub in self.hubs.values() if isinstance(hub, WatchedInternet))
                    self.routers[name] = internet.router(self.public(name, internet.name))

    def rename(self, before: str, name: str) -> None:
        """The machine of node *before*, which is off, is called *name* from now on, and has the same addresses."""
        self._numbers[name] = self._numbers[before]

    def mac(self, name: str, link: str) -> bytes:
        """The address of a node that has joined on that cable."""
        return bytes((2, 0, 0, list(self.hubs).index(link))) + self._numbers[name].to_bytes(2, "big")

    def other_mac(self, name: str, link: str, number: int) -> bytes:
        """The address of another card."""
        return bytes((2, 9, list(self.hubs).index(link), self._numbers[name])) + (number & 0xFFFF).to_bytes(2, "big")

    def public(self, name: str, link: str, number: int = 0) -> str:
        """Where the internet of that name reaches the node, or the router before it."""
        place = list(self.hubs).index(link)
        base = ipaddress.ip_address("10.0.0.0" if place % 2 or self.behind else "fd00::")
        return str(base + (place << 22) + (self._numbers[name] << 17) + number)

    def address(self, name: str, link: str, number: int = 0) -> str:
        """The node's address as it knows it itself: its public one, or behind a router another."""
        return f"192.168.{1 + number % 200}.2" if name in self.behind else self.public(name, link, number)

    def start(
        self,
        name: str,
        identity: NodeIdentity | None = None,
        *,
        links: Sequence[str] | None = None,
        skew: float = 0.0,
        rate: float = 1.0,
        mtu: int = 1500,
        fault: str | None = None,
        settings: QnetSettings | None = None,
        call: Sequence[str] | None = None,
        store: MemoryStore | None = None,
    ) -> SimNode:
        """Switch a node on: a new boot of it, with empty memory, on the named cables (default: all).

        *skew* is by how many seconds its wall clock is wrong, *rate* how fast its clocks run. *call*: the nodes that it knows of; default
        are all that have joined. Misuse when it is on already. *store*: what the node keeps, for a node whose membership changes; its
        identity is the one in there.
        """
        before = self.nodes.get(name)
        if before is not None and not before.dead:
            raise Misuse(f"node {name} is on")
        self.join(name)
        self._boots += 1
        boot = Boot(
            list(self.hubs) if links is None else links,
            skew,
            rate,
            mtu,
            self.fault if fault is None else fault,
            self.settings if settings is None else settings,
            [other for other in self._numbers if other != name] if call is None else call,
            store,
        )
        own = store.kept.identity if store is not None else self.identity(name) if identity is None else identity
        node = self.nodes[name] = SimNode(self, name, own, self._boots, boot)
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
