"""Snapshots: the two signs, and that nothing is sealed under the old keys once one was seen."""

from __future__ import annotations

import socket
from typing import NoReturn

import pytest

from qnetpy.parameters import QnetSettings
from qnetpy.resume import ResumeWatch, is_new_generation
from qnetpy.testing.world import World
from resmgr.testing.virtual import VirtualDispatch


@pytest.fixture(autouse=True)
def _no_uevents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time has no descriptors: as in a container that may not hear uevents."""

    def refuse(*_: object) -> NoReturn:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(socket, "socket", refuse)


def test_a_jump_of_the_wall_clock_is_seen_and_its_drift_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    world = VirtualDispatch(1)
    view = world.node("n")
    ahead = 0.0
    wall = view.wall
    monkeypatch.setattr(view, "wall", lambda: wall() + ahead)
    jumps: list[float] = []
    watch = ResumeWatch(view, lambda: None, jumps.append)
    for _ in range(50):
        ahead += 0.5
        world.run_for(1.0)
    assert jumps == []
    ahead += 3600.0
    world.run_for(2.0)
    ahead -= 20.0
    world.run_for(2.0)
    assert jumps == [pytest.approx(3600.0), pytest.approx(-20.0)]
    watch.close()
    watch.close()
    ahead += 3600.0
    world.run_for(2.0)
    assert len(jumps) == 2


def test_what_the_kernel_says() -> None:
    device = (
        b"change@/devices/platform/vmgenid\0ACTION=change\0DEVPATH=/devices/platform/vmgenid\0SUBSYSTEM=platform\0NEW_VMGENID=1\0SEQNUM=7\0"
    )
    assert is_new_generation(device)
    assert not is_new_generation(device.replace(b"NEW_VMGENID=1", b"NEW_VMGENID=10"))
    assert not is_new_generation(b"libudev\0" + device)
    assert not is_new_generation(b"")


def test_a_copy_seals_nothing_under_the_old_keys_and_is_another_boot() -> None:
    world = World(3)
    a, b = world.start("a"), world.start("b")
    assert world.until(world.settled)
    world.run(1.0)
    session = a.qnet.machine.links["b"].sessions.current
    assert session is not None
    sealed, boot = session.counters.sealed, a.qnet.boot_id

    a.qnet.begin_anew("resumed from a snapshot")
    assert a.qnet.machine.links == {}
    assert world.until(world.settled, 10.0)
    world.run(5.0)
    assert session.counters.sealed == sealed
    assert a.qnet.boot_id != boot
    assert b.qnet.machine.links["a"].peer.boot_id == a.qnet.boot_id
    node = b.qnet.nodes.get("a")
    assert node is not None
    assert node.starts == 2


def test_new_keys_on_request_interrupt_nothing() -> None:
    world = World(4, settings=QnetSettings())
    a, b = world.start("a"), world.start("b")
    assert world.until(world.settled)
    world.run(1.0)
    before = a.qnet.machine.links["b"].sessions.current
    a.qnet.rekey()
    world.run(2.0)
    assert a.qnet.machine.links["b"].sessions.current is not before
    node = b.qnet.nodes.get("a")
    assert node is not None
    assert node.starts == 1
