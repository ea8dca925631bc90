"""Real UDP drivers in a network namespace that has no way out: nothing is sent, they say which endpoints there are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from qnetpy.cluster import linux
from resmgr.testing.virtual import VirtualDispatch
from stack.drivers.udp import UdpDriver
from stack.drivers.udp_socket.options import UdpOptions

MakeDriver = Callable[..., UdpDriver]


@pytest.fixture
def make_driver() -> Iterator[MakeDriver]:
    """Makes a driver bound to addresses that the namespace's loopback interface gets first."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    linux.unshare(linux.CLONE_NEWNET)
    made: list[UdpDriver] = []
    dispatch = VirtualDispatch(1)
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

        def make(*addresses: str) -> UdpDriver:
            for address in addresses:
                subprocess.run(["ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else [])], check=True)
            driver = UdpDriver(dispatch, UdpOptions(addresses))
            made.append(driver)
            return driver

        yield make
    finally:
        for driver in made:
            driver.detach()
        linux.setns(home, linux.CLONE_NEWNET)
        os.close(home)
