"""Wrappers beside the bad link: what they share, `rate` and `tracer`, each under the contract of drivers; and the loopback."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.driver import BATCH_MAX
from stack.core.errors import ModuleError
from stack.core.options import BitRate, Size, parse_options
from stack.core.promiscuity import promiscuous_driver
from stack.core.stack import Stack
from stack.core.wrapper import Around
from stack.drivers.hub import Hub
from stack.drivers.lo import WAITING_MAX, LoopbackDriver, LoOptions
from stack.drivers.wrap.fault import FaultDriver, FaultOptions
from stack.drivers.wrap.pcap import PcapWrapOptions, PcapWrapper
from stack.drivers.wrap.rate import WIRE_OVERHEAD, RateDriver, RateOptions
from stack.drivers.wrap.tracer import TracerDriver, TracerOptions
from stack.frame import Frame
from stack.testing.driver import OTHER_TYPE, TYPE, RecordingPort, check_driver, frame
from stack.testing.virtualpair import VirtualPair
from stack.wire.ethernet import BROADCAST

A, B = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"


WRAPPERS: dict[str, Callable[[VirtualDispatch, Path], Around]] = {
    "nothing": lambda dispatch, path: Around(),
    "fault": lambda dispatch, path: FaultDriver(dispatch, FaultOptions()),
    "pcap": lambda dispatch, path: PcapWrapper(dispatch, PcapWrapOptions(str(path))),
    "rate, wide": lambda dispatch, path: RateDriver(dispatch, RateOptions(BitRate(1e9), BitRate(1e9), queue=Size(1 << 20))),
    "rate, narrow": lambda dispatch, path: RateDriver(dispatch, RateOptions(BitRate(1e7), None, Size(1600), Size(64 << 10))),
    "tracer": lambda dispatch, path: TracerDriver(dispatch, TracerOptions(file=str(path), hex=20)),
}


@pytest.mark.parametrize("name", WRAPPERS)
async def test_contract(name: str, tmp_path: Path) -> None:
    dispatch = VirtualDispatch(1)
    hub = Hub(dispatch)
    ends = []
    for number, mac in enumerate((A, B)):
        inner, outer = WRAPPERS[name](dispatch, tmp_path / f"{number}"), FaultDriver(dispatch, FaultOptions())
        inner.around(hub.port(f"en{number}", mac))
        outer.around(inner)
        ends.append(outer)
    await check_driver(VirtualPair(dispatch, *ends))
    assert promiscuous_driver(ends[0]) is not None
    assert hub.ports == ()


class Shaped:
    def __init__(self, options: RateOptions) -> None:
        self.dispatch = VirtualDispatch(1)
        hub = Hub(self.dispatch)
        self.driver = RateDriver(self.dispatch, options)
        self.driver.around(hub.port("en0", A))
        self.other = hub.port("en1", B)
        self.near, self.far = RecordingPort(), RecordingPort()
        self.times: list[float] = []
        self.far.on_frames = lambda frames: self.times.extend(self.dispatch.now() for _ in frames)
        self.driver.start(self.near)
        self.other.start(self.far)
        self.driver.accept(None)
        self.other.accept(None)


def test_no_more_passes_than_the_rate_and_all_in_order() -> None:
    """10 Mbit/s: over any time no more than rate * t + burst, and the line is never idle while something waits."""
    shaped = Shaped(RateOptions(BitRate(10e6), None, Size(10_000), Size(1 << 20)))
    draw = random.Random(1)
    sent = [frame(B, A, number.to_bytes(4, "big") + bytes(draw.choice([50, 500, 1400]))) for number in range(500)]
    for start in range(0, 500, 50):
        shaped.driver.transmit(list(sent[start : start + 50]))
    assert shaped.dispatch.run_until(lambda: len(shaped.far.frames) == 500, limit=10)
    assert shaped.far.frames == sent
    sizes = [len(one) + WIRE_OVERHEAD for one in sent]
    total = 0
    for at, size in zip(shaped.times, sizes, strict=True):
        total += size
        assert total <= at * 10e6 / 8 + 10_000
    took = shaped.times[-1] - shaped.times[0]
    assert took == pytest.approx((sum(sizes) - 10_000) * 8 / 10e6, rel=0.01)


def test_what_finds_the_queue_full_is_counted_and_the_other_direction_is_free() -> None:
    shaped = Shaped(RateOptions(BitRate(1e6), None, Size(2000), Size(5000)))
    sent = [frame(B, A, bytes([number]) * 986) for number in range(20)]
    shaped.driver.transmit(list(sent))
    shaped.other.transmit([frame(A, B, bytes(1000))] * 100)
    shaped.dispatch.run_for(1.0)
    # One goes at once, five find room.
    assert shaped.far.frames == sent[:6]
    assert shaped.near.drops == {"rate_tx_queue_full": 14}
    assert len(shaped.near.frames) == 100
    shaped.driver.transmit(list(sent))
    shaped.driver.detach()
    assert shaped.dispatch.run_until(lambda: False, limit=1.0) is False


def test_rate_of_what_is_received_and_a_frame_longer_than_the_burst() -> None:
    shaped = Shaped(RateOptions(None, BitRate(8e6), Size(1600), Size(100_000)))
    shaped.other.mtu = 5000
    shaped.other.transmit([frame(A, B, bytes(4000))] * 3)
    shaped.dispatch.run_for(1.0)
    assert len(shaped.near.frames) == 3
    assert max(shaped.near.batches) <= BATCH_MAX
    assert "rate receive" in shaped.driver.info()


def traced(options: TracerOptions, tmp_path: Path) -> tuple[VirtualDispatch, TracerDriver]:
    dispatch = VirtualDispatch(1)
    driver = TracerDriver(dispatch, options)
    hub = Hub(dispatch)
    driver.around(hub.port("en0", A))
    other = hub.port("en1", B)
    other.start(RecordingPort())
    driver.start(RecordingPort())
    driver.accept(None)
    return dispatch, driver


def test_lines_of_a_tracer_and_their_budget(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    dispatch, driver = traced(TracerOptions(rate=10.0, burst=3, file=str(file), hex=2), tmp_path)
    one = frame(B, A, bytes(50))
    driver.transmit([one] * 5)
    dispatch.run_for(0.15)
    driver.transmit([one, b"short"])
    dispatch.run_for(10.0)
    driver.deliver([frame(BROADCAST, B, bytes(50), OTHER_TYPE)])
    driver.transmit([bytes(2000)])
    lines = [line.split(" ", 1)[1] for line in file.read_text().splitlines()]
    out = "en0 > 02:00:00:00:00:01 > 02:00:00:00:00:02 Qnet (experimental 1) 64 bytes 0200"
    assert lines[:4] == [out, out, out, f"{out} (2 before it untold)"]
    assert lines[4] == "en0 < 02:00:00:00:00:02 > ff:ff:ff:ff:ff:ff 0x88b6 64 bytes ffff (1 before it untold)"
    assert lines[-1] == "en0 drops too_long 1"
    assert driver.info()["frames passed untold"] == 0
    driver.detach()


def test_a_tracer_picks_directions_and_types_and_speaks_through_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stack.drivers.wrap.tracer")
    _, driver = traced(parse_options(TracerOptions, "direction=tx,type=0x88b5", "tracer"), tmp_path)
    driver.transmit([frame(B, A, bytes(50)), frame(B, A, bytes(50), OTHER_TYPE)])
    driver.deliver([frame(A, B, bytes(50))])
    (record,) = caplog.records
    assert record.getMessage().startswith("en0 > 02:00:00:00:00:01")
    caplog.set_level(logging.WARNING, "stack.drivers.wrap.tracer")
    driver.transmit([frame(B, A, bytes(50))])
    assert driver.info()["traced lines"] == 1
    with pytest.raises(ModuleError, match="cannot write"):
        traced(TracerOptions(file=str(tmp_path / "no" / "file")), tmp_path)


@pytest.mark.host
def test_a_trace_that_cannot_be_written_ends(tmp_path: Path) -> None:
    dispatch, driver = traced(TracerOptions(file="/dev/full"), tmp_path)
    driver.transmit([frame(B, A, bytes(50))] * 2)
    driver.transmit([frame(B, A, bytes(50))])
    assert driver.info()["trace ended"] == "No space left on device"
    driver.detach()
    del dispatch


class Loop:
    def __init__(self) -> None:
        self.dispatch = VirtualDispatch(1)
        self.driver = LoopbackDriver(self.dispatch, LoOptions())
        self.port = RecordingPort()
        self.driver.start(self.port)
        self.driver.accept(frozenset((TYPE,)))


def test_what_a_loopback_sends_it_receives() -> None:
    loop = Loop()
    ours = [frame(bytes(6), bytes(6), number.to_bytes(2, "big") * 20) for number in range(BATCH_MAX + 10)]
    group = frame(BROADCAST, bytes(6), b"all")
    arrays = [bytearray(one) for one in ours]
    loop.driver.transmit([*arrays, group, frame(B, bytes(6), b"foreign"), frame(bytes(6), bytes(6), b"x", OTHER_TYPE)])
    for array in arrays:
        array[:] = bytes(len(array))
    assert not loop.port.frames, "not within the call"
    loop.dispatch.run_for(1.0)
    assert loop.port.frames == [*ours, group]
    assert max(loop.port.batches) <= BATCH_MAX
    loop.driver.promiscuous(True)
    loop.driver.transmit([frame(B, bytes(6), b"foreign"), b"short", bytes(70000)])
    loop.dispatch.run_for(1.0)
    assert loop.port.frames[-1] == frame(B, bytes(6), b"foreign")
    assert loop.port.drops == {"too_short": 1, "too_long": 1}


def test_a_loopback_that_answers_itself_lets_others_live_and_has_an_end() -> None:
    loop = Loop()
    one = frame(bytes(6), bytes(6), bytes(60000))
    loop.port.on_frames = lambda frames: loop.driver.transmit([bytes(part) for part in frames])
    loop.driver.transmit([one])
    assert loop.dispatch.run_until(lambda: len(loop.port.frames) > 100, limit=1.0)
    loop.port.on_frames = None
    loop.driver.transmit([one] * 200)
    assert loop.port.drops["tx_queue_full"] > 200 - WAITING_MAX // len(one) - 2
    loop.driver.detach()
    before = len(loop.port.frames)
    loop.driver.transmit([one])
    loop.dispatch.run_for(1.0)
    assert len(loop.port.frames) == before


def test_a_loopback_loads() -> None:
    dispatch = VirtualDispatch(1)
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    loaded = stack.load("lo", "", wrap=[("rate", "tx=1M"), ("tracer", ""), ("fault", "drop=1%")])
    assert loaded.interface is not None
    seen: list[bytes] = []

    def handler(_: object, frames: list[Frame]) -> None:
        seen.extend(map(bytes, frames))

    stack.register_ethertype(TYPE, handler)
    stack.output(loaded.interface, [frame(bytes(6), bytes(6), b"hello")])
    dispatch.run_for(1.0)
    assert len(seen) == 1
    stack.close()
