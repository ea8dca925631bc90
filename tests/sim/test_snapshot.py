"""A machine is copied while it runs, as a virtual machine's snapshot is, and both go on: does any key seal two frames under one nonce?

The copy is a fork of the whole simulator, so it has every key, counter and timer that the original had. What each of the two seals from
then on is compared. The kernel tells the copy of its new generation id before anything else happens in it, and gives it other random
numbers, as Linux does; the original is told nothing.
"""

from __future__ import annotations

import os
import pickle
import random

import pytest

from qnetpy.link.session import RekeyPolicy
from qnetpy.link.testing import Sealed, WatchedCrypto
from qnetpy.parameters import QnetSettings
from qnetpy.testing.node import SimNode
from qnetpy.testing.workload import Client, Ledger, Server
from qnetpy.testing.world import World

pytestmark = [pytest.mark.sim, pytest.mark.host, pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")]
SECONDS = 10.0
"""For which both go on."""


class Copied:
    """Two nodes under load, of which *a* is about to be copied at a moment that the seed picks."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(f"{seed}/snapshot")
        rekey = chance.choice([RekeyPolicy(), RekeyPolicy(after=0.5, stagger=0.1, grace=1.0)])
        self.world = World(seed, settings=QnetSettings(rekey=rekey), fault=chance.choice(["", "drop=10%,reorder=10%"]))
        self.sealed: Sealed = {}
        self.world.crypto = WatchedCrypto(self.sealed)
        self.a: SimNode = self.world.start("a")
        self.world.crypto = WatchedCrypto()
        self.b = self.world.start("b")
        assert self.world.until(self.world.settled)
        self.ledger = Ledger(self.world.dispatch.note)
        Server(self.b, self.ledger)
        self.client = Client(self.a, "b", self.ledger, chance)
        self.work()
        self.world.run(chance.uniform(0.3, 3.0))
        self.sealed.clear()

    def until_handshake(self, number: int) -> None:
        """New keys are wanted, and so many frames of that handshake have been sent; the last has not arrived."""
        seen = [0]

        def count() -> None:
            seen[0] += 1

        self.world.on_handshake = count
        self.a.qnet.rekey()
        assert self.world.until(lambda: seen[0] >= number, 5.0)
        self.world.on_handshake = None
        self.sealed.clear()

    def work(self) -> None:
        """An operation now, and another ever after."""
        self.client.send(0, 1400)
        self.world.at(self.world.now + 0.05, self.work)

    def go_on(self, told: bool) -> Sealed:
        """In the copy, for as long as both are compared."""
        if told:
            self.a._random.seed(os.urandom(8))
            self.a.resumed()
        self.world.run(SECONDS)
        return self.sealed


class Meeting:
    """Two nodes at that frame of their first handshake, which *caller* began; *a* is about to be copied."""

    def __init__(self, caller: str, frame: int) -> None:
        self.world = World(frame)
        self.world.join("a", "b")
        self.sealed: Sealed = {}
        self.world.crypto = WatchedCrypto(self.sealed)
        self.a: SimNode = self.world.start("a", call=["b"] if caller == "a" else [])
        self.world.crypto = WatchedCrypto()
        seen = [0]

        def count() -> None:
            seen[0] += 1

        self.world.on_handshake = count
        self.world.start("b", call=["a"] if caller == "b" else [])
        assert self.world.until(lambda: seen[0] >= frame, 5.0)
        self.world.on_handshake = None
        self.sealed.clear()

    def go_on(self, told: bool) -> Sealed:
        """In the copy. Who waits for the end of the handshake that was forgotten does not wait for long."""
        if told:
            self.a._random.seed(os.urandom(8))
            self.a.resumed()
            began = self.world.now
            assert self.world.until(self.world.settled, 1.5), "settled within 1.5 s"
            self.world.run(SECONDS - (self.world.now - began))
        else:
            self.world.run(SECONDS)
        return self.sealed


def both(seed: int, told: bool, handshake: int = 0) -> tuple[Sealed, Sealed]:
    """What the original and the copy sealed after the copy was made, perhaps at that frame of a handshake."""
    copied = Copied(seed)
    if handshake:
        copied.until_handshake(handshake)
    return compared(copied, told)


def compared(copied: Copied | Meeting, told: bool) -> tuple[Sealed, Sealed]:
    """Copy it, let both go on, and see what each has sealed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(copied.go_on(told), pipe)
        finally:
            os._exit(0)
    os.close(writing)
    copied.world.run(SECONDS)
    with os.fdopen(reading, "rb") as pipe:
        theirs: Sealed = pickle.load(pipe)
    assert os.waitpid(child, 0)[1] == 0
    return copied.sealed, theirs


@pytest.mark.parametrize("seed", range(20))
def test_a_copy_that_is_told_seals_nothing_under_a_nonce_of_the_original(seed: int) -> None:
    ours, theirs = both(seed, told=True)
    assert len(ours) > 20
    assert len(theirs) > 20, "the copy works"
    assert not ours.keys() & theirs.keys()
    assert not {key for key, _ in ours} & {key for key, _ in theirs}, "nor under any of its keys"


@pytest.mark.parametrize("frame", range(1, 5))
@pytest.mark.parametrize("seed", range(4))
def test_a_copy_that_is_made_while_keys_are_renewed_does_not_go_on_with_it(seed: int, frame: int) -> None:
    ours, theirs = both(seed, told=True, handshake=frame)
    assert len(ours) > 20
    assert len(theirs) > 20
    assert not {key for key, _ in ours} & {key for key, _ in theirs}


@pytest.mark.parametrize("frame", range(1, 7))
@pytest.mark.parametrize("caller", ["a", "b"])
def test_a_copy_that_is_made_at_first_contact_does_not_go_on_with_the_handshake(caller: str, frame: int) -> None:
    """What both know of it, ephemeral keys included, would give both the same session."""
    ours, theirs = compared(Meeting(caller, frame), told=True)
    assert len(ours) > 5
    assert len(theirs) > 5
    assert not {key for key, _ in ours} & {key for key, _ in theirs}


def test_a_copy_that_is_not_told_does_so_which_shows_that_it_would_be_seen() -> None:
    ours, theirs = both(1, told=False)
    assert ours.keys() & theirs.keys()
