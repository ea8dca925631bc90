"""What a seed draws: the nodes, their cables and settings, the work, and what goes wrong and when. `qnetpy.testing.scenario` runs it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from qnetpy.link.machine import LinkTimers
from qnetpy.link.session import RekeyPolicy
from qnetpy.link.transport.config import TransportConfig
from qnetpy.parameters import QnetSettings
from qnetpy.testing.changes import PHASES, Changes
from qnetpy.testing.nameswork import NamesTruth
from qnetpy.testing.node import SimNode
from qnetpy.testing.replayer import Replayer
from qnetpy.testing.workload import ECHO, HOLD, Client, FileJob, Op
from qnetpy.testing.world import World

KINDS = (
    *("clean", "lossy", "partition", "crash", "carrier", "two links", "rekey", "coming and going", "mtu and delay", "everything"),
    *("three links", "cards", "paths and keys", "asymmetric", "clocks", "ciphers", "members", "routed", "two bearers", "any phase"),
    "unannounced",
)
SEVERAL = ("two links", "three links", "cards", "paths and keys", "two bearers")
"""Kinds with more than one cable."""
UNTROUBLED = ("clean", "rekey", "ciphers")
"""Kinds in which nothing may fail: there is no trouble, or what is changed must interrupt nothing."""
STEADY = 150
"""Operations of a program that sends at a steady rate."""
STEADY_SHARE = 0.3
STEADY_SHARE_SOUND = 0.6
"""Of the seeds that have one; and of those in which one cable stays good, which it would show."""
NAMES_SHARE = 0.3
"""Of the seeds, in whose nodes programs attach and withdraw global names."""
LONELY = ("unannounced",)
"""Kinds in which no node knows of another at its start: they find each other by solicitations, which an enemy repeats and changes."""
DAYS = (-86400.0, -3600.0, 3600.0, 86400.0, 10 * 86400.0)
"""By which clocks are wrong."""

Planned = Callable[[float], None]


class Plan(Changes):
    """One seed: a world, and `steps` to do to it. Drawing them changes nothing yet."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        kind = KINDS[seed % len(KINDS)]
        chance = random.Random(f"{seed}/plan")
        cables = {"two links": 2, "three links": 3, "routed": 0}.get(kind, 1)
        if kind in ("cards", "paths and keys"):
            cables = chance.choice([2, 3])
        if kind in ("everything", "any phase"):
            cables = chance.choice([1, 1, 2, 3])
        mixed = kind in ("everything", "any phase")
        internets = 1 if kind in ("routed", "two bearers") or (mixed and chance.random() < 0.3) else 0
        self.count = chance.choice([3, 4]) if kind == "everything" else chance.choice([2, 2, 3])
        if kind in ("asymmetric", "members"):
            self.count = 3
        if kind in LONELY:
            cables = chance.choice([1, 1, 2])
        names = [f"n{number}" for number in range(1, self.count + 1)]
        behind = names[-1:] if internets and chance.random() < 0.4 else []
        settings = self._settings(kind, chance)
        links = ("lan", "lan2", "lan3")[:cables]
        world = World(seed, settings=settings, links=links, internets=("wan",)[:internets], behind=behind, trace=trace, watch=True)
        super().__init__(seed, kind, chance, world, names)
        self.clients: list[Client] = []
        if random.Random(f"{seed}/names").random() < NAMES_SHARE:
            self.truth = NamesTruth(world, self.ledger.wrong)
        self.healing = False
        """The trouble is over."""
        self.enemies = [Replayer(world, link, random.Random(f"{seed}/enemy/{link}")) for link in links] if kind in LONELY else []
        self.length = chance.choice([2.0, 4.0])
        """Seconds for which things go wrong."""
        if kind in LONELY:
            self.known_at_start = []
        self._clocks()
        if kind == "members" or (kind == "everything" and chance.random() < 0.3):
            self._enrol_all(chance.choice(["", "n2"]))
        self._plan()

    @staticmethod
    def _settings(kind: str, chance: random.Random) -> QnetSettings:
        rekey = RekeyPolicy()
        if kind in ("rekey", "paths and keys") or (kind in ("everything", "any phase") and chance.random() < 0.5):
            rekey = RekeyPolicy(
                after=chance.choice([1.0, 2.0]), stagger=chance.choice([0.0, 0.5]), grace=1.0, frames=chance.choice([300, 2**62])
            )
        return QnetSettings(
            rekey=rekey,
            timers=LinkTimers(),
            transport=TransportConfig(congestion=chance.choice(["tolerant", "tolerant", "cubic", "newreno"])),
            paths=chance.choice(["loadbalance", "loadbalance", "redundant", "preferred:en0", "preferred:en1"]),
            suites=chance.choice([(), ("chacha20-poly1305",), ("aes-256-gcm", "aes-128-gcm")]),
            solicit=kind in LONELY,
        )

    def _clocks(self) -> None:
        chance, kind = self.chance, self.kind
        for name in self.names:
            if chance.random() < 0.5:
                self.skew[name] = chance.choice(DAYS) if kind == "clocks" else chance.uniform(-100, 100)
            if kind in ("clocks", "everything") and chance.random() < 0.5:
                self.rate[name] = chance.uniform(0.98, 1.02)

    # The plan

    def _kinds(self) -> dict[str, list[Planned]]:
        """Troubles by kind."""
        routed: list[Planned] = [self._card, self._cut_one, self._partition, self._crash, self._sever]
        forgetting: list[Planned] = [self._forget, self._forget] if self.world.behind else []
        routed += forgetting
        paths: list[Planned] = [self._carrier, self._cut_one, self._one_way_of, self._flap, self._card, self._unplug]
        everything: list[Planned] = [
            *paths,
            self._partition,
            self._crash,
            self._one_way,
            self._stop,
            self._shrink,
            self._burst,
            self._sever,
        ]
        everything += [self._rekey_now, self._suites, self._set_clock, self._copied]
        members: list[Planned] = [self._revoke, self._revoke, self._rotate, self._crash, self._rekey_now]
        harmless: list[Planned] = [self._rotate, self._suites, self._rekey_now]
        return {
            "partition": [self._partition],
            "crash": [self._crash],
            "carrier": [self._carrier, self._one_way],
            "two links": [self._carrier, self._cut_one, self._carrier, self._one_way_of, self._all_cut, self._sever],
            "three links": [self._carrier, self._cut_one, self._one_way_of, self._flap, self._shrink, self._all_cut],
            "cards": [self._card, self._card, self._unplug, self._carrier, self._cut_one],
            "paths and keys": [*paths, self._rekey_now, self._suites],
            "coming and going": [self._stop, self._crash, self._stop],
            "mtu and delay": [self._shrink, self._burst],
            "everything": everything + (members if self.stores else []),
            "asymmetric": [self._sever, self._sever, self._one_way],
            "clocks": [self._set_clock, self._set_clock, self._copied, self._crash, self._partition],
            "ciphers": [self._suites, self._suites, self._rekey_now],
            "members": harmless if self.sound else members,
            "routed": routed,
            "two bearers": [*paths, *forgetting],
            "any phase": everything,
            "unannounced": [*paths, self._partition, self._crash, self._stop, self._sever, self._one_way, self._burst, self._copied],
        }

    def _plan(self) -> None:
        chance, kind = self.chance, self.kind
        mixed = kind in ("everything", "any phase")
        if (
            kind == "lossy"
            or (mixed and chance.random() < 0.5)
            or (kind in ("members", "routed", "clocks", *LONELY) and chance.random() < 0.3)
        ):
            self.faults = self._bad_cable()
        if kind == "mtu and delay" or (mixed and chance.random() < 0.3):
            self.mtu = chance.choice([1500, 4000, 9000])
            delay = chance.choice(["", "delay=1ms", "delay=5ms,jitter=2ms", "rate=10M", "delay=2ms,rate=50M"])
            before = self.faults.split(",") if self.faults else []
            self.faults = ",".join([part for part in before if not part.startswith("jitter")] + [part for part in delay.split(",") if part])
        self.good = not self.faults
        if kind in UNTROUBLED and chance.random() < 0.5:
            self.faults = chance.choice(["delay=1ms", "delay=8ms"])
        late = kind in ("coming and going", "everything", *LONELY)
        for name in self.names:
            at = chance.choice([0.0, chance.random() * 2]) if late else 0.0
            self._step(at, f"{name} is switched on", partial(self._start, name))
        self.sound = kind in (*SEVERAL, "members") and self.good and chance.random() < 0.5
        self.bad_interface = chance.choice(self.interfaces) if self.sound and kind in SEVERAL else ""
        troubles = self._kinds().get(kind, [])
        at = (4.0 if self.sound else 0.7) + chance.random()
        for _ in range(chance.choice([1, 2, 3, 6] if kind in SEVERAL else [1, 2, 3]) if troubles else 0):
            trouble = chance.choice(troubles)
            if kind == "any phase":
                self._at_handshake(at, trouble, chance.randrange(1, PHASES + 1))
            else:
                trouble(at)
            at += 0.3 + chance.random() * 3
        self.end = max(at, self.length, *(step.at for step in self.steps)) + chance.choice([0.0, 0.1, 0.5, 4.0])
        if troubles and not self.sound and kind not in UNTROUBLED and chance.random() < 0.08:
            # What is not undone before the end lasts until everybody has become slow to call. An address at which nobody was ever met is
            # then called once a minute, unless its node is at the other end of a cable that comes back, and calls: so all know of all.
            self.end += chance.choice([20.0, 70.0])
            if kind not in LONELY:
                self.world.join(*self.names)
        self._work(0.2, self.end)
        self.steps.sort(key=lambda step: step.at)

    @property
    def calm(self) -> float | None:
        """From when on nothing may fail, until the healing; None: from never on."""
        return 0.3 if self.kind in UNTROUBLED else 4.0 if self.sound else None

    # Work

    def _work(self, first: float, last: float) -> None:
        chance = self.chance
        for _ in range(chance.randrange(8, 40)):
            self._step(chance.uniform(first, last), "", self._send)
        if chance.random() < (STEADY_SHARE_SOUND if self.sound else STEADY_SHARE):
            self._steady(chance.uniform(max(first, 3.0) if self.sound else first, last), chance.choice([0.005, 0.02, 0.05]))
        for _ in range(chance.randrange(1, 5)):
            self._step(chance.uniform(first, last), "", self._job)
        for _ in range(chance.randrange(6)):
            self._step(chance.uniform(first, last), "", self._pulse)

    def _steady(self, at: float, pause: float) -> None:
        """One program that never waits long enough for anything to run out: small operations at a steady rate."""
        one, two = self._pair_of_names()
        self._step(at, f"{one} sends to {two} every {pause * 1000:.0f} ms, {STEADY} times", partial(self._begin_steady, one, two, pause))

    def _begin_steady(self, one: str, two: str, pause: float) -> None:
        node = self.world.nodes.get(one)
        if node is None or node.dead:
            return
        client = Client(node, two, self.ledger, random.Random(f"{self.seed}/steady"))
        self.clients.append(client)

        def send(left: int) -> None:
            if left and not node.dead and not self.healing:
                client.send(ECHO, 64)
                self.world.at(self.world.now + pause, partial(send, left - 1))

        send(STEADY)

    def _pair(self) -> tuple[SimNode, str] | None:
        live = self.world.live
        if not live:
            return None
        node = self.chance.choice(live)
        to = self.chance.choice([name for name in self.names if name != node.name])
        return node, to

    def _client(self) -> Client | None:
        pair = self._pair()
        if pair is None:
            return None
        node, to = pair
        mine = [client for client in self.clients if client.node is node and client.to == to]
        if mine and self.chance.random() < 0.7:
            return self.chance.choice(mine)
        client = Client(node, to, self.ledger, random.Random(f"{self.seed}/client/{len(self.clients)}"))
        self.clients.append(client)
        return client

    def _send(self) -> None:
        client = self._client()
        if client is None:
            return
        for _ in range(self.chance.choice([1, 1, 3])):
            op = client.send()
            if op is not None and (op.mode == HOLD or self.chance.random() < 0.2):
                self._unblock_later(client, op)

    def _unblock_later(self, client: Client, op: Op) -> None:
        def unblock() -> None:
            if not client.node.dead:
                client.unblock(op)

        self.world.at(self.world.now + self.chance.choice([0.0, 0.0001, 0.01, 0.5, 2.0]), unblock)

    def _job(self) -> None:
        pair = self._pair()
        if pair is not None:
            FileJob(pair[0], pair[1], self.ledger, random.Random(self.chance.getrandbits(64))).start()

    def _pulse(self) -> None:
        client = self._client()
        if client is not None:
            client.pulse()
