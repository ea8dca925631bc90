"""What can go wrong with cables, power and paths, as steps of a plan. A method plans one trouble from a time on; all draws are made then.

`qnetpy.testing.changes` has what is changed about keys, clocks and membership; `qnetpy.testing.plan` puts both together.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import attrs

from qnetpy.testing.members import MemoryStore
from qnetpy.testing.nameswork import NamesTruth, NamesWork
from qnetpy.testing.node import SimNode
from qnetpy.testing.workload import Ledger, Server
from qnetpy.testing.world import World

SLACK = 0.5
"""Seconds beyond `down_after` until a pending operation must have failed: frames under way, and one heartbeat."""


@attrs.frozen
class Step:
    """Something that happens to the world at a time."""

    at: float
    what: str
    call: Callable[[], None] = attrs.field(repr=False)


class Trouble:
    """A world, and `steps` to do to it. Planning changes nothing yet."""

    def __init__(self, seed: int, kind: str, chance: random.Random, world: World, names: list[str]) -> None:
        self.seed = seed
        self.kind = kind
        self.chance = chance
        self.world = world
        self.names = names
        """Of all nodes; one that was renamed has its new name."""
        self.ledger = Ledger(world.dispatch.note)
        self.servers: dict[str, Server] = {}
        self.truth: NamesTruth | None = None
        """Of global names, in seeds whose nodes have some."""
        self.steps: list[Step] = []
        self.good = True
        """No cable does anything to what passes, except that it may take its time."""
        self.faults = ""
        """Of every cable, in the good times."""
        self.mtu = 1500
        self.interfaces = list(world.interfaces.values())
        self.sound = False
        """One cable stays good, so nothing may fail."""
        self.bad_interface = ""
        """The one with which anything goes wrong, when the others stay good."""
        self.skew = dict.fromkeys(names, 0.0)
        self.rate = dict.fromkeys(names, 1.0)
        self.stores: dict[str, MemoryStore] = {}
        """What nodes keep, where membership changes."""
        self.banned: set[str] = set()
        """Nodes that were revoked and have not joined again."""
        self.known_at_start: list[str] | None = None
        """Nodes that each knows of when it is switched on; None: all that were switched on before."""
        self.refusals = False
        """There was one: addresses where somebody was refused are not called for a while."""
        self.breaks = Counter(names)
        """How often something was changed about each node."""

    def _step(self, at: float, what: str, call: Callable[[], None]) -> None:
        self.steps.append(Step(at, what, call))

    def _broken(self, name: str) -> None:
        self.breaks[name] += 1

    # Cables

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
        return self.bad_interface or self.chance.choice(self.interfaces)

    def _pair_of_names(self) -> tuple[str, str]:
        one, two = self.chance.sample(self.names, 2)
        return one, two

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

        for number, interface in enumerate(self.interfaces):
            if not self.sound or interface == self.bad_interface:
                when = at + 0.01 * number
                self._step(when, f"{name} {interface}: cut", self._for_all(name, partial(cut, interface=interface, value=True)))
                self._step(when + length, f"{name} {interface}: good", self._for_all(name, partial(cut, interface=interface, value=False)))

    def _card(self, at: float) -> None:
        """A card is exchanged: another address on the same cable, or on the internet, told by nobody but its node."""
        name, interface, number = self._someone(), self._interface(), self.chance.getrandbits(16)

        def exchange(node: SimNode) -> None:
            self._broken(name)
            node.exchange(interface, number)

        self._step(at, f"{name} {interface}: another address", self._for_all(name, exchange))

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
        way = self.chance.choice(["", "", ",apply=tx", ",apply=rx"])
        self._step(at, f"{name}: path takes {mtu}{way}", self._for_all(name, lambda node: self._set_fault(node, f"mtu={mtu}{way}")))

    def _burst(self, at: float) -> None:
        name, way = self._someone(), self.chance.choice(["", ",apply=tx", ",apply=rx"])
        self._step(at, f"{name}: half of all is lost{way}", self._for_all(name, lambda node: self._set_fault(node, f"drop=50%{way}")))
        self._step(at + 0.4, f"{name}: no more", self._for_all(name, lambda node: self._set_fault(node, self.faults)))

    def _set_fault(self, node: SimNode, text: str) -> None:
        self._broken(node.name)
        node.set_fault(text)

    def _step_back(self, at: float, length: float, what: str, call: Callable[[], None]) -> None:
        """The end of a trouble; one in four lasts until all is healed."""
        if self.chance.random() < 0.75:
            self._step(at + length, what, call)

    # Between two nodes only

    def _sever(self, at: float) -> None:
        """What one node sends does not reach another, on some or all cables; perhaps the other way neither. All else passes."""
        (one, two), length = self._pair_of_names(), self.chance.choice([0.3, 1.5, 2.5, 4.0, 5.0])
        pairs = {(one, two)} if self.chance.random() < 0.6 else {(one, two), (two, one)}
        links = [link for link, interface in self.world.interfaces.items() if not self.sound or interface == self.bad_interface]
        if not self.sound and self.chance.random() < 0.3:
            links = [self.chance.choice(links)]

        def sever(value: bool) -> None:
            for name in (one, two):
                self._broken(name)
            for link in links:
                hub = self.world.hubs[link]
                hub.severed = hub.severed | pairs if value else hub.severed - pairs
            if value and len(links) == len(self.interfaces):
                # Who still hears the other gives up when that says so, or, where that word may be lost, when it has become silent.
                more = self.world.settings.timers.down_after if len(pairs) == 1 and not self.good else 0.0
                self._expect_end_between(one, two, f"the end of {one}{' > ' if len(pairs) == 1 else ' = '}{two}", more)

        where = "" if len(links) == len(self.interfaces) else f" on {links[0]}"
        self._step(at, f"{one} does not reach {two}{where}{', nor back' if len(pairs) > 1 else ''}", lambda: sever(True))
        self._step_back(at, length, f"{one} reaches {two} again{where}", lambda: sever(False))

    def _forget(self, at: float) -> None:
        """A router that translates addresses loses its table."""
        name = self.chance.choice(sorted(self.world.behind))

        def forget() -> None:
            self._broken(name)
            self.world.routers[name].forget()

        self._step(at, f"the router before {name} forgets", forget)

    # Power

    def _start(self, name: str) -> None:
        before = self.world.nodes.get(name)
        if (before is None or before.dead) and name in self.names and name not in self.banned:
            self._broken(name)
            store = self.stores.get(name)
            node = self.world.start(
                name, skew=self.skew[name], rate=self.rate[name], mtu=self.mtu, fault=self.faults, store=store, call=self.known_at_start
            )
            self.servers[name] = Server(node, self.ledger)
            if self.truth is not None:
                NamesWork(self.truth, node, random.Random(f"{self.seed}/names/{node.boot}"))

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

    def _expect_end_between(self, one: str, two: str, what: str, more: float) -> None:
        """The same of two nodes that do not hear each other, or of which one does not hear the other. *more*: seconds that it may take
        beyond that."""
        counts = self.breaks[one], self.breaks[two]
        limit = self.world.settings.timers.down_after + SLACK + more

        def check() -> None:
            if (self.breaks[one], self.breaks[two]) != counts:
                return
            for op in self.ledger.open.values():
                if {op.client.name, op.to} == {one, two} and not op.client.dead:
                    self.ledger.wrong(
                        f"operation {op.number} of {op.client.name} to {op.to} since {op.began} is pending {limit} s after {what}"
                    )

        self.world.at(self.world.now + limit, check)
