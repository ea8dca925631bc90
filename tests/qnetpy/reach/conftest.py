"""Real UDP drivers in a network namespace that has no way out: nothing is sent, they say which endpoints there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from resmgr.testing.virtual import VirtualDispatch
from stack.drivers.udp import UdpDriver
from stack.drivers.udp_socket.options import UdpOptions
from stack.testing.namespace import Namespace

MakeDriver = Callable[..., UdpDriver]


@pytest.fixture
def make_driver(namespace: Namespace) -> Iterator[MakeDriver]:
    """Makes a driver bound to addresses that the namespace's loopback interface gets first."""
    made: list[UdpDriver] = []
    dispatch = VirtualDispatch(1)
    namespace.ip("link", "set", "lo", "up")

    def make(*addresses: str) -> UdpDriver:
        for address in addresses:
            namespace.ip("address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
        with namespace.entered():
            driver = UdpDriver(dispatch, UdpOptions(addresses))
        made.append(driver)
        return driver

    yield make
    for driver in made:
        driver.detach()
