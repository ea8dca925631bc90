"""A worker thread: takes frames from the rings of its ports, sends those whose way is known, hands the others to the dispatch.

The interpreter lock is held but for the system calls (poll, sendmmsg), so the loop between them does little: one look-up per frame, by the
twelve bytes of both addresses, in a table of *flows* that is made as frames come and thrown away whenever stations or ports change.

What the dispatch and the worker share is in `stack.l2.forward.workerport`: no locks per frame. A port that goes is served
to the end by the worker, which then closes its ring.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable

from resmgr.errors import Misuse
from stack.core.driver import BATCH_MAX
from stack.core.isolation import RAISED
from stack.frame import Frame
from stack.l2.forward.carrier import Reason
from stack.l2.forward.packets import flow_of, pass_on
from stack.l2.forward.ring import FRAME_AT, SPECIAL, VNET_SIZE
from stack.l2.forward.workerport import Flow, Station, WorkerPort
from stack.linux import mmsg
from stack.linux.constants import MSG_DONTWAIT, TP_STATUS_COPY
from stack.wire import virtio_net
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE

log = logging.getLogger(__name__)

HANDED_MAX = 1024
"""Frames of a port that wait for the dispatch; more are lost: a flood of unknown stations must not fill the memory."""
FLOWS_MAX = 1 << 16
"""Pairs of addresses that a port remembers; then it begins anew."""
ROUNDS_MAX = 16
"""Batches taken from one port before the next has its turn."""


Table = dict[int, WorkerPort]


class Worker:
    """See the head of this file. *arrived* is called from the thread when frames were handed over."""

    def __init__(self, number: int, stations: dict[bytes, Station], arrived: Callable[[], None]) -> None:
        self.number = number
        self.ports: tuple[WorkerPort, ...] = ()
        self.outputs: Table = {}
        """All ports of the engine, for sending."""
        self._stations = stations
        self._arrived = arrived
        self._stop = False
        self._lock = threading.Lock()
        """For `ports`, which both sides change."""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        iovecs = bytearray(mmsg.IOVEC.size * BATCH_MAX)
        self._messages = mmsg.headers(BATCH_MAX, mmsg.address(iovecs))
        self._iovec_view = memoryview(iovecs).cast("Q")
        self._messages_at = mmsg.address(self._messages)
        # CDLL, not PyDLL: the lock is let go meanwhile.
        self._sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
        self._sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
        self._pairs: dict[int, list[int]] = {}
        self._kept: list[ctypes.c_char] = []
        """Memory of runs that are to be sent, until they are."""
        self._thread = threading.Thread(target=self._run, name=f"forward-{number}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            os.close(self._wake)
            raise

    def add(self, port: WorkerPort) -> None:
        with self._lock:
            self.ports = (*self.ports, port)
        self.wake()

    def wake(self) -> None:
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Ends when all its ports have left; waits for that."""
        if self._thread is threading.current_thread():
            raise Misuse("a worker cannot wait for itself")
        self._stop = True
        self.wake()
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        watched: dict[int, WorkerPort] = {}
        while True:
            # Before the poll: what is told from here on wakes it.
            for port in self.ports:
                if port.leaving:
                    self._finish(port)
            ports = self.ports
            if ports != tuple(watched.values()):
                for fd in watched:
                    poller.unregister(fd)
                watched = {port.ring.fd: port for port in ports}
                for fd in watched:
                    poller.register(fd, select.POLLIN)
            if self._stop and not ports:
                return
            for fd, event in poller.poll():
                if fd == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                elif fd in watched:
                    self._serve(watched[fd], event)

    def _serve(self, port: WorkerPort, event: int) -> None:
        try:
            if event & select.POLLERR:
                port.ring.clear_error()
            for _ in range(ROUNDS_MAX):
                if not self._batch(port):
                    break
        except RAISED:
            self._failed(port)

    def _failed(self, port: WorkerPort, frames: int = 0) -> None:
        """Called while handling an exception, which must not end the thread for all ports: *frames* are lost by it."""
        port.reasons[Reason.FAILED] += frames
        if not port.failed:
            port.failed = True
            log.exception("forwarding: %d frames of %s are lost; further ones are only counted", frames, port.interface.name)

    def _finish(self, port: WorkerPort) -> None:
        """Serve what is left in the ring of a port that leaves, and let it go."""
        try:
            for _ in range(port.ring.slots // BATCH_MAX + 1):
                if not self._batch(port):
                    break
        except RAISED:
            self._failed(port)
        with self._lock:
            self.ports = tuple(one for one in self.ports if one is not port)
        with port.sending:
            port.gone = True
            port.ring.close()
        try:
            self._arrived()
        except RAISED:
            self._failed(port)

    def _batch(self, port: WorkerPort) -> int:
        """One batch of *port*; how many slots it had."""
        ring = port.ring
        longs, view, address = ring.longs, ring.view, ring.address
        first, flows = port.next, port.flows
        get = flows.get
        now = time.monotonic()
        held = frozenset().union(*(keys for keys, _ in list(port.handed))) if port.handed else None
        up: list[Frame] = []
        up_keys: set[bytes] = set()
        reasons = port.reasons
        done = octets = 0
        try:
            for offset in ring.offsets[first : first + min(BATCH_MAX, ring.slots)]:
                place = offset >> 3
                status = longs[place]
                if not status & 1:
                    break
                done += 1
                length = longs[place + 1] & 0xFFFFFFFF
                begin = offset + FRAME_AT
                if status & SPECIAL:
                    if status & TP_STATUS_COPY:
                        octets += self._run_of_segments(port, now, held, up, up_keys)
                        continue
                    begin = ring.retag(offset)
                    length += TAG_SIZE
                elif status >> 32 != length:
                    reasons[Reason.TRUNCATED] += 1
                    continue
                key = bytes(view[begin : begin + 12])
                flow = get(key)
                if flow is None:
                    flow = self._resolve(port, flows, key)
                pairs = flow.pairs
                if pairs is not None and length <= flow.room and (held is None or key not in held):
                    pairs += (address + begin - VNET_SIZE, length + VNET_SIZE)
                    octets += length
                    flow.source.used = now
                    continue
                reason = flow.reason if pairs is None else Reason.LONG if length > flow.room else Reason.ORDER
                if reason is Reason.FLOW:
                    found = self._route(port, view, begin, length, length - HEADER_SIZE, now, held is not None and key in held)
                    if isinstance(found, list):
                        found += (address + begin - VNET_SIZE, length + VNET_SIZE)
                        octets += length
                        continue
                    reason = found
                reasons[reason] += 1
                if reason is not Reason.SAME_PORT:
                    up += map(bytes, ring.restorer.put_right(view, begin, length, 0, 0, 0))
                    up_keys.add(key)
            if octets:
                self._send(port)
        except RAISED:
            self._failed(port, done)
            up.clear()
            for pairs in self._pairs.values():
                pairs.clear()
        if done:
            self._kept.clear()
            words = ring.words
            for offset in ring.offsets[first : first + done]:
                words[offset >> 2] = 0
            port.next = (first + done) % ring.slots
        if up:
            self._hand(port, up, frozenset(up_keys))
        return done

    def _run_of_segments(self, port: WorkerPort, now: float, held: frozenset[bytes] | None, up: list[Frame], up_keys: set[bytes]) -> int:
        """A frame that is longer than its slot: out as it is, cut by whoever is behind, or up in pieces. Bytes to be sent."""
        try:
            memory, begin, length = port.ring.message()
        except OSError:  # the link is going away
            length = 0
        if not length:
            port.reasons[Reason.TRUNCATED] += 1
            return 0
        key = bytes(memory[begin : begin + 12])
        flow = port.flows.get(key) or self._resolve(port, port.flows, key)
        _, kind, head, size, _, _ = virtio_net.HEADER.unpack_from(memory, begin - VNET_SIZE)
        if flow.pairs is not None and kind != virtio_net.GSO_NONE and head + size <= flow.room and (held is None or key not in held):
            anchor = ctypes.c_char.from_buffer(memory)
            self._kept.append(anchor)
            flow.pairs += (ctypes.addressof(anchor) + begin - VNET_SIZE, length + VNET_SIZE)
            flow.source.used = now
            return length
        reason = flow.reason if flow.pairs is None else Reason.LONG if head + size > flow.room else Reason.ORDER
        if reason is Reason.FLOW and kind != virtio_net.GSO_NONE:
            found = self._route(port, memory, begin, length, head + size - HEADER_SIZE, now, held is not None and key in held)
            if isinstance(found, list):
                anchor = ctypes.c_char.from_buffer(memory)
                self._kept.append(anchor)
                found += (ctypes.addressof(anchor) + begin - VNET_SIZE, length + VNET_SIZE)
                return length
            reason = found
        port.reasons[reason] += 1
        if reason is not Reason.SAME_PORT:
            up += map(bytes, port.ring.restorer.put_right(memory, begin, length, 0, 0, 0))
            up_keys.add(key)
        return 0

    def _route(
        self, port: WorkerPort, memory: memoryview, begin: int, length: int, packet: int, now: float, waits: bool
    ) -> list[int] | Reason:
        """Make the frame that of its next link; where it is to be entered, or why it goes up as it is. *packet*: of IP, at most, on a link;
        *waits*: earlier frames of these stations wait for the stack."""
        key = flow_of(memory, begin, length)
        if key is None:
            return Reason.FOREIGN
        route = port.routes.get(key)
        if route is None:
            return Reason.FLOW
        output = self.outputs.get(route.output)
        if output is None or not output.allowed:
            return Reason.OUTPUT_OFF
        if packet > output.mtu:
            return Reason.LONG
        if waits:
            return Reason.ORDER
        pass_on(memory, begin, route.macs)
        route.used = now
        route.frames += 1
        route.octets += length
        return self._pairs.setdefault(route.output, [])

    def _send(self, port: WorkerPort) -> None:
        """Everything that the batch collected, output by output."""
        for number, pairs in self._pairs.items():
            if not pairs:
                continue
            output = self.outputs.get(number)
            count = len(pairs) // 2
            size = sum(pairs[1::2]) - VNET_SIZE * count
            self._iovec_view[: 2 * count] = memoryview(array.array("Q", pairs))
            pairs.clear()
            sent = 0 if output is None else self._send_out(output, count)
            if sent < count:
                port.reasons[Reason.NOT_SENT] += count - sent
            port.in_frames += sent
            # A little too much when some were not sent: their lengths are gone.
            port.in_bytes += size if sent == count else size * sent // count
            total = port.out.setdefault(number, [0, 0])
            total[0] += sent
            total[1] += size if sent == count else size * sent // count

    def _send_out(self, output: WorkerPort, count: int) -> int:
        """Send the entries 0 to *count*; how many went out."""
        done = sent = 0
        while done < count:
            with output.sending:
                if output.gone:
                    break
                result = self._sendmmsg(output.ring.out_fd, self._messages_at + done * mmsg.MMSGHDR.size, count - done, MSG_DONTWAIT)
            if result > 0:
                done += result
                sent += result
            elif ctypes.get_errno() == errno.EINTR:
                continue
            elif ctypes.get_errno() in (errno.EAGAIN, errno.ENETDOWN, errno.ENXIO):
                break
            else:
                done += 1  # this one is refused; those behind it may pass
        return sent

    def _resolve(self, port: WorkerPort, flows: dict[bytes, Flow], key: bytes) -> Flow:
        source, destination = self._stations.get(key[6:12]), self._stations.get(key[:6])
        pairs: list[int] | None = None
        room = 0
        if len(key) < 12:
            reason = Reason.SHORT
        elif key[0] & 1:
            reason = Reason.GROUP
        elif not port.allowed:
            reason = Reason.OFF
        elif key[:6] == port.own:
            reason = Reason.FLOW
        elif source is None or source.port != port.number:
            reason = Reason.SOURCE
        elif destination is None:
            reason = Reason.DESTINATION
        elif destination.port == port.number:
            reason = Reason.SAME_PORT
        else:
            output = self.outputs.get(destination.port)
            reason = Reason.OUTPUT_OFF
            if output is not None and output.allowed:
                pairs, room = self._pairs.setdefault(destination.port, []), output.room
        flow = Flow(source if source is not None else Station(-1), pairs, room, reason)
        if len(flows) >= FLOWS_MAX:
            flows.clear()
        flows[key] = flow
        return flow

    def _hand(self, port: WorkerPort, up: list[Frame], keys: frozenset[bytes]) -> None:
        waiting = sum(len(frames) for _, frames in list(port.handed))
        if waiting and waiting + len(up) > HANDED_MAX:
            port.reasons[Reason.WAITING_FULL] += len(up)
            return
        port.handed.append((keys, up))
        self._arrived()
