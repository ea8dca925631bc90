"""The contract of drivers: give a pair of yours to `check_driver`. Raises AssertionError with the rule that was broken.

The pair is two drivers at the two ends of one link, neither started. Frames in one direction arrive at the other end and nowhere else; the
link loses nothing while little is on it. `settle` runs the dispatch.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import attrs

from stack.core.driver import BATCH_MAX, Driver
from stack.core.promiscuity import promiscuous_driver
from stack.core.statistics import Counters, Drop
from stack.frame import BadFrame, Frame
from stack.wire.ethernet import BROADCAST, HEADER_SIZE, MAC_SIZE, SIZE_MIN, Ethernet, ethertype_of

TYPE = 0x88B5
OTHER_TYPE = 0x88B6
"""The local experimental ethertypes (IEEE 802)."""


class DriverPair(Protocol):
    """What is tested. `settle` runs the dispatch until the predicate holds (True) or *seconds* have passed (False)."""

    a: Driver
    b: Driver

    async def settle(self, until: Callable[[], bool], seconds: float) -> bool: ...


@attrs.frozen
class Stations:
    """For a link without broadcast whose ends have other names for each other than their own (`stack.core.endpoints`)."""

    a_at_b: bytes
    b_at_a: bytes
    """b's station, as a knows it."""


SOON = 3.0
"""What must happen may take this long on a busy machine."""
QUIET = 0.05
"""Silence this long is taken for silence."""


class RecordingPort:
    """A port that copies what it is given. `on_frames` is called within `deliver`, with the frames themselves.

    Frames of other ethertypes than the contract's two are passed over: on a link of a real system others speak too.
    """

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.batches: list[int] = []
        self.drops = Counters()
        self.changes = 0
        self.on_frames: Callable[[list[Frame]], None] | None = None

    def deliver(self, frames: list[Frame]) -> None:
        self.batches.append(len(frames))
        ours = [one for one in frames if _is_ours(one)]
        self.frames.extend(map(bytes, ours))
        if self.on_frames is not None and ours:
            self.on_frames(ours)

    def changed(self) -> None:
        self.changes += 1

    def count(self, reason: str, number: int = 1) -> None:
        self.drops.count(reason, number)


def _is_ours(one: Frame) -> bool:
    try:
        return ethertype_of(one) in (TYPE, OTHER_TYPE)
    except BadFrame:
        return True


