"""The carrier `threads` when the system refuses it something: the port is as before."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from resmgr.system import System
from stack.core.stack import Stack
from stack.l2.forward.ring import PortRing
from stack.l2.forward.threads import ThreadCarrier
from tests.stack.l2.forward.conftest import TYPE, Town, frame, settle

pytestmark = pytest.mark.priv


def no_filter(ring: PortRing, on: bool) -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def no_thread(*_: object) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("what", ["filter", "thread"])
async def test_a_port_that_cannot_be_served_is_still_heard_by_its_driver(town: Town, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    stack = Stack(System(town.dispatch, "n"), bytes)
    with town.middle.entered():
        interface = stack.load("packet", "ifname=p0").interface
    assert interface is not None
    got: list[bytes] = []
    stack.register_ethertype(TYPE, lambda interface, frames: got.extend(map(bytes, frames)))
    assert await settle(lambda: interface.up)
    linux = interface.driver.linux_interface()  # type: ignore[attr-defined]  # the packet driver's
    carrier = ThreadCarrier(town.dispatch, 1)
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        if what == "filter":
            patch.setattr(PortRing, "listen", no_filter)
        else:
            patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(OSError, match=r"p0: Cannot allocate|no thread for p0"):
            carrier.attach(0, interface, linux)
    # A worker that was made waits for the next port, with a descriptor to wake it.
    spare = len([one for one in threading.enumerate() if one.name.startswith("forward-")])
    assert await settle(lambda: len(os.listdir("/proc/self/fd")) == before + spare)
    sent = interface.mac + frame(0, 0, b"heard".ljust(50))[6:]
    town.hosts[0].send(sent)
    assert await settle(lambda: got == [sent])
    carrier.attach(0, interface, linux)
    town.hosts[0].send(sent)
    assert await settle(lambda: len(got) == 2)
    os.close(linux.namespace)
    carrier.close()
    stack.close()
