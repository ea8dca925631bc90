"""What a flood leaves of bulk data between two nodes, beside the same frames of a protocol that nobody speaks.

The enemy is played by the same machine as the victim, so what his frames cost it, whoever they are for, is no cost of ours. Hence the
control: the very same frames at the same rate under another ethertype. Two figures come of a pair of measurements: the speeds, and the
victim's processor time for a megabyte. The second says what the first would where nobody else uses the machine and the victim is what
limits the speed; on a busy machine the first says little. Used by bench/flood.py and tests/cluster/test_flood.py.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

import attrs

from qnetpy.cluster.handle import Cluster
from qnetpy.testing.attack import Program, Victim, flooding, program

TOPOLOGY = """
title = "flood"
[links.lan]
learning = false
[nodes.n1]
boot = []
shutdown = []
[nodes.n2]
boot = []
shutdown = []
[nodes.n3]
[nodes.x]
boot = []
shutdown = []
"""
"""A hub: on a switch, frames in another's name draw that node's frames."""
VICTIM, OTHER, RECORDED, ENEMY = "n2", "n1", "n3", "x"
START = 0.7
"""Seconds of a flood before anything is measured: the victim has noticed it."""


@attrs.frozen
class Measure:
    speed: float
    """MB/s."""
    work: float
    """Seconds of the victim's processor time for a MB."""


@attrs.frozen
class Pair:
    """One after the other."""

    control: Measure
    flood: Measure

    @property
    def speed(self) -> float:
        """What the flood leaves."""
        return self.flood.speed / self.control.speed

    @property
    def work(self) -> float:
        """What it would leave where the victim limits the speed."""
        return self.control.work / self.flood.work


class Trial:
    """Kinds of frames at one rate."""

    def __init__(self, victim: Victim, sender: Program, recording: bytes, kinds: list[str], rate: float, seconds: float) -> None:
        self.victim = victim
        self.sender = sender
        self.recording = recording
        self.kinds = kinds
        self.rate = rate
        self.seconds = seconds
        self.sent: list[float] = []
        """Frames per second, of each measurement."""

    def bulk(self) -> Measure:
        before = self.victim.processor()
        told = self.sender.tell(str(self.seconds))
        return Measure(told["rate"], (self.victim.processor() - before) / told["sent"])

    def flooded(self, *options: str) -> Measure:
        with flooding(self.victim, ENEMY, self.recording, self.kinds, self.rate, *options) as flood:
            time.sleep(START)
            flood.rate()
            measure = self.bulk()
            if not options:
                self.sent.append(flood.rate())
            return measure

    def share(self, seconds: float) -> float:
        """Of a core that the victim takes during the flood alone."""
        with flooding(self.victim, ENEMY, self.recording, self.kinds, self.rate):
            time.sleep(START)
            return self.victim.share(seconds)[0]

    def pairs(self) -> list[Pair]:
        """Two, in the order control, flood, flood, control."""
        first, one = self.flooded("--unheard"), self.flooded()
        other, last = self.flooded(), self.flooded("--unheard")
        return [Pair(first, one), Pair(last, other)]


def start(cluster: Cluster, stack: ExitStack) -> tuple[Victim, Program]:
    """The two programs in a cluster of TOPOLOGY, and the daemon whose call is recorded: the victim, and who sends to it."""
    stack.enter_context(program(cluster, VICTIM, "bulk", "serve"))
    sender = stack.enter_context(program(cluster, OTHER, "bulk", "send", VICTIM))
    cluster.run(RECORDED, "qnet", "nodes", "--wait", VICTIM)
    return Victim(cluster, VICTIM), sender