def frame(destination: bytes, source: bytes, payload: bytes, ethertype: int = TYPE, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    return Ethernet(destination, source, ethertype, tags).pack() + payload


async def check_driver(pair: DriverPair, stations: Stations | None = None) -> None:
    """All rules of `stack.core.driver.Driver`, in one go. The drivers are detached at the end.

    With *stations*: groups, tags and a second ethertype are not carried; such frames must be dropped and counted.
    """
    try:
        await _checked(pair, stations)
    finally:  # also where a rule is broken, so that the rule is all that is said
        pair.a.detach()
        pair.b.detach()


async def _checked(pair: DriverPair, stations: Stations | None) -> None:
    a, b = pair.a, pair.b
    port_a, port_b = RecordingPort(), RecordingPort()
    for driver, port in ((a, port_a), (b, port_b)):
        assert driver.name, "the driver has no name"
        assert len(driver.mac) == MAC_SIZE, f"the driver's mac is not {MAC_SIZE} bytes: {driver.mac!r}"
        assert driver.mtu >= 68, f"the driver's mtu is below 68: {driver.mtu}"
        driver.start(port)
        driver.accept(frozenset((TYPE,)))
    assert a.mac != b.mac, "both drivers have the same mac"
    assert await pair.settle(lambda: a.up and b.up, SOON), "the link does not come up"
    check = _Check(pair, port_a, port_b, stations)
    await check.whole_frames()
    await check.kinds_of_buffers()
    await check.large_batches()
    await check.filtering()
    await check.tags()
    await check.bad_frames()
    await check.calls_from_within()
    assert all(isinstance(label, str) for label in a.info()), "a label in info is no text"
    await check.detaching()


class _Check:
    def __init__(self, pair: DriverPair, port_a: RecordingPort, port_b: RecordingPort, stations: Stations | None) -> None:
        self.pair = pair
        self.a, self.b = pair.a, pair.b
        self.port_a, self.port_b = port_a, port_b
        self.ethernet = stations is None
        self.to_b = self.b.mac if stations is None else stations.b_at_a
        self.from_a = self.a.mac if stations is None else stations.a_at_b

    def seen(self, sent: bytes) -> bytes:
        """A frame from a as it must look at b."""
        return self.b.mac + self.from_a + sent[12:] if sent[:6] == self.to_b else sent

    async def not_carried(self, frames: list[bytes], what: str) -> None:
        """Dropped and counted at a, with nothing said about the reason."""
        before = sum(self.port_a.drops.values())
        self.a.transmit(list(frames))
        assert sum(self.port_a.drops.values()) == before + len(frames), f"{what} are not counted"
        assert not await self.pair.settle(lambda: bool(self.port_b.frames), QUIET), f"{what} are delivered"

    async def arrives(self, frames: list[bytes], what: str) -> None:
        """Exactly *frames*, in order, perhaps padded, arrive at b."""
        port = self.port_b
        assert await self.pair.settle(lambda: len(port.frames) >= len(frames), SOON), f"{what}: {len(port.frames)} of {len(frames)} arrived"
        assert len(port.frames) == len(frames), f"{what}: {len(port.frames)} frames arrived, {len(frames)} should have"
        for number, (sent, got) in enumerate(zip(frames, port.frames, strict=True)):
            assert got[: len(sent)] == self.seen(sent), f"{what}: frame {number} is not what was sent"
            assert len(got) == len(sent) or (len(got) <= SIZE_MIN and not any(got[len(sent) :])), f"{what}: frame {number} grew"
        assert not self.port_a.frames, f"{what}: the sender hears itself"
        port.frames.clear()

    async def whole_frames(self) -> None:
        sizes = (0, 1, 46, 100, self.a.mtu - 1, self.a.mtu)
        frames = [frame(self.to_b, self.a.mac, bytes([size & 255]) * size) for size in sizes]
        for one in frames:
            self.a.transmit([one])
        await self.arrives(frames, "frames of every size, one by one")
        self.a.transmit(list(frames))
        await self.arrives(frames, "frames of every size, in a batch")
        self.a.transmit([])
        broadcast = [frame(BROADCAST, self.a.mac, b"all"), frame(b"\x33\x33\0\0\0\1", self.a.mac, b"some")]
        if not self.ethernet:
            await self.not_carried(broadcast, "frames to groups")
            return
        self.a.transmit(list(broadcast))
        await self.arrives(broadcast, "broadcast and multicast")

    async def kinds_of_buffers(self) -> None:
        frames = [frame(self.to_b, self.a.mac, bytes([number]) * (60 + number)) for number in range(8)]
        for number in (1, len(frames)):
            arrays = [bytearray(one) for one in frames[:number]]
            self.a.transmit(list(arrays))
            for array in arrays:
                array[:] = bytes(len(array))  # borrowed until transmit returns, not longer
            await self.arrives(frames[:number], "bytearrays that change after transmit")
            whole = b"".join(frames[:number])
            places = [sum(map(len, frames[:end])) for end in range(number + 1)]
            self.a.transmit([memoryview(whole)[start:end] for start, end in pairwise(places)])
            await self.arrives(frames[:number], "memoryviews")
        mixed: list[Frame] = [bytearray(one) if number % 2 else one for number, one in enumerate(frames)]
        self.a.transmit(mixed)
        await self.arrives(frames, "a batch of different buffers")

    async def large_batches(self) -> None:
        """All of it, or counted: what is not there at the other end is in a counter of one of the ends."""
        frames = [frame(self.to_b, self.a.mac, number.to_bytes(4, "big") * 20) for number in range(BATCH_MAX + 50)]
        port = self.port_b
        port.batches.clear()
        before = self.drops()
        self.a.transmit(list(frames))
        complete = await self.pair.settle(lambda: len(port.frames) + self.drops() - before >= len(frames), SOON)
        assert complete, f"of {len(frames)} frames {len(port.frames)} arrived and {self.drops() - before} were counted as dropped"
        assert port.frames == sorted(port.frames), "a large batch arrives out of order"
        assert set(port.frames) <= set(map(self.seen, frames)), "of a large batch frames arrive that nobody sent"
        assert max(port.batches) <= BATCH_MAX, "more frames per call than BATCH_MAX"
        port.frames.clear()

    def drops(self) -> int:
        self.b.info()  # drivers may look at the kernel's counters when they are asked
        return sum(self.port_a.drops.values()) + sum(self.port_b.drops.values())

    async def filtering(self) -> None:
        mark = frame(self.to_b, self.a.mac, b"mark")
        unwanted = frame(self.to_b, self.a.mac, b"unwanted", OTHER_TYPE)
        self.a.transmit([unwanted, mark])
        await self.arrives([mark], "an ethertype that nobody wants")
        both = [unwanted, mark] if self.ethernet else [mark]
        self.b.accept(None)
        self.a.transmit(list(both))
        await self.arrives(both, "all ethertypes")
        self.b.accept(frozenset((TYPE, OTHER_TYPE)))
        self.a.transmit(list(both))
        await self.arrives(both, "two ethertypes")
        self.b.accept(frozenset())
        self.a.transmit([mark, unwanted])
        assert not await self.pair.settle(lambda: bool(self.port_b.frames), QUIET), "no ethertype is wanted, and a frame is delivered"
        self.b.accept(frozenset((TYPE,)))
        foreign = frame(b"\2\0\0\0\xee\xee", self.a.mac, b"for somebody else")
        self.a.transmit([foreign, mark])
        await self.arrives([mark], "a frame for another machine")
        open_to_all = promiscuous_driver(self.b)
        if open_to_all is not None:
            open_to_all.promiscuous(True)
            other_type = frame(foreign[:6], self.a.mac, b"for somebody else", OTHER_TYPE)
            self.a.transmit([foreign, other_type, mark])
            await self.arrives([foreign, mark], "promiscuous, of one ethertype")
            open_to_all.promiscuous(False)
            self.a.transmit([foreign, mark])
            await self.arrives([mark], "not promiscuous any more")

    async def tags(self) -> None:
        if not self.ethernet:
            await self.not_carried([frame(self.to_b, self.a.mac, b"tagged", TYPE, ((0x8100, 5),))] * 2, "tagged frames")
            return
        mark = frame(self.to_b, self.a.mac, b"mark")
        for tags in (((0x8100, 5),), ((0x8100, 0xE000),), ((0x88A8, 7), (0x8100, 8))):
            tagged = frame(self.to_b, self.a.mac, b"tagged" * 20, TYPE, tags)
            self.a.transmit([frame(self.to_b, self.a.mac, b"unwanted", OTHER_TYPE, tags), tagged, mark])
            await self.arrives([tagged, mark], f"frames with {len(tags)} tags, which count by the type behind the tags")

    async def bad_frames(self) -> None:
        """None raises, each is counted, and the others of the batch go out."""
        good = [frame(self.to_b, self.a.mac, bytes([number]) * 70) for number in range(9)]
        too_long = frame(self.to_b, self.a.mac, bytes(self.a.mtu + 1))
        drops = self.port_a.drops
        before = drops.get(Drop.TOO_LONG, 0)
        self.a.transmit([*good[:4], too_long, *good[4:]])
        await self.arrives(good, "a batch with a frame that is too long")
        self.a.transmit([too_long, good[0]])
        await self.arrives(good[:1], "a short batch with a frame that is too long")
        assert drops.get(Drop.TOO_LONG, 0) == before + 2, "frames that are too long are not counted"
        before = drops.get(Drop.TOO_SHORT, 0)
        self.a.transmit([*good[:4], b"", bytes(HEADER_SIZE - 1), *good[4:]])
        await self.arrives(good, "a batch with frames that are too short")
        assert drops.get(Drop.TOO_SHORT, 0) == before + 2, "frames that are too short are not counted"

    async def calls_from_within(self) -> None:
        """`deliver` may transmit what it was given, and ask for other ethertypes."""
        request = frame(self.to_b, self.a.mac, b"ping" * 20)
        answer = frame(self.a.mac, self.to_b, b"ping" * 20)

        def turn_round(frames: list[Frame]) -> None:
            self.b.accept(frozenset((TYPE,)))
            self.b.transmit([b"".join((one[6:12], one[0:6], one[12:])) for one in frames])

        self.port_b.on_frames = turn_round
        self.a.transmit([request] * 5)
        assert await self.pair.settle(lambda: len(self.port_a.frames) == 5, SOON), "answers sent from within deliver do not arrive"
        assert self.port_a.frames == [answer] * 5
        self.port_a.frames.clear()
        self.port_b.frames.clear()
        self.port_b.on_frames = None

    async def detaching(self) -> None:
        """From within `deliver`; then silence, and calls that do nothing."""
        mark = frame(self.to_b, self.a.mac, b"mark")

        def leave(frames: list[Frame]) -> None:
            self.b.detach()
            assert bytes(frames[0]).startswith(self.seen(mark)), "detach takes the frames of the batch under way with it"

        self.port_b.on_frames = leave
        self.a.transmit([mark])
        assert await self.pair.settle(lambda: bool(self.port_b.frames), SOON), "the frame before detach does not arrive"
        self.port_b.frames.clear()
        self.a.transmit([mark] * 3)
        assert not await self.pair.settle(lambda: bool(self.port_b.frames), QUIET), "frames are delivered after detach"
        self.b.transmit([mark])
        self.b.accept(None)
        self.b.detach()
        self.a.detach()
