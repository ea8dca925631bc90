"""Endpoints to call: through which interfaces, and until nobody wants them any more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qnetpy.reach.wanted import WANTED_MAX, Address, WantedEndpoints
from stack.drivers.udp import UdpDriver
from stack.wire.endpoint import Endpoint

pytestmark = pytest.mark.priv
MakeDriver = Callable[..., UdpDriver]

ONE, SIX = Endpoint("10.0.0.1", 9), Endpoint("2001:db8::1", 9)


def kept(driver: UdpDriver) -> object:
    return driver.info()["endpoints kept"]


def station(driver: UdpDriver, endpoint: Endpoint) -> bytes:
    found = driver.station(endpoint)
    assert found is not None
    driver.release(endpoint)
    return found


class Calls:
    def __init__(self) -> None:
        self.events: list[tuple[str, Address]] = []
        self.wanted = WantedEndpoints(
            lambda address: self.events.append(("call", address)), lambda address: self.events.append(("stop", address))
        )

    def taken(self) -> list[tuple[str, Address]]:
        events, self.events = self.events, []
        return events


@pytest.fixture
def calls() -> Calls:
    return Calls()


def test_each_interface_calls_and_the_last_user_ends_it(calls: Calls, make_driver: MakeDriver) -> None:
    first, second = make_driver("10.1.0.1", "2001:db8::2"), make_driver("10.1.0.2")
    at_first, at_second = ("udp0", station(first, ONE)), ("udp1", station(second, ONE))
    calls.wanted.interface("udp0", first)
    assert calls.wanted.want(ONE)
    assert calls.taken() == [("call", at_first)]
    calls.wanted.interface("udp1", second)
    assert calls.taken() == [("call", at_second)]
    assert calls.wanted.want(SIX)
    assert calls.taken() == [("call", ("udp0", station(first, SIX)))], "the second has no IPv6"
    assert calls.wanted.want(ONE)
    assert calls.taken() == [("call", at_first), ("call", at_second)], "said again, called again"
    calls.wanted.again(ONE)
    assert calls.taken() == [("call", at_first), ("call", at_second)]
    calls.wanted.again(Endpoint("10.0.0.77", 9))
    assert calls.taken() == [], "nobody wants it"
    assert kept(first) == 2
    calls.wanted.drop(ONE)
    assert calls.taken() == []
    calls.wanted.drop(ONE)
    assert calls.taken() == [("stop", at_first), ("stop", at_second)]
    assert (kept(first), kept(second)) == (1, 0)
    calls.wanted.drop(ONE)
    assert len(calls.wanted) == 1


def test_an_interface_that_is_gone_takes_its_stations_with_it(calls: Calls, make_driver: MakeDriver) -> None:
    calls.wanted.interface("udp0", make_driver("10.1.0.1"))
    calls.wanted.want(ONE)
    calls.wanted.interface_gone("udp0")
    calls.taken()
    calls.wanted.drop(ONE)
    assert calls.taken() == []


def test_the_end_lets_the_driver_go(calls: Calls, make_driver: MakeDriver) -> None:
    """The driver may outlive the module: nothing must stay kept in it."""
    driver = make_driver("10.1.0.1")
    calls.wanted.interface("udp0", driver)
    for number in range(20):
        calls.wanted.want(Endpoint("10.0.0.1", 100 + number % 15))
    assert kept(driver) == 15
    calls.wanted.clear()
    assert (kept(driver), len(calls.wanted)) == (0, 0)


def test_what_cannot_be_called_waits_until_it_can(calls: Calls, make_driver: MakeDriver) -> None:
    calls.wanted.interface("udp0", make_driver("10.1.0.1"))
    assert calls.wanted.want(SIX)
    assert calls.wanted.want(Endpoint("10.1.0.1", 34997)), "one of our own addresses, which may be another's tomorrow"
    assert calls.taken() == []
    calls.wanted.interface("udp1", make_driver("2001:db8::2"))
    assert [(kind, name) for kind, (name, _) in calls.taken()] == [("call", "udp1")]
    assert not calls.wanted.want(Endpoint("224.0.0.1", 9))


def test_the_cap(calls: Calls) -> None:
    for number in range(WANTED_MAX):
        assert calls.wanted.want(Endpoint("10.0.0.1", number + 1))
    assert not calls.wanted.want(SIX)
    assert calls.wanted.want(ONE), "one that is wanted already"
    assert calls.wanted.refused == 1
    calls.wanted.drop(SIX)
    assert len(calls.wanted) == WANTED_MAX
