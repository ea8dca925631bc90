"""Carrier `threads`: worker threads that own the ports' receive rings. docs/stack/forwarding.md.

The drivers of the ports stand aside; what workers do not carry they hand over, and it goes up through the port's interface as if the driver
had delivered it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Collection, Mapping

import attrs

from resmgr.dispatch import Dispatch
from stack.core.driver import in_batches
from stack.core.ifnet import Interface
from stack.core.isolation import RAISED
from stack.core.linuxinterface import LinuxInterface, OnLinux, on_linux
from stack.l2.forward.carrier import Counts, FlowCounts, FlowKey
from stack.l2.forward.ring import PortRing
from stack.l2.forward.worker import Worker
from stack.l2.forward.workerport import Routed, Station, WorkerPort
from stack.linux.namespace import inside
from stack.linux.packetring import ring_is_safe

RING_SIZE = 4 << 20
"""Bytes of memory per port."""


@attrs.define(eq=False)
class _Served:
    port: WorkerPort
    worker: Worker
    driver: OnLinux
    sent: tuple[int, int] = (0, 0)
    """Frames and bytes carried to it from ports that are detached."""


class ThreadCarrier:
    """See the head of this file and `stack.l2.forward.carrier.Carrier`. *workers*: at most so many threads; 0: one per processor."""

    name = "threads"
    costs_while_off = True

    def __init__(self, dispatch: Dispatch, workers: int = 0) -> None:
        """OSError where the ring in shared memory is not safe (`stack.linux.packetring`)."""
        if not ring_is_safe():
            raise OSError(errno.EOPNOTSUPP, "this processor does not keep the order of stores that a shared ring needs")
        self._dispatch = dispatch
        self._limit = workers or len(os.sched_getaffinity(0))
        self._workers: list[Worker] = []
        self._served: dict[int, _Served] = {}
        self._leaving: list[WorkerPort] = []
        """Ports whose last frames are still to come."""
        self._stations: dict[bytes, Station] = {}
        self._signal = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        self._delivering = False
        dispatch.attach_fd(self._signal, self._handed)

    def attach(self, port: int, interface: Interface, linux: LinuxInterface) -> None:
        driver = interface.driver
        if not on_linux(driver):
            raise OSError(errno.EOPNOTSUPP, f"the driver of {interface.name} cannot stand aside")
        with contextlib.ExitStack() as undo:
            try:
                with inside(linux.namespace):
                    ring = PortRing(linux.name, interface.mtu, RING_SIZE)
            except OSError as error:
                raise OSError(error.errno, f"no receive ring on {linux.name}: {error.strerror}") from error
            undo.callback(ring.close)
            made = WorkerPort(port, interface, ring, interface.mtu)
            try:
                worker = self._worker()
            except RuntimeError as error:
                raise OSError(errno.EAGAIN, f"no thread for {linux.name}: {error}") from error
            # Between the two a frame may be lost; the other way round, some would come twice.
            undo.callback(interface.let_go, "stand_aside", driver.stand_aside, False)
            try:
                interface.ask("stand_aside", driver.stand_aside, True)
            except RAISED as error:
                raise OSError(errno.EIO, f"the driver of {interface.name} does not stand aside: {error}") from error
            try:
                ring.listen(True)
            except OSError as error:
                raise OSError(error.errno, f"nothing is received on {linux.name}: {error.strerror}") from error
            undo.pop_all()
        self._served[port] = _Served(made, worker, driver)
        self._tell_workers()
        worker.add(made)

    def detach(self, port: int) -> None:
        served = self._served.pop(port, None)
        if served is None:
            return
        served.port.ring.listen(False)
        if served.port.interface.attached:
            served.port.interface.let_go("stand_aside", served.driver.stand_aside, False)
        self._keep_counts(served.port)
        self._leaving.append(served.port)
        served.port.leaving = True
        self._tell_workers()
        served.worker.wake()

    def allow(self, port: int, on: bool) -> None:
        self._served[port].port.allowed = on
        self._forget_flows()

    def put(self, station: bytes, port: int) -> None:
        known = self._stations.get(station)
        if known is None or known.port != port:
            self._stations[station] = Station(port)
            self._forget_flows()

    def drop(self, station: bytes) -> None:
        if self._stations.pop(station, None) is not None:
            self._forget_flows()

    def put_flow(self, port: int, key: FlowKey, output: int, macs: bytes, own: bytes) -> None:
        one = self._served[port].port
        one.routes[key] = Routed(output, macs)
        if one.own != own:
            one.own = own
            self._forget_flows()

    def drop_flow(self, port: int, key: FlowKey) -> None:
        one = self._served[port].port
        one.routes.pop(key, None)
        if not one.routes:
            one.own = b""
            self._forget_flows()

    def flow_counts(self, port: int, key: FlowKey) -> FlowCounts:
        one = self._served[port].port.routes.get(key)
        return FlowCounts(0.0, 0, 0) if one is None else FlowCounts(one.used, one.frames, one.octets)

    def idle(self, station: bytes) -> float | None:
        known = self._stations.get(station)
        return max(0.0, time.monotonic() - known.used) if known is not None and known.used else None

    def counts(self, ports: Collection[int]) -> Mapping[int, Counts]:
        return {number: self._counts(served) for number in ports if (served := self._served.get(number)) is not None}

    def _keep_counts(self, gone: WorkerPort) -> None:
        """What it carried to others stays in their counts. What they carried to it is not that of the next port with its number."""
        for number, other in self._served.items():
            frames, octets = gone.out.get(number, (0, 0))
            other.sent = other.sent[0] + frames, other.sent[1] + octets
            other.port.out.pop(gone.number, None)

    def _counts(self, served: _Served) -> Counts:
        port = served.port
        totals = [total for one in self._served.values() if (total := one.port.out.get(port.number)) is not None]
        port.count_lost()
        out_frames, out_bytes = served.sent[0] + sum(one[0] for one in totals), served.sent[1] + sum(one[1] for one in totals)
        return Counts(port.in_frames, port.in_bytes, out_frames, out_bytes, tuple(port.reasons))

    def frames(self) -> int:
        return sum(served.port.in_frames for served in self._served.values())

    def how(self, port: int) -> str:
        served = self._served.get(port)
        return "" if served is None else f"thread {served.worker.number}"

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for port in list(self._served):
            self.detach(port)
        for worker in self._workers:
            worker.stop()
        self._handed()
        self._dispatch.detach_fd(self._signal)
        os.close(self._signal)

    def _worker(self) -> Worker:
        """The one with the fewest ports, or another one."""
        least = min(self._workers, key=lambda one: len(one.ports), default=None)
        if least is not None and (not least.ports or len(self._workers) >= self._limit):
            return least
        made = Worker(len(self._workers), self._stations, self._tell)
        self._workers.append(made)
        return made

    def _tell_workers(self) -> None:
        outputs = {number: served.port for number, served in self._served.items()}
        for worker in self._workers:
            worker.outputs = outputs
        self._forget_flows()

    def _forget_flows(self) -> None:
        for served in self._served.values():
            served.port.flows = {}

    def _tell(self) -> None:
        """From a worker."""
        os.eventfd_write(self._signal, 1)

    def _handed(self) -> None:
        """Deliver what workers could not carry. Who hears it may close us: the rest is then delivered by the call that is under way."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._signal)
        if self._delivering:
            return
        self._delivering = True
        try:
            self._deliver()
            while self._closed and self._leaving:
                self._deliver()
        finally:
            self._delivering = False

    def _deliver(self) -> None:
        ending = [port for port in self._leaving if port.gone]
        for port in [*self._leaving, *(served.port for served in self._served.values())]:
            for _ in range(len(port.handed)):
                for batch in in_batches(port.handed[0][1]):
                    port.interface.deliver(batch)
                # Only now: until then, what belongs to these flows must not overtake them.
                port.handed.popleft()
        self._leaving = [port for port in self._leaving if port not in ending]
