"""Live sessions move between providers while whole nodes work, over lossy cables: no operation is lost, no frame refused, no nonce
used twice.

The providers are other implementations altogether (`reference` is Python), so a move that took the wrong key, or left a batch half
done, would show as frames that do not open.
"""

from __future__ import annotations

import pytest

from qnetpy.link.session import RekeyPolicy
from qnetpy.link.testing import WatchedCrypto
from qnetpy.parameters import QnetSettings
from qnetpy.testing.node import SimNode
from qnetpy.testing.workload import Client, Ledger, Server
from qnetpy.testing.world import World
from resmgr.dispatch import Buffer
from stack.crypto.algorithms import Aead
from stack.crypto.api import Provider, ProviderGone
from stack.crypto.providers.openssl import OpenSSL, OpenSSLAead

pytestmark = pytest.mark.sim
SEEDS = 24
LARGEST = 3000
"""Bytes of an operation: Python's AES does 100 KB a second."""


class Card(OpenSSL):
    """An engine that fails after some batches, in the middle of everything."""

    name = "card"
    fails = True

    def __init__(self) -> None:
        self.left = 0

    def aead(self, algorithm: Aead, key: Buffer) -> OpenSSLAead:
        made = super().aead(algorithm, key)
        seal, open_ = made._seal, made._open
        assert seal is not None
        assert open_ is not None

        def sealed(nonce: Buffer, data: Buffer, aad: Buffer) -> bytes:
            self._work()
            return seal(nonce, data, aad)

        def opened(nonce: Buffer, data: Buffer, aad: Buffer) -> bytes:
            self._work()
            return open_(nonce, data, aad)

        return OpenSSLAead(algorithm, sealed, opened)

    def _work(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ProviderGone("no such device")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_providers_change_under_load(seed: int) -> None:
    world = World(seed, fault="drop=5%,reorder=10%,dup=5%", settings=QnetSettings(rekey=RekeyPolicy(after=2.0 if seed % 3 == 0 else 600.0)))
    chance = world.dispatch.random("providers")
    cards: list[Card] = []
    cryptos: list[WatchedCrypto] = []
    nodes: list[SimNode] = []
    for name in ("a", "b"):
        card = Card()
        crypto = WatchedCrypto()

        def make(one: Card = card) -> Provider:
            return one

        crypto.add("card", make, by_name=True)
        cards.append(card)
        cryptos.append(crypto)
        world.crypto = crypto
        nodes.append(world.start(name))
    assert world.until(world.settled)
    ledger = Ledger(world.dispatch.note)
    clients = [Client(nodes[0], "b", ledger, chance), Client(nodes[1], "a", ledger, chance)]
    for node in nodes:
        Server(node, ledger)
    used: set[str] = set()
    for _ in range(40):
        for client in clients:
            client.send(chance.choice((0, 1, 2)), LARGEST)
        which = chance.randrange(2)
        name = chance.choice(("openssl", "threads", "reference", "card"))
        cards[which].left = chance.randrange(1, 30)
        cryptos[which].use(name)
        used.add(name)
        world.run(chance.uniform(0.0, 0.1))
    for crypto in cryptos:
        crypto.use("openssl")
    assert world.until(lambda: not ledger.open, 20.0)
    assert used == {"openssl", "threads", "reference", "card"}
    assert not ledger.wrongs
    assert set(ledger.results) <= {"ok", "EDOM"}
    assert sum(ledger.results.values()) == ledger.numbers
    assert sum(crypto.moves["failed"] for crypto in cryptos) > 0
    assert sum(crypto.moves["use"] for crypto in cryptos) > 20
    for node in nodes:
        assert "bad_tag" not in node.qnet.machine.drops()
        (other,) = node.qnet.nodes
        assert other.starts == 1
    assert all(crypto.sessions in (2, 4) for crypto in cryptos)
