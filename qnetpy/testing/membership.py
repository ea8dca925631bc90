"""A simulated cluster with a root key, issuers and members, for tests of what its daemons say to each other about certificates."""

from __future__ import annotations

import random
from collections.abc import Callable

from qnetpy.identity.authority import NODE_VALIDITY
from qnetpy.identity.certificate import Certificate
from qnetpy.members.membership import Membership
from qnetpy.parameters import QnetSettings
from qnetpy.testing.members import MemoryStore, enrolled
from qnetpy.testing.node import SimNode
from qnetpy.testing.world import World


class Cluster:
    """A world with members: `root` has the root key and issues, `issuer` issues, the others were enrolled by `root`'s issuing power."""

    def __init__(
        self, seed: int = 1, *names: str, fault: str = "", validity: float = NODE_VALIDITY, settings: QnetSettings | None = None
    ) -> None:
        self.world = World(seed, fault=fault, settings=settings)
        self.random = random.Random(seed)
        wall = self.world.dispatch.wall()
        authority = self.world.authority
        self.stores: dict[str, MemoryStore] = {}
        for name in ("root", "issuer"):
            self.stores[name] = enrolled(authority, name, wall, self.random.randbytes, roles=["issuer"], validity=validity)
        self.stores["root"].root_key = authority
        (by,) = self.stores["root"].kept.powers
        for name in names:
            self.stores[name] = enrolled(authority, name, wall, self.random.randbytes, by=by, validity=validity)
        self.world.join(*self.stores)
        for name in self.stores:
            self.start(name)
        assert self.world.until(self.world.settled)
        self.world.run(1.0)

    def start(self, name: str, skew: float = 0.0) -> SimNode:
        return self.world.start(name, store=self.stores[name], skew=skew)

    def member(self, name: str) -> Membership:
        membership = self.world.nodes[name].membership
        assert membership is not None
        return membership

    def shown(self, name: str) -> Certificate:
        return self.member(name).keyring.identity.certificate

    def links(self) -> set[tuple[str, str]]:
        return {(node.name, name) for node in self.world.live for name in node.qnet.machine.links}

    def until(self, goal: Callable[[], bool], limit: float = 30.0) -> float:
        """Seconds until *goal* came true."""
        begin = self.world.now
        assert self.world.until(goal, limit), "did not come true"
        return self.world.now - begin
