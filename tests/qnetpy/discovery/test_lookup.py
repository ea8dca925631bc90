"""Peers given by name: looked up, looked up again, and what stands meanwhile. Virtual time; the resolver is the test's."""

from __future__ import annotations

import socket

import pytest

from qnetpy.discovery.hint import ADDRESSES_MAX, Announcement, Discovery, Hint, Interface
from qnetpy.discovery.lookup import AGAIN, LookupDiscovery, look_up
from resmgr.testing.virtual import VirtualDispatch

ETHERTYPE = 0x88B5


class Resolver:
    """Names and their addresses; those that are missing are not found."""

    def __init__(self, **known: list[str]) -> None:
        self.known = known
        self.asked: list[str] = []

    def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.known[host]


class Rig:
    def __init__(self, resolver: Resolver, *peers: tuple[str, int]) -> None:
        self.world = VirtualDispatch(1)
        self.hints: list[Hint] = []
        self.gone: list[Hint] = []
        self.discovery: Discovery = LookupDiscovery(peers, resolver)
        self.discovery.start(self.world.node("n"), [], Announcement(bytes(16), ETHERTYPE), self.hints.append, self.gone.append)

    def standing(self) -> list[tuple[tuple[str, ...], int]]:
        assert self.gone == []
        latest = {hint.token: (hint.addresses, hint.port) for hint in self.hints}
        return sorted(latest.values())


def test_a_seed_that_moves_is_followed() -> None:
    resolver = Resolver(seed=["10.0.0.1"], other=["10.0.0.2", "2001:db8::2"])
    rig = Rig(resolver, ("seed", 7), ("other", 8), ("seed", 7))
    rig.world.run_for(1.0)
    assert rig.standing() == [(("10.0.0.1",), 7), (("10.0.0.2", "2001:db8::2"), 8)]
    assert all((hint.interface, hint.mac, hint.ethertype) == ("", b"", ETHERTYPE) for hint in rig.hints)
    rig.world.run_for(3 * AGAIN)
    assert len(rig.hints) == 2, "nothing new, nothing told"
    resolver.known["seed"] = ["10.0.0.9"]
    rig.world.run_for(AGAIN)
    assert rig.standing() == [(("10.0.0.2", "2001:db8::2"), 8), (("10.0.0.9",), 7)]
    assert len(rig.hints) == 3
    del resolver.known["seed"]
    rig.world.run_for(10 * AGAIN)
    assert rig.standing() == [(("10.0.0.2", "2001:db8::2"), 8), (("10.0.0.9",), 7)], "while it is not found, it is where it was"


def test_what_is_not_found_is_looked_up_ever_more_rarely_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    resolver = Resolver(empty=[])
    rig = Rig(resolver, ("seed", 7), ("empty", 7))
    rig.world.run_for(10 * AGAIN)
    assert 10 <= resolver.asked.count("seed") <= 17
    assert rig.hints == []
    assert [record.message for record in caplog.records if "seed" in record.message] == [
        "discovery: seed is not found: [Errno -2] Name or service not known"
    ]
    resolver.known["seed"] = ["10.0.0.1"]
    rig.discovery.interface_added(Interface("eth0", b""))
    rig.world.run_for(0.1)
    assert rig.standing() == [(("10.0.0.1",), 7)], "an interface that came may lead to the name server"


def test_a_name_with_too_many_addresses() -> None:
    rig = Rig(Resolver(seed=[f"10.0.0.{number}" for number in range(99)]), ("seed", 7))
    rig.world.run_for(1.0)
    assert len(rig.hints[0].addresses) == ADDRESSES_MAX


def test_closing_ends_it() -> None:
    resolver = Resolver(seed=["10.0.0.1"])
    rig = Rig(resolver, ("seed", 7))
    rig.discovery.close()
    rig.world.run_for(5 * AGAIN)
    rig.discovery.close()
    assert rig.hints == []


@pytest.mark.host
def test_the_resolver_of_this_machine() -> None:
    assert "127.0.0.1" in look_up("127.0.0.1")
    assert look_up("::1") == ["::1"]
    assert look_up("fe80::1%lo") == ["fe80::1%lo"]
    with pytest.raises(OSError):
        look_up("no-such-host.invalid")
