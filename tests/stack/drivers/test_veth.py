"""The veth driver: the pair that it makes is a cable, and is gone with it."""

from __future__ import annotations

import errno
import os
import random
import socket
import subprocess
import sys

import pytest
import trio

from resmgr.runner import TrioDispatch
from resmgr.system import System
from stack.core.driver import Driver
from stack.core.errors import ModuleError
from stack.core.stack import Stack
from stack.drivers.packet import PacketDriver, PacketOptions
from stack.drivers.veth import VethDriver, VethOptions
from stack.drivers.wrap.fault import FaultDriver, FaultOptions
from stack.testing.driver import check_driver
from stack.testing.namespace import Namespace
from stack.testing.pair import Pair

pytestmark = pytest.mark.priv


@pytest.fixture
def other() -> Namespace:
    return Namespace.make()


def links(namespace: Namespace) -> set[str]:
    with namespace.entered():
        return {name for _, name in socket.if_nameindex()} - {"lo"}


@pytest.mark.parametrize("wrapped", [False, True])
async def test_contract_over_a_cable_to_another_namespace(
    dispatch: TrioDispatch, namespace: Namespace, other: Namespace, wrapped: bool
) -> None:
    options = VethOptions("q0", "q1", f"/proc/self/fd/{other.fd}", "cable", "02:00:00:00:00:0a", "02:00:00:00:00:0b", 9000)
    with namespace.entered():
        near: Driver = VethDriver(dispatch, options)
    with other.entered():
        far: Driver = PacketDriver(dispatch, PacketOptions("q1"))
    assert (near.name, near.mtu, far.mtu) == ("cable", 9000, 9000)
    assert (near.mac.hex(":"), far.mac.hex(":")) == (options.mac, options.peer_mac)
    assert near.info()["peer"] == f"q1 in {options.netns}"
    if wrapped:
        outer = [FaultDriver(dispatch, FaultOptions()) for _ in range(2)]
        for wrapper, driver in zip(outer, (near, far), strict=True):
            wrapper.around(driver)
        near, far = outer
    await check_driver(Pair(far, near))
    assert links(namespace) == links(other) == set()
    near.detach()
    other.close()


async def test_without_another_namespace_and_when_the_pair_is_gone_already(dispatch: TrioDispatch, namespace: Namespace) -> None:
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    with namespace.entered():
        loaded = stack.load("veth", "ifname=q0,peer=q1")
    assert links(namespace) == {"q0", "q1"}
    assert loaded.interface is not None
    namespace.ip("link", "delete", "q1")
    with trio.fail_after(3):
        while loaded.interface.up:  # noqa: ASYNC110  # what is awaited is the kernel
            await trio.sleep(0.002)
    stack.close()


async def test_refusals_are_one_sentence_and_leave_nothing(dispatch: TrioDispatch, namespace: Namespace) -> None:
    with namespace.entered():
        first = VethDriver(dispatch, VethOptions("q0", "q1"))
        for options, code, text in (
            (VethOptions("q0", "q2"), errno.EEXIST, f"q0 was made by process {os.getpid()}, an io-pkt that is at work"),
            (VethOptions("q9", "q0"), errno.EEXIST, "an interface of that name"),
            (VethOptions("q 2", "q3"), errno.EINVAL, "veth: 'q 2' cannot be the name of a Linux interface"),
            (VethOptions("q2", "q/3"), errno.EINVAL, "veth: 'q/3' cannot be the name"),
            (VethOptions("q2", "q3", mac="01:00:5e:00:00:01"), errno.EINVAL, "the address of a group, not of a station"),
            (VethOptions("q2", "q3", peer_mac="ff:ff:ff:ff:ff:ff"), errno.EINVAL, "the address of a group"),
            (VethOptions("q2", "q3", "no-such-namespace"), errno.ENOENT, "no network namespace no-such-namespace"),
            (VethOptions("q2", "q3", mac="x"), errno.EINVAL, "veth: 'x'"),
            (VethOptions("a-name-that-is-too-long", "q3"), errno.EINVAL, "cannot be the name of a Linux interface"),
        ):
            with pytest.raises(ModuleError, match=text) as raised:
                VethDriver(dispatch, options)
            assert raised.value.errno == code, raised.value
            assert "\n" not in str(raised.value)
        first.detach()
    assert links(namespace) == set()


MAKER = """
import os, sys
from resmgr.testing.virtual import VirtualDispatch
from stack.linux.vethpair import VethPair
from stack.wire.rtnetlink import End
pair = VethPair(End("q0"), End("q1"), 1500)
print("made", flush=True)
sys.stdin.read()
"""


def a_maker() -> subprocess.Popen[bytes]:
    """A process that makes the pair q0, q1, and waits."""
    words, environment = [sys.executable, "-c", MAKER], {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


async def test_what_a_killed_one_left_is_made_anew_and_nothing_else(dispatch: TrioDispatch, namespace: Namespace) -> None:
    with namespace.entered():
        killed = a_maker()
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"made\n"
        with pytest.raises(ModuleError, match=f"process {killed.pid}, an io-pkt that is at work"):
            VethDriver(dispatch, VethOptions("q0", "q1"))
        killed.kill()
        killed.communicate()
        assert links(namespace) == {"q0", "q1"}
        driver = VethDriver(dispatch, VethOptions("q0", "q1"))
        namespace.ip("link", "add", "mine0", "type", "veth", "peer", "mine1")
        for alias in ("", f"made by io-pkt, process {killed.pid} 1 1", "made by io-pkt, process x", "made by io-pkt, process 1 2"):
            namespace.ip("link", "set", "mine0", "alias", alias)
            with pytest.raises(ModuleError) as raised:
                VethDriver(dispatch, VethOptions("mine0", "mine1"))
            assert raised.value.errno == errno.EEXIST, alias
            assert {"mine0", "mine1"} <= links(namespace)
        driver.detach()
    assert links(namespace) == {"mine0", "mine1"}
