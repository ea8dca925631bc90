"""Multicast memberships: counted per interface, told to the card through whatever is wrapped around the driver, gone with their module."""

from __future__ import annotations

import errno
import random
import subprocess
from collections.abc import AsyncIterator

import pytest
import trio

from resmgr.errors import Misuse
from resmgr.runner import open_dispatch
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.errors import ModuleError
from stack.core.groups import GROUPS_MAX
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.testing.namespace import Namespace, Veth

STP = bytes.fromhex("0180c2000000")
LACP = bytes.fromhex("0180c2000002")


def heard(namespace: Namespace, link: str) -> set[str]:
    """The link-layer groups that Linux has told the card of *link*."""
    with namespace.entered():
        shown = subprocess.run(["ip", "maddress", "show", "dev", link], capture_output=True, text=True, check=True).stdout
    return {line.split()[1] for line in shown.splitlines() if line.split()[0] == "link"}


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with open_dispatch() as dispatch:
        made = Stack(System(dispatch, "n"), random.Random(1).randbytes)
        yield made
        made.close()
        assert dispatch.statistics().descriptors == 0


@pytest.mark.priv
async def test_the_card_is_told_as_long_as_there_are_members(stack: Stack, veth: Veth) -> None:
    with veth.a.entered():
        loaded = stack.load("packet", "ifname=va", wrap=[("fault", "drop=1%")])
    assert loaded.interface is not None
    interface, before = loaded.interface, heard(veth.a, "va")
    first, second = stack.join(interface, STP, "one"), stack.join(interface, STP, "two")
    other = stack.join(interface, LACP, "one")
    assert heard(veth.a, "va") == before | {STP.hex(":"), LACP.hex(":")}
    first.revoke()
    other.revoke()
    assert heard(veth.a, "va") == before | {STP.hex(":")}
    second.revoke()
    assert heard(veth.a, "va") == before
    stack.join(interface, STP, "one")
    stack.unload(loaded)
    assert heard(veth.a, "va") == before


@pytest.mark.priv
async def test_memberships_follow_an_interface_that_comes_back(stack: Stack, veth: Veth) -> None:
    with veth.a.entered():
        loaded = stack.load("packet", "ifname=va")
    assert loaded.interface is not None
    stack.join(loaded.interface, STP, "one")
    veth.a.ip("link", "delete", "va")
    with trio.fail_after(3):
        while loaded.interface.up:  # noqa: ASYNC110  # what is awaited is the kernel
            await trio.sleep(0.002)
    veth.a.ip("link", "add", "va", "type", "veth", "peer", "name", "vx")
    veth.a.ip("link", "set", "vx", "up")
    veth.a.ip("link", "set", "va", "up")
    with trio.fail_after(3):
        while not loaded.interface.up:  # noqa: ASYNC110  # what is awaited is the kernel
            await trio.sleep(0.002)
    assert STP.hex(":") in heard(veth.a, "va")


def test_groups_are_groups_and_have_an_end() -> None:
    dispatch = VirtualDispatch(1)
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    loaded = stack.load(Hub(dispatch).module(), "mac=02:00:00:00:00:01")
    interface = loaded.interface
    assert interface is not None
    for wrong in (bytes(6), STP[:5], b""):
        with pytest.raises(Misuse):
            stack.join(interface, wrong, "one")
    for number in range(GROUPS_MAX):
        stack.join(interface, b"\1\0\0\0" + number.to_bytes(2, "big"), "one")
    with pytest.raises(ModuleError) as raised:
        stack.join(interface, STP, "one")
    assert raised.value.errno == errno.ENOSPC
    stack.close()
