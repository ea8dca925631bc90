"""What a seed draws: the nodes, their cables and settings, the work, and what goes wrong and when. `qnetpy.testing.scenario` runs it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import attrs

from qnetpy.link.machine import LinkTimers
from qnetpy.link.session import RekeyPolicy
from qnetpy.link.transport.config import TransportConfig
from qnetpy.parameters import QnetSettings
from qnetpy.testing.workload import HOLD, Client, FileJob, Ledger, Op, Server
from qnetpy.testing.world import SimNode, World

KINDS = (
    *("clean", "lossy", "partition", "crash", "carrier", "two links", "rekey", "coming and going", "mtu and delay", "everything"),
    *("three links", "cards", "paths and keys"),
)
SEVERAL = ("two links", "three links", "cards", "paths and keys")
"""Kinds with more than one cable."""
SLACK = 0.5
"""Seconds beyond `down_after` until a pending operation must have failed: frames under way, and one heartbeat."""


@attrs.frozen
class Step:
    """Something that happens to the world at a time."""

    at: float
    what: str
    call: Callable[[], None] = attrs.field(repr=False)


class Plan:
    """One seed: a world, and `steps` to do to it. Drawing them changes nothing yet."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.kind = KINDS[seed % len(KINDS)]
        self.chance = chance = random.Random(f"{seed}/plan")
        kind = self.kind
        cables = {"two links": 2, "three links": 3}.get(kind, 1)
        if kind in ("cards", "paths and keys"):
            cables = chance.choice([2, 3])
        if kind == "everything":
            cables = chance.choice([1, 1, 2, 3])
        self.count = chance.choice([3, 4]) if kind == "everything" else chance.choice([2, 2, 3])
        self.names = [f"n{number}" for number in range(1, self.count + 1)]
        rekey = RekeyPolicy()
        if kind in ("rekey", "paths and keys") or (kind == "everything" and chance.random() < 0.5):
            rekey = RekeyPolicy(
                after=chance.choice([1.0, 2.0]), stagger=chance.choice([0.0, 0.5]), grace=1.0, frames=chance.choice([300, 2**62])
            )
        settings = QnetSettings(
            rekey=rekey,
            timers=LinkTimers(),
            transport=TransportConfig(congestion=chance.choice(["tolerant", "tolerant", "cubic", "newreno"])),
            paths=chance.choice(["loadbalance", "loadbalance", "redundant", "preferred:en0", "preferred:en1"]),
            suites=chance.choice([(), ("chacha20-poly1305",), ("aes-256-gcm", "aes-128-gcm")]),
        )
        self.world = World(seed, settings=settings, links=("lan", "lan2", "lan3")[:cables], trace=trace, watch=True)
        self.ledger = Ledger(self.world.dispatch.note)
        self.servers: dict[str, Server] = {}
        self.clients: list[Client] = []
        self.steps: list[Step] = []
        self.faults = ""
        self.mtu = 1500
        self.trouble = chance.choice([2.0, 4.0])
        """Seconds for which things go wrong."""
        self.skew = {name: chance.uniform(-100, 100) if chance.random() < 0.5 else 0.0 for name in self.names}
        self.breaks = Counter(self.names)
        """How often something was changed about each node."""
        self._plan()

    # The plan

    def _step(self, at: float, what: str, call: Callable[[], None]) -> None:
        self.steps.append(Step(at, what, call))

    def _plan(self) -> None:
        chance, kind = self.chance, self.kind
        mixed = kind == "everything"
        if kind == "lossy" or (mixed and chance.random() < 0.5):
            self.faults = self._bad_cable()
        if kind == "mtu and delay" or (mixed and chance.random() < 0.3):
            self.mtu = chance.choice([1500, 4000, 9000])
            delay = chance.choice(["", "delay=1ms", "delay=5ms,jitter=2ms", "rate=10M", "delay=2ms,rate=50M"])
            before = self.faults.split(",") if self.faults else []
            self.faults = ",".join([part for part in before if not part.startswith("jitter")] + [part for part in delay.split(",") if part])
        late = kind in ("coming and going", "everything")
        for name in self.names:
            at = chance.choice([0.0, chance.random() * 2]) if late else 0.0
            self._step(at, f"{name} is switched on", lambda name=name: self._start(name))  # type: ignore[misc]  # bound early
        kinds: dict[str, list[Callable[[float], None]]] = {
            "partition": [self._partition],
            "crash": [self._crash],
            "carrier": [self._carrier, self._one_way],
            "two links": [self._carrier, self._cut_one, self._carrier, self._one_way_of, self._all_cut],
            "three links": [self._carrier, self._cut_one, self._one_way_of, self._flap, self._shrink, self._all_cut],
            "cards": [self._card, self._card, self._unplug, self._carrier, self._cut_one],
            "paths and keys": [self._carrier, self._cut_one, self._one_way_of, self._flap, self._card, self._unplug],
            "coming and going": [self._stop, self._crash, self._stop],
            "mtu and delay": [self._shrink, self._burst],
            "everything": [
                self._partition,
                self._crash,
                self._carrier,
                self._one_way,
                self._stop,
                self._shrink,
                self._burst,
                self._cut_one,
                self._one_way_of,
                self._flap,
                self._card,
                self._unplug,
            ],
            "rekey": [],
        }
        troubles = kinds.get(kind, [])
        self.sound = kind in SEVERAL and chance.random() < 0.5
        """One of two cables stays good, so nothing may fail."""
        self.bad_interface = chance.choice([f"en{number}" for number in range(len(self.world.hubs))]) if self.sound else ""
        at = (4.0 if self.sound else 0.7) + chance.random()
        for _ in range(chance.choice([1, 2, 3, 6] if kind in SEVERAL else [1, 2, 3]) if troubles else 0):
            chance.choice(troubles)(at)
            at += 0.3 + chance.random() * 3
        self.end = max(at, self.trouble, *(step.at for step in self.steps)) + chance.choice([0.0, 0.1, 0.5, 4.0])
        self._work(0.2, self.end)
        self.steps.sort(key=lambda step: step.at)

    def _bad_cable(self) -> str:
        chance = self.chance
        parts = []
        for name, shares, likely in (
            ("drop", ("1%", "5%", "15%"), 0.8),
            ("dup", ("2%", "20%"), 0.5),
            ("reorder", ("2%", "5%", "30%"), 0.5),
            ("corrupt", ("0.5%", "2%"), 0.5),
            ("jitter", ("100us", "2ms"), 0.2),
        ):
            if chance.random() < likely:
                parts.append(f"{name}={chance.choice(shares)}")
        return ",".join(parts)

    def _someone(self) -> str:
        return self.chance.choice(self.names)

    def _interface(self) -> str:
        return self.bad_interface or self.chance.choice([f"en{number}" for number in range(len(self.world.hubs))])

    def _for_all(self, name: str, call: Callable[[SimNode], None]) -> Callable[[], None]:
        def run() -> None:
            node = self.world.nodes.get(name)
            if node is not None and not node.dead:
                call(node)

        return run

    def _partition(self, at: float) -> None:
        name, length = self._someone(), self.chance.choice([0.3, 1.5, 2.5, 4.0, 5.0])

        def cut(node: SimNode, value: bool) -> None:
            self._broken(name)
            for cable in node.cables.values():
                cable.cut = value
            if value:
                self._expect_end(node, f"partition of {name}")

        self._step(at, f"{name} is cut off", self._for_all(name, lambda node: cut(node, True)))
        self._step_back(at, length, f"{name} is connected again", self._for_all(name, lambda node: cut(node, False)))

    def _crash(self, at: float) -> None:
        name = self._someone()
        back = self.chance.choice([0.0, 0.05, 0.5, 2.0, 4.5, None])
        self._step(at, f"{name} loses power", lambda: self._off(name, False))
        if back is not None:
            self._step(at + back, f"{name} is switched on again", lambda: self._start(name))

    def _stop(self, at: float) -> None:
        name = self._someone()
        back = self.chance.choice([0.0, 0.05, 0.5, 4.5, None])
        self._step(at, f"{name} is stopped", lambda: self._off(name, True))
        if back is not None:
            self._step(at + back, f"{name} is started again", lambda: self._start(name))

    def _carrier(self, at: float) -> None:
        name, length = self._someone(), self.chance.choice([0.05, 0.5, 2.0, 4.0])
        interface = self._interface()

        def set_carrier(node: SimNode, up: bool) -> None:
            self._broken(name)
            node.cable(interface).set_carrier(up)

        self._step(at, f"{name} {interface}: carrier lost", self._for_all(name, lambda node: set_carrier(node, False)))
        self._step_back(at, length, f"{name} {interface}: carrier back", self._for_all(name, lambda node: set_carrier(node, True)))

    def _cut_one(self, at: float) -> None:
        name, length = self._someone(), self.chance.choice([0.5, 2.0, 5.0])
        interface = self._interface()

        def cut(node: SimNode, value: bool) -> None:
            self._broken(name)
            node.cable(interface).cut = value

        self._step(at, f"{name} {interface}: cut", self._for_all(name, lambda node: cut(node, True)))
        self._step_back(at, length, f"{name} {interface}: good", self._for_all(name, lambda node: cut(node, False)))

    def _one_way(self, at: float) -> None:
        name, length, way = self._someone(), self.chance.choice([0.5, 2.0, 5.0]), self.chance.choice(["tx", "rx"])
        self._step(at, f"{name} can only {way}", self._for_all(name, lambda node: self._set_fault(node, f"oneway={way}")))
        self._step_back(at, length, f"{name} can do both", self._for_all(name, lambda node: self._set_fault(node, self.faults)))

    def _one_way_of(self, at: float) -> None:
        name, length, way = self._someone(), self.chance.choice([0.5, 2.0, 5.0]), self.chance.choice(["tx", "rx"])
        interface = self._interface()

        def set_fault(node: SimNode, text: str) -> None:
            self._broken(name)
            node.set_fault(text, interface)

        self._step(at, f"{name} {interface}: only {way}", self._for_all(name, lambda node: set_fault(node, f"oneway={way}")))
        self._step_back(at, length, f"{name} {interface}: both ways", self._for_all(name, lambda node: set_fault(node, self.faults)))

    def _flap(self, at: float) -> None:
        """A plug that sits loosely: carrier and silence in turn, ten times."""
        name, interface, pause = self._someone(), self._interface(), self.chance.choice([0.01, 0.05, 0.3])
        carrier = self.chance.random() < 0.5

        def work(node: SimNode, good: bool) -> None:
            self._broken(name)
            if carrier:
                node.cable(interface).set_carrier(good)
            else:
                node.cable(interface).cut = not good

        for count in range(20):
            good = bool(count % 2)
            what = f"{name} {interface}: {'good' if good else 'bad'}"
            self._step(at + count * pause, what, self._for_all(name, partial(work, good=good)))

    def _all_cut(self, at: float) -> None:
        """Every cable of a node, one after another, and back before it is given up; unless one is to stay good."""
        name, length = self._someone(), self.chance.choice([0.3, 1.5, 2.5])

        def cut(node: SimNode, interface: str, value: bool) -> None:
            self._broken(name)
            node.cable(interface).cut = value

        for number in range(len(self.world.hubs)):
            interface = f"en{number}"
            if not self.sound or interface == self.bad_interface:
                when = at + 0.01 * number
                self._step(when, f"{name} {interface}: cut", self._for_all(name, partial(cut, interface=interface, value=True)))
                self._step(when + length, f"{name} {interface}: good", self._for_all(name, partial(cut, interface=interface, value=False)))

    def _card(self, at: float) -> None:
        """A card is exchanged: another address on the same cable, told by nobody but its node."""
        name, interface, number = self._someone(), self._interface(), self.chance.getrandbits(16)

        def exchange(node: SimNode) -> None:
            self._broken(name)
            node.exchange(interface, bytes((2, 9, int(interface[2:]), self.names.index(name))) + number.to_bytes(2, "big"))

        self._step(at, f"{name} {interface}: another card", self._for_all(name, exchange))

    def _unplug(self, at: float) -> None:
        """An interface is not there any more, and comes back or stays away until all is healed."""
        name, interface, length = self._someone(), self._interface(), self.chance.choice([0.0, 0.2, 2.0])

        def remove(node: SimNode) -> None:
            self._broken(name)
            node.unplug(interface)

        def back(node: SimNode) -> None:
            self._broken(name)
            node.plug(interface)

        self._step(at, f"{name} {interface}: removed", self._for_all(name, remove))
        self._step_back(at, length, f"{name} {interface}: added", self._for_all(name, back))

    def _shrink(self, at: float) -> None:
        name, mtu = self._someone(), self.chance.choice([1280, 1300, 1400])
        self._step(at, f"{name}: path takes {mtu}", self._for_all(name, lambda node: self._set_fault(node, f"mtu={mtu}")))

    def _burst(self, at: float) -> None:
        name = self._someone()
        self._step(at, f"{name}: half of all is lost", self._for_all(name, lambda node: self._set_fault(node, "drop=50%")))
        self._step(at + 0.4, f"{name}: no more", self._for_all(name, lambda node: self._set_fault(node, self.faults)))

    def _set_fault(self, node: SimNode, text: str) -> None:
        self._broken(node.name)
        node.set_fault(text)

    def _step_back(self, at: float, length: float, what: str, call: Callable[[], None]) -> None:
        """The end of a trouble; one in four lasts until all is healed."""
        if self.chance.random() < 0.75:
            self._step(at + length, what, call)

    def _broken(self, name: str) -> None:
        self.breaks[name] += 1

    def _start(self, name: str) -> None:
        before = self.world.nodes.get(name)
        if before is None or before.dead:
            self._broken(name)
            node = self.world.start(name, skew=self.skew[name], mtu=self.mtu, fault=self.faults)
            self.servers[name] = Server(node, self.ledger)

    def _off(self, name: str, clean: bool) -> None:
        node = self.world.nodes.get(name)
        if node is None or node.dead:
            return
        self._broken(name)
        if clean:
            node.stop()
            if self.kind == "coming and going":
                count = self.breaks.total()
                self.world.at(self.world.now + 0.5, lambda: self._check_gone(name, count))
        else:
            node.crash()
        self._expect_end(node, f"end of {name}")

    def _check_gone(self, name: str, count: int) -> None:
        """A clean stop on a good cable is known to all half a second later."""
        if self.breaks.total() == count:
            for node in self.world.live:
                other = node.qnet.nodes.get(name)
                if other is not None and other.reachable:
                    self.ledger.wrong(f"{node.name} takes {name} for {other.state.value} half a second after its stop")

    def _expect_end(self, node: SimNode, what: str) -> None:
        """Unless *node* comes back before: whatever others wait for from it must have ended when they give it up."""
        since, count = self.world.now, self.breaks[node.name]
        limit = self.world.settings.timers.down_after + SLACK

        def check() -> None:
            if self.breaks[node.name] != count:
                return
            for op in self.ledger.open.values():
                if node.name in (op.to, op.client.name) and op.to != op.client.name and not op.client.dead:
                    self.ledger.wrong(
                        f"operation {op.number} of {op.client.name} to {op.to} since {op.began} is pending {limit} s after {what}"
                    )

        self.world.at(since + limit, check)

    # Work

    def _work(self, first: float, last: float) -> None:
        chance = self.chance
        for _ in range(chance.randrange(8, 40)):
            self._step(chance.uniform(first, last), "", self._send)
        for _ in range(chance.randrange(1, 5)):
            self._step(chance.uniform(first, last), "", self._job)
        for _ in range(chance.randrange(6)):
            self._step(chance.uniform(first, last), "", self._pulse)

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
