"""A bad link around a good driver: `io-pkt -d packet ifname=eth0 --fault drop=5%,dup=2%,reorder=5%,corrupt=0.5%,delay=20ms,seed=1`.

Each direction is a lane with its own generator, drawn from the seed, and each frame draws the same number of values whatever the options
are: one seed makes the same decisions frame by frame, also when another fault is switched on or off, and one lane does not shift the other.
What happens to a frame, in this order:

    cut, one-way, MTU   silently lost: a partition, a link that works in one direction, a path with a smaller MTU than it says
    drop                lost
    corrupt             one bit flipped, anywhere in the frame
    dup                 goes twice
    rate                waits for its turn on a line of that many bits per second; lost when `queue` bytes wait already
    delay, jitter       delay, plus up to jitter more: frames may overtake each other by jitter, as on a real path
    reorder             held back until one to REORDER_DEPTH later frames of its lane have passed, or REORDER_WAIT

Frames that nothing happens to go through at once and are not copied. All waiting is on the dispatch's timers. Counters of each lane are in
`statistics`; lost frames are counted on the interface as well.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping
from typing import Literal

import attrs

from resmgr.dispatch import Dispatch, Timer
from stack.core.driver import BATCH_MAX
from stack.core.module import Context, Kind, Module
from stack.core.options import BitRate, Duration, Percent, Size
from stack.core.statistics import Counters, Drop
from stack.core.wrapper import Around
from stack.drivers.wrap.heldback import HeldBack
from stack.frame import Frame
from stack.wire.ethernet import HEADER_SIZE

REORDER_DEPTH = 4
REORDER_WAIT = 0.02
"""Seconds after which a frame that was held back goes, though nothing came behind it."""
DRAWS = 7
"""Values drawn for each frame."""
DRAW_BITS = 64
"""What one of them takes from the generator: two words of 32 bits."""
WAITING_MAX = 65536
"""Frames that wait in a lane; more are lost. Bounds the memory of a long delay on a fast link."""

Direction = Literal["both", "tx", "rx"]
_share = (attrs.validators.ge(Percent(0.0)), attrs.validators.le(Percent(1.0)))


@attrs.frozen
class FaultOptions:
    """Options of `--fault`. Shares are of frames; `apply` limits all of them to one direction."""

    drop: Percent = attrs.field(default=Percent(0.0), validator=_share)
    dup: Percent = attrs.field(default=Percent(0.0), validator=_share)
    reorder: Percent = attrs.field(default=Percent(0.0), validator=_share)
    corrupt: Percent = attrs.field(default=Percent(0.0), validator=_share)
    delay: Duration = Duration(0.0)
    jitter: Duration = Duration(0.0)
    rate: BitRate | None = None
    queue: Size = Size(256 * 1024)
    """Bytes that may wait for the line of `rate`."""
    mtu: int | None = None
    """Frames with a larger payload are lost; the interface still shows the driver's MTU."""
    apply: Direction = "both"
    oneway: Literal["tx", "rx"] | None = None
    """Only this direction works at all."""
    cut: bool = False
    """Start partitioned."""
    seed: int = 0


