"""The fault wrapper: a contract-keeping driver without faults, and with them exactly the faults that the seed decides."""

from __future__ import annotations

import attrs
import pytest

from resmgr.errors import Misuse
from resmgr.testing.virtual import VirtualDispatch
from stack.core.driver import Driver
from stack.core.options import BitRate, Duration, Percent, Size, parse_options
from stack.core.statistics import Drop
from stack.drivers.hub import Hub
from stack.drivers.wrap.fault import REORDER_DEPTH, REORDER_WAIT, FaultDriver, FaultOptions
from stack.frame import Frame
from stack.testing.driver import TYPE, RecordingPort, check_driver, frame
from stack.testing.virtualpair import VirtualPair

A, B = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"


def around(dispatch: VirtualDispatch, driver: Driver, options: FaultOptions) -> FaultDriver:
    fault = FaultDriver(dispatch, options)
    fault.around(driver)
    return fault


class Link:
    """A hub with a faulty end a and a good end b."""

    def __init__(self, text: str = "", **options: object) -> None:
        self.dispatch = VirtualDispatch(1)
        hub = Hub(self.dispatch, latency=0.0)
        self.a = around(self.dispatch, hub.port("en0", A), parse_options(FaultOptions, text, "fault"))
        self.b = hub.port("en1", B)
        self.port_a, self.port_b = RecordingPort(), RecordingPort()
        self.times: list[float] = []
        self.port_b.on_frames = lambda frames: self.times.extend([self.dispatch.now()] * len(frames))
        self.a.start(self.port_a)
        self.b.start(self.port_b)
        self.a.accept(frozenset((TYPE,)))
        self.b.accept(None)

    def send(self, count: int, size: int = 60, first: int = 0) -> list[bytes]:
        """From a to b, in batches of ten. Numbers count the frames."""
        frames = [frame(B, A, number.to_bytes(4, "big") * (size // 4)) for number in range(first, first + count)]
        for start in range(0, count, 10):
            self.a.transmit(list(frames[start : start + 10]))
        return frames

    def answer(self, count: int) -> None:
        for number in range(count):
            self.b.transmit([frame(A, B, number.to_bytes(4, "big") * 15)])

    def run(self, seconds: float = 60.0) -> list[int]:
        """The numbers of the frames that arrived at b."""
        self.dispatch.run_for(seconds)
        return numbers(self.port_b)

    @property
    def tx(self) -> dict[str, int]:
        return dict(self.a.statistics["tx"])


def numbers(port: RecordingPort) -> list[int]:
    return [int.from_bytes(one[14:18], "big") for one in port.frames]


async def test_contract_without_faults() -> None:
    dispatch = VirtualDispatch(1)
    hub = Hub(dispatch)
    ends = [around(dispatch, hub.port(name, mac), FaultOptions()) for name, mac in (("en0", A), ("en1", B))]
    await check_driver(VirtualPair(dispatch, *ends))


async def test_contract_with_delay() -> None:
    """Waiting breaks no rule: buffers are copied, order is kept, a detached driver is silent."""
    dispatch = VirtualDispatch(1)
    hub = Hub(dispatch)
    options = FaultOptions(delay=Duration(0.02), rate=BitRate(1e9), queue=Size(1 << 24))
    await check_driver(VirtualPair(dispatch, around(dispatch, hub.port("en0", A), options), around(dispatch, hub.port("en1", B), options)))


@pytest.mark.parametrize("seed", range(5))
def test_drop_takes_its_share_and_counts_it(seed: int) -> None:
    link = Link(f"drop=5%,seed={seed}")
    link.send(4000)
    arrived = link.run()
    lost = 4000 - len(arrived)
    assert 130 < lost < 280, seed
    assert arrived == sorted(set(arrived))
    assert link.tx == {"frames": 4000, "dropped": lost, "passed": 4000 - lost}
    assert link.port_a.drops == {"fault_tx_dropped": lost}


def test_one_seed_makes_the_same_decisions_whatever_else_happens() -> None:
    def lost(text: str, answers: int) -> set[int]:
        link = Link(text)
        link.answer(answers)
        link.send(1000)
        return set(range(1000)) - set(link.run())

    plain = lost("drop=5%,seed=7", 0)
    assert plain == lost("drop=5%,seed=7", 500)
    assert plain == lost("drop=5%,dup=10%,reorder=20%,delay=3ms,jitter=1ms,corrupt=0,seed=7", 0)
    assert plain != lost("drop=5%,seed=8", 0)


def test_same_seed_same_trace() -> None:
    def trace() -> list[tuple[float, bytes]]:
        link = Link("drop=5%,dup=5%,reorder=10%,corrupt=5%,delay=1ms,jitter=5ms,rate=5M,seed=3")
        link.send(300)
        link.run()
        return list(zip(link.times, link.port_b.frames, strict=True))

    assert trace() == trace()


def test_duplicates_arrive_twice() -> None:
    link = Link("dup=10%,seed=1")
    link.send(1000)
    arrived = link.run()
    twice = link.tx["duplicated"]
    assert 50 < twice < 160
    assert len(arrived) == 1000 + twice
    assert set(arrived) == set(range(1000))


def test_corrupted_frames_differ_in_one_bit() -> None:
    link = Link("corrupt=20%,seed=1")
    link.b.accept(None)
    sent = link.send(500)
    # Damage to the destination address takes the frame elsewhere; all others arrive.
    link.run()
    damaged = [one for one in link.port_b.frames if one not in set(sent)]
    assert 60 < link.tx["corrupted"] < 140
    assert 0 < len(damaged) <= link.tx["corrupted"]
    for one in damaged:
        value = int.from_bytes(one, "big")
        assert min((value ^ int.from_bytes(other, "big")).bit_count() for other in sent) == 1


def test_reordered_frames_come_a_little_later_and_none_is_lost() -> None:
    link = Link("reorder=5%,seed=1")
    link.send(2000)
    arrived = link.run()
    assert sorted(arrived) == list(range(2000))
    late = [place for place, number in enumerate(arrived) if any(later < number for later in arrived[place + 1 : place + 20])]
    assert 0 < len(late) <= 300
    assert 60 < link.tx["reordered"] < 150
    for place, number in enumerate(arrived):
        assert abs(place - number) <= 3 * REORDER_DEPTH


def test_the_last_frame_is_not_held_back_for_ever() -> None:
    link = Link("reorder=100%,seed=1")
    link.send(1)
    link.run()
    (when,) = link.times
    assert when - 1000.0 == pytest.approx(REORDER_WAIT)


def test_delay_and_jitter() -> None:
    link = Link("delay=20ms,seed=1")
    link.send(50)
    assert link.run() == list(range(50))
    assert {round(when - 1000.0, 9) for when in link.times} == {0.02}
    link = Link("delay=20ms,jitter=10ms,seed=1")
    link.send(50)
    arrived = link.run()
    assert arrived != sorted(arrived)
    assert sorted(arrived) == list(range(50))
    assert all(0.02 <= when - 1000.0 <= 0.03 for when in link.times)


def test_rate_spaces_frames_and_its_queue_ends() -> None:
    link = Link("rate=1M,queue=10k,seed=1")
    link.send(50, 1000 - 14)
    link.run()
    size = 14 + (1000 - 14) // 4 * 4
    fit = 10 * 1024 // size
    assert len(link.times) == fit
    assert link.tx["queue_full"] == 50 - fit
    gaps = [after - before for before, after in zip(link.times, link.times[1:], strict=False)]
    assert gaps == [pytest.approx(size * 8 / 1e6)] * (fit - 1)
    assert link.port_a.drops == {"fault_tx_queue_full": 50 - fit}


def test_mtu_is_a_black_hole() -> None:
    link = Link("mtu=500")
    assert link.a.mtu == 1500
    link.a.transmit([frame(B, A, bytes(500)), frame(B, A, bytes(501))])
    link.run()
    assert [len(one) for one in link.port_b.frames] == [514]
    assert link.port_a.drops == {"fault_tx_mtu": 1}


@pytest.mark.parametrize(
    ("text", "tx", "rx"), [("oneway=tx", 5, 0), ("oneway=rx", 0, 5), ("drop=100%,apply=tx", 0, 5), ("drop=100%,apply=rx", 5, 0)]
)
def test_directions(text: str, tx: int, rx: int) -> None:
    link = Link(text)
    link.send(5)
    link.answer(5)
    assert len(link.run()) == tx
    assert len(link.port_a.frames) == rx


def test_partition_and_options_at_run_time() -> None:
    link = Link("cut,delay=10ms")
    link.send(5)
    link.answer(5)
    assert link.run() == []
    assert link.a.up
    assert link.port_a.drops == {"fault_tx_cut": 5, "fault_rx_cut": 5}
    link.a.cut = False
    link.send(5, first=5)
    link.a.cut = True  # what is under way arrives
    assert link.run() == [5, 6, 7, 8, 9]
    link.a.cut = False
    link.a.options = attrs.evolve(link.a.options, drop=Percent(1.0))
    link.send(5)
    assert len(link.run()) == 5
    assert link.a.info()["fault"] == "drop=1.0,delay=0.01,cut=True"


def test_carrier() -> None:
    link = Link("delay=10ms")
    link.a.set_carrier(False)
    link.a.set_carrier(False)
    assert (link.a.up, link.port_a.changes) == (False, 1)
    link.send(3)
    link.answer(4)
    assert link.run() == []
    assert link.port_a.frames == []
    assert link.port_a.drops == {Drop.LINK_DOWN: 7}
    link.a.set_carrier(True)
    assert (link.a.up, link.port_a.changes) == (True, 2)
    link.send(3)
    assert link.run() == [0, 1, 2]


def test_detach_drops_what_waits() -> None:
    link = Link("delay=1s,reorder=50%")
    link.send(20)
    link.a.detach()
    assert link.run() == []
    assert link.a.info()["fault tx frames"] == 20


def test_a_batch_delivered_late_is_not_too_large() -> None:
    link = Link("delay=10ms")
    link.port_a.on_frames = None
    for _ in range(100):
        link.b.transmit([frame(A, B, bytes(60))] * 10)
    link.run()
    assert len(link.port_a.frames) == 1000
    assert max(link.port_a.batches) <= 256


def test_one_driver_only() -> None:
    link = Link()
    with pytest.raises(Misuse):
        link.a.around(link.b)


def test_frames_that_pass_are_not_copied() -> None:
    link = Link("drop=1%,seed=4")
    sent: list[Frame] = [memoryview(frame(B, A, bytes(60)))]
    seen: list[Frame] = []

    class Inner:
        def transmit(self, frames: list[Frame]) -> None:
            seen.extend(frames)

    link.a._inner = Inner()  # type: ignore[assignment]  # only transmit is called
    link.a.transmit(sent)
    assert seen[0] is sent[0]
