"""What is changed about keys, clocks, names and membership while nodes work, as steps of a plan; and how any trouble meets a handshake.

Changes that an operator makes on good cables interrupt nothing: other ciphers, new keys, another root. Those that end something on purpose
(a node that is revoked, a machine that is copied) end that and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

from qnetpy.members.membership import Membership
from qnetpy.members.office import OfficeError
from qnetpy.testing.members import MemoryStore, enrolled, joined
from qnetpy.testing.node import SimNode
from qnetpy.testing.trouble import Trouble

OFFICE = "n1"
"""The node with the root key, where membership changes."""
SPREAD = 2.0
"""Seconds within which all who are up have ended their links with a node that is revoked."""
SUITES = ("aes-128-gcm", "chacha20-poly1305", "aes-256-gcm")
PHASES = 8
"""A trouble that is to meet a handshake comes at one of the first so many frames of handshakes."""


class Changes(Trouble):
    """See the head of this file."""

    # Keys

    def _rekey_now(self, at: float) -> None:
        """New keys for all links of a node, at once; sometimes at two nodes in the same moment."""
        for name in self.chance.sample(self.names, self.chance.choice([1, 1, 2])):
            self._step(at, f"{name} wants new keys", self._for_all(name, lambda node: node.qnet.rekey()))

    def _suites(self, at: float) -> None:
        """Other ciphers, in another order. One is in all lists, so that two nodes always have one in common."""
        name, names = self._someone(), list(SUITES)
        self.chance.shuffle(names)
        always = (self.world.settings.suites or SUITES)[0]
        chosen = tuple(suite for suite in names if suite == always or self.chance.random() < 0.6)
        self._step(at, f"{name} takes {', '.join(chosen)}", self._for_all(name, lambda node: node.qnet.set_suites(chosen)))

    def _copied(self, at: float) -> None:
        """The kernel says that the machine was resumed from a snapshot: there may be a copy of its keys."""
        name = self._someone()

        def resumed(node: SimNode) -> None:
            self._broken(name)
            node.resumed()

        self._step(at, f"{name} was resumed from a snapshot", self._for_all(name, resumed))

    # Clocks

    def _set_clock(self, at: float) -> None:
        """A wall clock is set, by a second, or by a day."""
        name, change = self._someone(), self.chance.choice([-86400.0, -30.0, -1.0, 1.0, 30.0, 3600.0, 86400.0])

        def set_clock(node: SimNode) -> None:
            self.skew[name] = node.view.skew = max(-2 * 86400.0, min(10 * 86400.0, node.view.skew + change))

        self._step(at, f"{name}: clock set by {change:.0f} s", self._for_all(name, set_clock))

    # Membership

    def _enrol_all(self, issuer: str = "") -> None:
        """All nodes are members with stores; OFFICE has the root key, and *issuer* may issue too."""
        world = self.world
        wall, randbytes = world.identity_wall, world.dispatch.random("members").randbytes
        for name in self.names:
            roles = ["issuer"] if name in (OFFICE, issuer) else ["member"]
            by = self.stores[OFFICE].kept.powers[0] if name not in (OFFICE, issuer) else None
            self.stores[name] = enrolled(world.authority, name, wall, randbytes, roles=roles, by=by)
        self.stores[OFFICE].root_key = world.authority

    def _office(self) -> Membership | None:
        node = self.world.nodes.get(OFFICE)
        return None if node is None or node.dead else node.membership

    def _rotate(self, at: float) -> None:
        """The cluster gets another root."""

        def rotate() -> None:
            office = self._office()
            if office is not None:
                try:
                    office.rotate()
                except OfficeError:
                    self.world.dispatch.note("two roots overlap already")

        self._step(at, f"{OFFICE} rotates the root", rotate)

    def _revoke(self, at: float) -> None:
        """A node is revoked under load. Later it is off, and may join again with another key, under its name or another one."""
        victim, length = self.chance.choice([name for name in self.names if name != OFFICE]), self.chance.choice([2.5, 3.0, 4.0])
        after = self.chance.choice(["", victim, victim, f"{victim}x"])

        def revoke() -> None:
            office = self._office()
            if office is None or victim not in self.names or victim in self.banned:
                return
            try:
                office.revoke(victim)
            except OfficeError as error:
                self.world.dispatch.note(f"{victim} is not revoked: {error}")
                return
            self._broken(victim)
            self.banned.add(victim)
            self.refusals = True
            self.world.at(self.world.now + SPREAD, self._check_revoked(victim))

        self._step(at, f"{OFFICE} revokes {victim}", revoke)
        self._step(at + length, f"{victim} is off if it was revoked", lambda: self._off(victim, False) if victim in self.banned else None)
        if after and not (after != victim and victim in self.world.behind):
            told = f"{victim} joins again{f' as {after}' if after != victim else ''} if it was revoked"
            self._step(at + length + self.chance.random(), told, lambda: self._join_again(victim, after))

    def _check_revoked(self, victim: str) -> Callable[[], None]:
        """Every node that was up and undisturbed meanwhile has ended its links with *victim*."""
        breaks = dict(self.breaks)

        def check() -> None:
            for node in self.world.live:
                if node.name != victim and self.breaks == breaks and node.sees(victim):
                    self.ledger.wrong(f"{node.name} still sees {victim} {SPREAD} s after it was revoked")

        return check

    def _join_again(self, name: str, after: str) -> None:
        office = self._office()
        node = self.world.nodes.get(name)
        if name not in self.banned or office is None or (node is not None and not node.dead):
            return
        randbytes = self.world.dispatch.random(f"join {after} {self.world.now}").randbytes
        wall = self.world.identity_wall if self.kind == "everything" else self.world.nodes[OFFICE].view.wall()
        try:
            store = joined(office, after, wall, randbytes)
        except OfficeError as error:
            # The power with which it is issued is newer than what clocks that are a day late accept.
            self.world.dispatch.note(f"{name} does not join: {error}")
            return
        self.banned.discard(name)
        if after != name:
            self._rename(name, after, store)
        self.stores[after] = store
        self._start(after)

    def _rename(self, name: str, after: str, store: MemoryStore) -> None:
        self.world.rename(name, after)
        self.names[self.names.index(name)] = after
        self.skew[after], self.rate[after] = self.skew[name], self.rate[name]

    # At any phase

    def _at_handshake(self, at: float, trouble: Callable[[float], None], number: int) -> None:
        """*trouble* begins with the frame of that number of the handshakes from *at* on, and there are some: keys are renewed."""
        steps, self.steps = self.steps, []
        trouble(0.0)
        planned, self.steps = self.steps, steps
        name = self._someone()
        left = number

        def frame() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.world.on_handshake = None
                self.world.dispatch.note(f"! handshake frame {number}")
                begin = self.world.now
                for step in planned:
                    self.world.at(begin + step.at, self._doing(step.what, step.call))

        def wait() -> None:
            self.world.on_handshake = frame
            node = self.world.nodes.get(name)
            if node is not None and not node.dead:
                node.qnet.rekey()

        what = "; ".join(f"{step.what} (+{step.at:.3f})" for step in planned)
        self._step(at, f"{name} wants new keys; at handshake frame {number}: {what}", wait)

    def _doing(self, what: str, call: Callable[[], None]) -> Callable[[], None]:
        """A step, told to the trace."""

        def do() -> None:
            if what:
                self.world.dispatch.note(f"! {what}")
            call()

        return do