class _Lane:
    """One direction. `out` takes a batch that passes now."""

    def __init__(
        self, name: str, dispatch: Dispatch, options: FaultOptions, out: Callable[[list[Frame]], None], lose: Callable[[str], None]
    ) -> None:
        self.counters = Counters()
        self._name = name
        self._dispatch = dispatch
        self._out = out
        self._lose = lose
        self._rng = random.Random(f"{options.seed}/{name}")
        self._line_free = 0.0
        self._waiting: list[tuple[float, int, bytes]] = []
        self._held = HeldBack()
        self._order = 0
        self._passed = 0
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._closed = False
        self.set_options(options)

    def set_options(self, options: FaultOptions) -> None:
        self.options = options
        applies = options.apply in ("both", self._name)
        self._drop = options.drop if applies else 0.0
        self._dup = options.dup if applies else 0.0
        self._reorder = options.reorder if applies else 0.0
        self._corrupt = options.corrupt if applies else 0.0
        self._delay = options.delay if applies else 0.0
        self._jitter = options.jitter if applies else 0.0
        self._rate = options.rate if applies else None
        self._size_max = options.mtu + HEADER_SIZE if options.mtu is not None and applies else None
        self._dead = options.oneway not in (None, self._name)
        self._good = not (
            self._drop
            or self._dup
            or self._reorder
            or self._corrupt
            or self._delay
            or self._jitter
            or self._rate is not None
            or self._size_max is not None
            or self._dead
        )

    def put(self, frames: list[Frame], cut: bool) -> None:
        count = self.counters.count
        if self._good and not cut and not self._held:
            # As many draws as below, in one call: nothing can come of them.
            self._rng.getrandbits(DRAWS * DRAW_BITS * len(frames))
            count("frames", len(frames))
            self._passed += len(frames)
            self._send(frames)
            return
        draw = self._rng.random
        now_out: list[Frame] = []
        for frame in frames:
            # Always the same draws.
            drop, corrupt, where, dup, jitter, reorder, depth = draw(), draw(), draw(), draw(), draw(), draw(), draw()
            count("frames")
            if cut or self._dead:
                self._lost("cut" if cut else "one_way")
                continue
            if self._size_max is not None and len(frame) > self._size_max:
                self._lost("mtu")
                continue
            if drop < self._drop:
                self._lost("dropped")
                continue
            if corrupt < self._corrupt:
                count("corrupted")
                frame = _flipped(frame, where)
            copies = 1
            if dup < self._dup:
                count("duplicated")
                copies = 2
            for _ in range(copies):
                delay = self._delay + self._jitter * jitter
                if self._rate is not None:
                    waits = self._wait_for_line(len(frame))
                    if waits is None:
                        continue
                    delay += waits
                if reorder < self._reorder:
                    count("reordered")
                    self._hold(frame, delay, 1 + int(depth * REORDER_DEPTH))
                elif delay > 0:
                    count("delayed")
                    self._wait(frame, delay)
                else:
                    now_out.append(frame)
                    self._passed += 1
                    if self._held:
                        now_out.extend(self._held.passed(self._passed))
        if now_out:
            self._send(now_out)
        self._arm()

    def close(self) -> None:
        self._closed = True
        self._waiting.clear()
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._held)

    def _lost(self, why: str) -> None:
        self.counters.count(why)
        self._lose(f"fault_{self._name}_{why}")

    def _wait_for_line(self, size: int) -> float | None:
        assert self._rate is not None
        now = self._dispatch.now()
        begins = max(now, self._line_free)
        if (begins - now) * self._rate / 8 + size > self.options.queue:
            self._lost("queue_full")
            return None
        self._line_free = begins + size * 8 / self._rate
        return self._line_free - now

    def _wait(self, frame: Frame, delay: float) -> None:
        if self.waiting >= WAITING_MAX:
            self._lost("overflow")
            return
        self._order += 1
        heapq.heappush(self._waiting, (self._dispatch.now() + delay, self._order, bytes(frame)))

    def _hold(self, frame: Frame, delay: float, depth: int) -> None:
        """Behind *depth* of the frames that pass from now on."""
        if self.waiting >= WAITING_MAX:
            self._lost("overflow")
            return
        latest = self._dispatch.now() + delay + REORDER_WAIT
        self._held.add(bytes(frame), self._passed + len(self._waiting) + depth, latest)

    def _arm(self) -> None:
        times = [self._waiting[0][0]] if self._waiting else []
        if (latest := self._held.next_time()) is not None:
            times.append(latest)
        if self._closed or not times:
            return
        when = min(times)
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._dispatch.call_at(when, self._timeout)

    def _timeout(self) -> None:
        self._timer = None
        now = self._dispatch.now()
        frames: list[Frame] = []
        while self._waiting and self._waiting[0][0] <= now:
            frames.append(heapq.heappop(self._waiting)[2])
            self._passed += 1
            if self._held:
                frames.extend(self._held.passed(self._passed))
        if self._held:
            frames.extend(self._held.expired(now))
        self._send(frames)
        self._arm()

    def _send(self, frames: list[Frame]) -> None:
        for start in range(0, len(frames), BATCH_MAX):
            if self._closed:
                return
            part = frames[start : start + BATCH_MAX]
            self.counters.count("passed", len(part))
            self._out(part)


def _flipped(frame: Frame, where: float) -> bytes:
    damaged = bytearray(frame)
    if damaged:
        bit = int(where * len(damaged) * 8)
        damaged[bit >> 3] ^= 1 << (bit & 7)
    return bytes(damaged)


class FaultDriver(Around):
    """See the head of this file."""

    def __init__(self, dispatch: Dispatch, options: FaultOptions) -> None:
        super().__init__()
        self._options = options
        self.cut = options.cut
        """Partition: the link looks up and nothing passes. Frames that wait already still arrive, as they are under way."""
        self._carrier = True
        self._tx = _Lane("tx", dispatch, options, self.send, self.count)
        self._rx = _Lane("rx", dispatch, options, self.hand_up, self.count)

    # What tests and commands turn at run time

    @property
    def options(self) -> FaultOptions:
        return self._options

    @options.setter
    def options(self, options: FaultOptions) -> None:
        """Other faults from now on. The generators go on, so `seed` has no effect here; frames that wait keep their time."""
        self._options = options
        self._tx.set_options(options)
        self._rx.set_options(options)

    def set_carrier(self, up: bool) -> None:
        """False: the cable is pulled and the stack sees it. True: as the driver says."""
        if up != self._carrier:
            self._carrier = up
            if self._port is not None:
                self._port.changed()

    @property
    def statistics(self) -> dict[str, Mapping[str, int]]:
        """Counters of the lanes `tx` and `rx`: frames, passed, dropped, duplicated, reordered, corrupted, delayed, ..."""
        return {"tx": self._tx.counters.copy_frozen(), "rx": self._rx.counters.copy_frozen()}

    # A driver and a port

    @property
    def up(self) -> bool:
        return self.inner.up and self._carrier

    def to_wire(self, frames: list[Frame]) -> None:
        if self._carrier:
            self._tx.put(frames, self.cut)
        else:
            self.count(Drop.LINK_DOWN, len(frames))

    def to_stack(self, frames: list[Frame]) -> None:
        if self._carrier:
            self._rx.put(frames, self.cut)
        else:
            self.count(Drop.LINK_DOWN, len(frames))

    def close(self) -> None:
        self._tx.close()
        self._rx.close()

    def info(self) -> Mapping[str, str | int]:
        faults = [
            f"{field.name}={value}"
            for field in attrs.fields(FaultOptions)
            if (value := getattr(self._options, field.name)) != field.default
        ]
        return {
            **self.inner.info(),
            "fault": ",".join(faults) or "none",
            "fault cut": "yes" if self.cut else "no",
            **{f"fault {lane} {name}": number for lane, counters in self.statistics.items() for name, number in counters.items()},
        }


def _attach(context: Context, options: FaultOptions) -> FaultDriver:
    return FaultDriver(context.dispatch, options)


MODULE = Module("fault", Kind.WRAPPER, FaultOptions, _attach)
