"""Two transports on a seeded virtual wire in virtual time: for tests of the transport and of whatever is built on it.

A `Wire` is one direction of one path: it delays, loses, reorders, duplicates, limits the rate with a finite queue and a packet size, and
goes dark for a time. Duplicates and corrupted packets end at the session in reality, so a `Pair` drops a packet number that came
before and a wire drops what it corrupts. The same seed gives the same run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random

import attrs

from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.events import Closed, Event, MessageReceived
from qnetpy.link.transport.machine import Transport

OVERHEAD = 60
"""Bytes of headers and tag around each plaintext, for rate and queue."""


@attrs.define
class Faults:
    """What a wire does to packets. Chances are 0 to 1, times seconds, rates bytes per second, sizes bytes of plaintext."""

    delay: float = 50e-6
    jitter: float = 0.0
    """Extra delay up to this, packet by packet, without overtaking."""
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_by: float = 200e-6
    """A reordered packet comes up to this much later."""
    corrupt: float = 0.0
    rate: float | None = None
    queue: int = 256 << 10
    mtu: int = 65535
    mtu_changes: tuple[tuple[float, int], ...] = ()
    """(when, new mtu), ascending."""
    dark: tuple[tuple[float, float], ...] = ()
    """Nothing passes from the first to the second time."""


class Wire:
    """One direction. `put` says when copies of a packet arrive."""

    def __init__(self, faults: Faults, random: Random) -> None:
        self.faults = faults
        self.random = random
        self.free_at = 0.0
        self.last_arrival = 0.0
        self.packets = 0
        self.bytes = 0
        self.dropped: dict[str, int] = {}

    def _drop(self, reason: str) -> list[float]:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        return []

    def put(self, size: int, now: float) -> list[float]:
        faults = self.faults
        random = self.random
        self.packets += 1
        self.bytes += size
        mtu = faults.mtu
        for when, value in faults.mtu_changes:
            if now >= when:
                mtu = value
        if size > mtu:
            return self._drop("mtu")
        if any(start <= now < stop for start, stop in faults.dark):
            return self._drop("dark")
        leaves = now
        if faults.rate is not None:
            waiting = max(0.0, self.free_at - now)
            if waiting * faults.rate > faults.queue:
                return self._drop("queue")
            leaves = self.free_at = now + waiting + (size + OVERHEAD) / faults.rate
        if faults.loss and random.random() < faults.loss:
            return self._drop("loss")
        if faults.corrupt and random.random() < faults.corrupt:
            return self._drop("corrupt")
        arrives = leaves + faults.delay
        if faults.jitter:
            arrives += random.random() * faults.jitter
        if faults.reorder and random.random() < faults.reorder:
            arrives += random.random() * faults.reorder_by
        else:
            arrives = self.last_arrival = max(arrives, self.last_arrival)
        if faults.duplicate and random.random() < faults.duplicate:
            return [arrives, arrives + random.random() * faults.reorder_by]
        return [arrives]


class Pair:
    """Transports 0 and 1, joined by paths. `received[n]` is what n got; `on_message(n, event, now)` may send more."""

    def __init__(self, config: TransportConfig | tuple[TransportConfig, TransportConfig] | None = None) -> None:
        configs = config if isinstance(config, tuple) else (config or TransportConfig(),) * 2
        self.now = 0.0
        self.ends = (Transport(configs[0], 0.0), Transport(configs[1], 0.0))
        self.received: tuple[list[MessageReceived], list[MessageReceived]] = ([], [])
        self.events: tuple[list[Event], list[Event]] = ([], [])
        """Everything but messages."""
        self.on_message: Callable[[int, MessageReceived, float], None] | None = None
        self.wires: dict[tuple[int, int], Wire] = {}
        """(path, sending end)."""
        self.batch = 64
        """Packets per transmission."""
        self.steps = 0
        self.peak_held = 0
        """Most credit ever in use at one end."""
        self._seen: dict[tuple[int, int], set[int]] = {}
        self._queue: list[tuple[float, int, int, int, int, bytes]] = []
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    def join(self, path: int, faults: tuple[Faults, Faults], random: Random, max_payload: int = 1400) -> None:
        """Add a path, port *path* + 1 of both ends; *faults* are of the directions 0 to 1 and 1 to 0."""
        for end in (0, 1):
            self.wires[path, end] = Wire(faults[end], random)
            self._seen[path, end] = set()
            self.ends[end].add_path(path, max_payload, self.now, port=path + 1)
            self.ends[end].challenge(path, bytes((path + 1,)) * 8, b"", self.now)

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Run *call* at virtual time *when*."""
        self._order += 1
        heapq.heappush(self._calls, (when, self._order, call))

    def send(self, end: int, stream: int, data: bytes, priority: int = 10, route: int = 0) -> None:
        self.ends[end].send(stream, [data], priority, self.now, route)

    def _flush(self, end: int) -> None:
        transport = self.ends[end]
        now = self.now
        for path in transport.order():
            wire = self.wires.get((path, end))
            if wire is None or not transport.path(path).up:
                continue
            while True:
                pn, packets = transport.transmit(path, now, self.batch)
                if not packets:
                    break
                for packet in packets:
                    for when in wire.put(len(packet), now):
                        self._order += 1
                        heapq.heappush(self._queue, (when, self._order, 1 - end, path, pn, packet))
                    pn += 1

    def _drain(self, end: int) -> None:
        transport = self.ends[end]
        for event in transport.events():
            if isinstance(event, MessageReceived):
                self.received[end].append(event)
                if self.on_message is not None:
                    self.on_message(end, event, self.now)
            else:
                self.events[end].append(event)

    def closed(self, end: int) -> Closed | None:
        return next((event for event in self.events[end] if isinstance(event, Closed)), None)

    def step(self, until: float) -> bool:
        """Go to the next thing that happens, not beyond *until*; False when there is none."""
        when = until
        if self._queue and self._queue[0][0] < when:
            when = self._queue[0][0]
        if self._calls and self._calls[0][0] < when:
            when = self._calls[0][0]
        for transport in self.ends:
            timeout = transport.next_timeout()
            if timeout is not None and timeout < when:
                when = timeout
        if when >= until:
            self.now = until
            return False
        self.now = now = max(self.now, when)
        self.steps += 1
        arrived: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        queue = self._queue
        while queue and queue[0][0] <= now:
            _, _, end, path, pn, packet = heapq.heappop(queue)
            seen = self._seen[path, end]
            if pn not in seen:
                seen.add(pn)
                arrived.setdefault((path, end), []).append((pn, packet))
        for (path, end), packets in arrived.items():
            self.ends[end].receive(path, packets, now)
        while self._calls and self._calls[0][0] <= now:
            heapq.heappop(self._calls)[2]()
        for end, transport in enumerate(self.ends):
            timeout = transport.next_timeout()
            if timeout is not None and timeout <= now:
                transport.handle_timeout(now)
            self._drain(end)
            held = transport.statistics().held if self.steps % 64 == 0 else 0
            if held > self.peak_held:
                self.peak_held = held
        self._flush(0)
        self._flush(1)
        return True

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Let things happen until *done* or virtual time *until*; True when *done* (or, without it, when all messages were
        acknowledged)."""
        finished = done if done is not None else self.idle
        for end in (0, 1):
            self._flush(end)
        while not finished():
            if not self.step(until):
                return finished()
        return True

    def idle(self) -> bool:
        """Nothing is left to deliver or acknowledge."""
        return not any(transport.unacknowledged() for transport in self.ends)
