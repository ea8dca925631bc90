"""A worker that comes upon an error of its own: the batch is lost and counted, the ring goes on, and a port still leaves in order."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator

import attrs
import pytest

from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.l2.forward.carrier import Reason
from stack.l2.forward.ring import PortRing
from stack.l2.forward.worker import Worker
from stack.l2.forward.workerport import Station, WorkerPort
from stack.testing.namespace import Veth

pytestmark = pytest.mark.priv

SECONDS = 5


class Stations(dict[bytes, Station]):
    """A table that breaks."""

    broken = True
    raises: type[BaseException] = ZeroDivisionError

    def get(self, key: bytes, default: object = None) -> Station | None:  # type: ignore[override]  # one of the overloads is used
        if self.broken:
            raise self.raises
        return super().get(key)


@attrs.define
class Rig:
    port: WorkerPort
    worker: Worker
    stations: Stations
    far: socket.socket
    arrived: threading.Event

    def send(self, first: int, count: int) -> None:
        """Each between two addresses of its own, so that each is looked up. Linux sends something of its own, too."""
        for number in range(first, first + count):
            self.far.send(bytes((2, 0, 0, 0, 7, number, 2, 0, 0, 0, 8, number, 0x88, 0xB5)) + bytes(50))

    def until(self, frames: int, reason: Reason) -> bool:
        end = time.monotonic() + SECONDS
        while self.port.reasons[reason] < frames and time.monotonic() < end:
            time.sleep(0.001)
        return self.port.reasons[reason] >= frames


@pytest.fixture
def rig(veth: Veth) -> Iterator[Rig]:
    dispatch = VirtualDispatch(1)
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    loaded = stack.load(Hub(dispatch).module(), "mac=02:00:00:00:00:0a,name=va")
    with veth.a.entered():
        ring = PortRing("va", 1500, 1 << 20)
    with veth.b.entered():
        far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        far.bind(("vb", 0))
    assert loaded.interface is not None
    arrived = threading.Event()
    stations = Stations()
    port = WorkerPort(1, loaded.interface, ring, 1500)
    port.allowed = True
    worker = Worker(0, stations, arrived.set)
    ring.listen(True)
    worker.add(port)
    yield Rig(port, worker, stations, far, arrived)
    stations.broken = False
    port.leaving = True
    worker.stop()
    assert port.gone
    far.close()
    stack.close()


@pytest.mark.parametrize("raises", [ZeroDivisionError, SystemExit, GeneratorExit])
def test_a_batch_that_fails_is_lost_once(rig: Rig, caplog: pytest.LogCaptureFixture, raises: type[BaseException]) -> None:
    rig.stations.raises = raises
    rig.send(0, 20)
    assert rig.until(20, Reason.FAILED)
    rig.stations.broken = False
    failed = rig.port.reasons[Reason.FAILED]
    rig.send(20, 30)
    assert rig.until(30, Reason.SOURCE), "what came behind is served, and what failed does not come again"
    assert rig.port.reasons[Reason.FAILED] == failed
    handed = [frame[11] for _, frames in rig.port.handed for frame in frames if frame[12:14] == b"\x88\xb5"]
    assert handed == list(range(20, 50))
    assert caplog.text.count("Traceback") == 1, "it is told once"


def test_a_port_leaves_whatever_fails(rig: Rig) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    rig.send(0, 1)
    assert rig.until(1, Reason.FAILED)
    rig.worker._arrived = fails  # as of a dispatch that has ended
    rig.port.leaving = True
    rig.worker.wake()
    end = time.monotonic() + SECONDS
    while not rig.port.gone and time.monotonic() < end:
        time.sleep(0.001)
    assert rig.port.gone
    assert rig.worker.ports == ()
