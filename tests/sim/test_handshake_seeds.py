"""Handshakes over a wire that loses, copies, reorders and corrupts, with both ends calling at once, rekeys and restarts in the middle.

After every run: one session that both ends agree on, no nonce under one key twice, nothing opened twice, no failure but an unanswered call,
and bounded tables. SEEDS=N in the environment runs N seeds instead of 500; SEED=K runs that one, as a failure's note says.
"""

from __future__ import annotations

import os
import random

import pytest

from qnetpy.identity.authority import NodeIdentity, issue_identity, make_authority
from qnetpy.link.constants import HALF_OPEN_PER_NAME
from qnetpy.link.outcome import Reason
from qnetpy.link.session import RekeyPolicy
from qnetpy.link.testing import WALL, Caller, Faults, Wire, address, agreed

pytestmark = pytest.mark.sim
SEEDS = int(os.environ.get("SEEDS", "500"))
ONE = os.environ.get("SEED")
GROUP = 25
HARMLESS = {Reason.NO_ANSWER, Reason.UNCONFIRMED, Reason.SUPERSEDED}


@pytest.fixture(scope="module")
def identities() -> list[NodeIdentity]:
    chance = random.Random(1)
    authority = make_authority("garden", WALL, random=chance.randbytes)
    return [issue_identity(authority, f"n{number}", [], WALL, random=chance.randbytes) for number in range(3)]


def storm(seed: int, identities: list[NodeIdentity]) -> None:
    chance = random.Random(f"plan {seed}")
    faults = Faults(chance.random() * 0.4, chance.random() * 0.3, chance.random() * 0.4, chance.random() * 0.1)
    if seed % 5 == 0:
        faults.corrupt = 0.0
    wire = Wire(seed, faults)
    suites = [("aes-128-gcm", "chacha20-poly1305"), ("chacha20-poly1305", "aes-256-gcm")]
    nodes: list[Caller] = []

    def start(number: int) -> Caller:
        caller = Caller(wire, identities[number], address(number), chance.choice(suites), skew=chance.uniform(-100, 100))
        caller.rekey = RekeyPolicy(after=chance.uniform(1.0, 4.0), stagger=chance.choice([0.0, 0.5]), grace=1.0)
        for other in range(count):
            # Some know the name of whom they call, some only an address, some wait to be called.
            if other != number and (chance.random() < 0.8 or other > number):
                caller.want(address(other), chance.choice(["", identities[other].name]))
        return caller

    count = chance.choice([2, 2, 3])
    nodes = [start(number) for number in range(count)]
    storm_end = chance.uniform(0.5, 5.0)
    for _ in range(chance.randrange(3)):
        wire.run(chance.uniform(wire.now, storm_end))
        victim = chance.randrange(count)
        nodes[victim] = start(victim)
    wire.run(storm_end)
    wire.faults = Faults()
    wire.run(storm_end + 9.0)
    ups = [dict(node.ups) for node in nodes]
    wire.run(storm_end + 12.0)
    for one in nodes:
        for two in nodes:
            if one is not two:
                # At a rekey's moment one end has the new keys a moment earlier: look once more.
                for _ in range(20):
                    if agreed(one, two) is not None:
                        break
                    wire.run(wire.now + 0.005)
                else:
                    pytest.fail(f"{one.name} and {two.name} do not agree: {one.events[-3:]} {two.events[-3:]}")
    assert ups == [dict(node.ups) for node in nodes], "a connection began anew on a good wire"
    for node in nodes:
        wrong = [failure for failure in node.failures() if failure.reason not in HARMLESS]
        assert not wrong
        assert node.machine.half_open <= HALF_OPEN_PER_NAME * count
        assert len(node.links) == count - 1
        assert node.machine.counters["malformed"] == 0 or faults.corrupt


@pytest.mark.parametrize("first", [int(ONE)] if ONE else range(0, SEEDS, GROUP), ids=lambda first: f"seeds-{first}")
def test_one_agreed_session(first: int, identities: list[NodeIdentity]) -> None:
    for seed in [first] if ONE else range(first, min(first + GROUP, SEEDS)):
        try:
            storm(seed, identities)
        except BaseException as error:
            error.add_note(f"seed {seed} failed; replay: SEED={seed} pytest tests/sim/test_handshake_seeds.py")
            raise
