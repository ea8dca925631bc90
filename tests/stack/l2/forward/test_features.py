"""What a Linux interface can do with bare frames, followed through a queue that overflows."""

from __future__ import annotations

import errno
import os
import socket
import subprocess

import pytest

from resmgr.runner import open_dispatch
from resmgr.system import System
from stack.core.linuxinterface import LinuxInterface
from stack.core.stack import Stack
from stack.l2.forward import kernel
from stack.l2.forward.features import DeviceFeatures
from stack.testing.namespace import Veth
from stack.testing.pair import settle
from stack.wire.netdev import XdpFeature

pytestmark = pytest.mark.priv


def set_gro(veth: Veth) -> None:
    """Of the far end: then va can send bare frames."""
    with veth.b.entered():
        subprocess.run(["ethtool", "-K", "vb", "gro", "on"], check=True)


@pytest.mark.parametrize("others", [0, 20])
async def test_a_change_that_was_not_told_is_asked_for(veth: Veth, others: int) -> None:
    """*others*: interfaces that come before the change, more than the queue holds reports of."""
    changes: list[XdpFeature] = []
    async with open_dispatch() as dispatch:
        with veth.a.entered():
            made = DeviceFeatures(dispatch, socket.if_nametoindex("va"), lambda: changes.append(made.features))
        assert not made.features & XdpFeature.NDO_XMIT
        made._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for number in range(others):
            veth.a.ip("link", "add", f"x{number}", "type", "veth", "peer", "name", f"y{number}")
        set_gro(veth)
        assert await settle(lambda: bool(made.features & XdpFeature.NDO_XMIT))
        assert changes == [made.features]
        made.close()


async def test_a_port_of_which_the_kernel_tells_nothing_leaves_nothing(veth: Veth, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(linux: LinuxInterface) -> bool:
        raise OSError(errno.ENODEV, "No such device")

    async with open_dispatch() as dispatch:
        stack = Stack(System(dispatch, "n"), bytes)
        with veth.a.entered():
            interface = stack.load("packet", "ifname=va").interface
        assert interface is not None
        linux = interface.driver.linux_interface()  # type: ignore[attr-defined]  # the packet driver's
        carrier = kernel.KernelCarrier(dispatch)
        before = len(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(kernel, "is_buffered", unknown)
        with pytest.raises(OSError, match="No such device"):
            carrier.attach(0, interface, linux)
        assert len(os.listdir("/proc/self/fd")) == before
        os.close(linux.namespace)
        carrier.close()
        stack.close()
