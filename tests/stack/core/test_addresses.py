"""Addresses of interfaces, followed live from the kernel."""

from __future__ import annotations

import pytest
import trio

from stack.core.commandline import Load
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.linuxinterface import linux_index
from stack.core.manager import open_manager
from stack.core.module import Kind
from stack.testing.namespace import Veth


async def until(interface: Interface, addresses: set[str]) -> None:
    with trio.fail_after(10):
        while set(interface.addresses) != addresses:  # noqa: ASYNC110  # what is awaited is the kernel: there is no event to wait for
            await trio.sleep(0.005)


@pytest.mark.priv
async def test_addresses_that_come_and_go(veth: Veth) -> None:
    for namespace, name in ((veth.a, "va"), (veth.b, "vb")):
        namespace.ip("link", "set", name, "addrgenmode", "none")
        namespace.ip("address", "flush", "dev", name)
    veth.a.ip("address", "add", "10.1.0.1/24", "dev", "va")
    with veth.a.entered():
        async with open_manager([Load(Kind.DRIVER, "packet", "ifname=va", [("fault", "drop=1%")])]) as manager:
            (interface,) = manager.stack.interfaces
            events: list[InterfaceEvent] = []
            manager.stack.on_interface(lambda event, _: events.append(event))
            assert linux_index(interface.driver) > 0, "the wrapper is seen through"
            await until(interface, {"10.1.0.1"})
            veth.a.ip("address", "add", "10.1.0.2/24", "dev", "va")
            veth.a.ip("-6", "address", "add", "fd00::1/64", "dev", "va", "nodad")
            await until(interface, {"10.1.0.1", "10.1.0.2", "fd00::1"})
            veth.a.ip("address", "flush", "dev", "va")
            await until(interface, set())
            assert events.count(InterfaceEvent.ADDRESSES) >= 3
            manager.dispatch.enter(lambda: _udp(manager.stack))
            veth.a.ip("address", "add", "10.1.0.3/24", "dev", "va")
            await until(interface, {"10.1.0.3"})
            assert manager.stack.interfaces[1].addresses == (), "its link is not the kernel's"
            assert manager.stack.failures() == {}


def _udp(stack: object) -> None:
    from stack.core.stack import Stack

    assert isinstance(stack, Stack)
    stack.load("udp", "port=0")
