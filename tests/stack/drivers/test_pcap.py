"""The driver and the wrapper `pcap`: replay with times, speed and rounds; recording with directions and drops; a cable of two pipes."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import attrs
import pytest
import trio

from resmgr.runner import open_dispatch
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.driver import BATCH_MAX, Driver
from stack.core.errors import ModuleError
from stack.core.main import main
from stack.core.options import Size
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.drivers.pcap import PcapDriver, PcapOptions
from stack.drivers.pcap_file import recorder as recorder_module
from stack.drivers.pcap_file.replay import AHEAD_MAX
from stack.drivers.wrap.fault import FaultDriver, FaultOptions
from stack.drivers.wrap.pcap import PcapWrapOptions, PcapWrapper
from stack.testing.driver import OTHER_TYPE, TYPE, RecordingPort, check_driver, frame
from stack.testing.pair import Pair
from stack.wire import pcap
from stack.wire.capture import read_records
from stack.wire.ethernet import BROADCAST
from stack.wire.pcap import IN, OUT, SECOND, Record
from stack.wire.pcapng import PcapngReader

US = b"\2\0\0\0\0\1"
THEM = b"\2\0\0\0\0\2"
TIME = 1_700_000_000 * SECOND


def write_file(path: Path, frames: list[tuple[float, bytes]]) -> str:
    path.write_bytes(pcap.pack_header() + b"".join(pcap.pack_record(TIME + int(at * SECOND), one) for at, one in frames))
    return str(path)


class Timed(RecordingPort):
    """Keeps when each frame came."""

    def __init__(self, dispatch: VirtualDispatch) -> None:
        super().__init__()
        self.times: list[float] = []
        self.on_frames = lambda frames: self.times.extend(dispatch.now() for _ in frames)


@attrs.define
class Played:
    dispatch: VirtualDispatch
    driver: PcapDriver
    port: Timed
    began: float


def play(options: PcapOptions, ethertypes: frozenset[int] | None = frozenset((TYPE,))) -> Played:
    dispatch = VirtualDispatch(1)
    driver = PcapDriver(dispatch, options, US)
    port = Timed(dispatch)
    driver.start(port)
    dispatch.run_for(5.0)
    driver.accept(frozenset())
    dispatch.run_for(5.0)
    assert not port.frames
    driver.accept(ethertypes)
    return Played(dispatch, driver, port, dispatch.now())


def numbered(count: int) -> list[bytes]:
    return [frame(US, THEM, number.to_bytes(4, "big") * 15) for number in range(count)]


@pytest.mark.parametrize("speed", [0.5, 1.0, 10.0])
def test_frames_come_when_they_came(tmp_path: Path, speed: float) -> None:
    frames = numbered(4)
    times = [0.0, 0.5, 0.5, 3.0]
    played = play(PcapOptions(write_file(tmp_path / "f", list(zip(times, frames, strict=True))), speed=speed))
    assert played.dispatch.run_until(lambda: not played.driver.up, limit=60)
    assert played.port.frames == frames
    assert [round((at - played.began) * speed, 2) for at in played.port.times] == times
    assert played.port.changes == 1
    assert played.driver.info()["replay ended"] == "end of file"


def test_a_long_file_is_read_as_it_is_played(tmp_path: Path) -> None:
    frames = numbered(3 * AHEAD_MAX)
    played = play(PcapOptions(write_file(tmp_path / "f", [(0.001 * number, one) for number, one in enumerate(frames)]), fast=True))
    assert played.dispatch.run_until(lambda: not played.driver.up, limit=60)
    assert played.port.frames == frames
    assert max(played.port.batches) <= BATCH_MAX


def test_rounds(tmp_path: Path) -> None:
    frames = numbered(3)
    path = write_file(tmp_path / "f", [(0.1 * number, one) for number, one in enumerate(frames)])
    played = play(PcapOptions(path, loop=3))
    assert played.dispatch.run_until(lambda: not played.driver.up, limit=60)
    assert played.port.frames == frames * 3
    assert played.driver.info()["replay rounds"] == 3
    endless = play(PcapOptions(path, loop=0))
    endless.dispatch.run_for(20.0)
    assert endless.driver.up
    assert len(endless.port.frames) > 150
    endless.driver.detach()
    empty = play(PcapOptions(write_file(tmp_path / "empty", []), loop=0))
    assert empty.dispatch.run_until(lambda: not empty.driver.up, limit=1)


def test_what_is_for_others_needs_promiscuity_and_what_is_no_frame_is_counted(tmp_path: Path) -> None:
    ours, group, foreign = frame(US, THEM, b"ours"), frame(BROADCAST, THEM, b"all"), frame(THEM, US, b"foreign")
    other_type = frame(US, THEM, b"x", OTHER_TYPE)
    data = pcap.pack_header() + b"".join(pcap.pack_record(TIME, one) for one in (ours, group, foreign, other_type, b"", b"short"))
    data += pcap.pack_record(TIME, ours[:14], 60)
    (tmp_path / "f").write_bytes(data)
    played = play(PcapOptions(str(tmp_path / "f")))
    assert played.dispatch.run_until(lambda: not played.driver.up, limit=1)
    assert played.port.frames == [ours, group]
    assert played.port.drops == {"rx_cut": 1, "too_short": 2}
    dispatch = VirtualDispatch(1)
    driver = PcapDriver(dispatch, PcapOptions(str(tmp_path / "f"), mac="02:00:00:00:00:77"), US)
    port = RecordingPort()
    driver.start(port)
    driver.promiscuous(True)
    driver.accept(None)
    assert dispatch.run_until(lambda: not driver.up, limit=1)
    assert port.frames == [ours, group, foreign, other_type]
    (tmp_path / "sll").write_bytes(pcap.pack_header(linktype=113) + pcap.pack_record(TIME, ours))
    played = play(PcapOptions(str(tmp_path / "sll")))
    assert played.dispatch.run_until(lambda: not played.driver.up, limit=1)
    assert played.port.drops == {"rx_not_ethernet": 1}


def test_a_damaged_file_ends_the_replay_and_says_so(tmp_path: Path) -> None:
    frames = numbered(5)
    path = Path(write_file(tmp_path / "f", [(0.0, one) for one in frames]))
    path.write_bytes(path.read_bytes()[:-7])
    played = play(PcapOptions(str(path), loop=0))
    assert played.dispatch.run_until(lambda: not played.driver.up, limit=1)
    assert played.port.frames == frames[:4]
    assert played.driver.info()["replay ended"] == "it ends in the middle of a frame, or is empty"
    path.write_bytes(b"this is no file of frames at all")
    played = play(PcapOptions(str(path)))
    assert played.dispatch.run_until(lambda: not played.driver.up, limit=1)
    assert str(played.driver.info()["replay ended"]).startswith("not a pcap file")


def test_what_is_transmitted_is_recorded(tmp_path: Path) -> None:
    dispatch = VirtualDispatch(1)
    driver = PcapDriver(dispatch, PcapOptions(write=str(tmp_path / "f")), US)
    port = RecordingPort()
    driver.start(port)
    frames = [frame(THEM, US, random.Random(size).randbytes(size)) for size in (0, 1, 100, 1500)]
    driver.transmit([bytearray(one) for one in frames[:2]])
    dispatch.run_for(1.0)
    driver.transmit([*frames[2:], b"short", bytes(1515)])
    driver.detach()
    found = read_records((tmp_path / "f").read_bytes())
    assert [(one.frame, one.direction) for one in found] == [(one, OUT) for one in frames]
    assert found[2].time - found[0].time == SECOND
    assert port.drops == {"too_short": 1, "too_long": 1}
    assert os.stat(tmp_path / "f").st_mode & 0o777 == 0o600


def test_a_file_ends_at_its_limit(tmp_path: Path) -> None:
    dispatch = VirtualDispatch(1)
    driver = PcapDriver(dispatch, PcapOptions(write=str(tmp_path / "f"), limit=Size(2000)), US)
    port = RecordingPort()
    driver.start(port)
    frames = [frame(THEM, US, bytes(300)) for _ in range(10)]
    driver.transmit(list(frames))
    driver.transmit(list(frames))
    assert "reached its limit" in str(driver.info()["recording"])
    driver.detach()
    assert os.stat(tmp_path / "f").st_size <= 2000
    assert len(read_records((tmp_path / "f").read_bytes())) == 5
    assert port.drops == {"tx_not_recorded": 10}


@pytest.mark.host
async def test_a_full_disk_ends_the_recording_and_nothing_else() -> None:
    async with open_dispatch() as dispatch:
        driver = PcapDriver(dispatch, PcapOptions(write="/dev/full"), US)
        driver.start(RecordingPort())
        driver.transmit([frame(THEM, US, bytes(100))])
        with trio.fail_after(5):
            while "ended" not in str(driver.info()["recording"]):  # noqa: ASYNC110  # what is awaited is a worker thread
                await trio.sleep(0.01)
        assert "No space left" in str(driver.info()["recording"])
        driver.transmit([frame(THEM, US, bytes(100))])
        driver.detach()


@pytest.mark.host
async def test_a_file_that_is_closed_with_a_write_handed_out_is_whole_and_touches_no_other(tmp_path: Path) -> None:
    """The worker has the blocks and has not begun; the next file that is opened gets the number of the one that was closed."""
    one = frame(THEM, US, bytes(1400))
    count = recorder_module.FLUSH_SIZE // len(one) + 5
    async with open_dispatch() as dispatch:
        for number in range(20):
            recorder = recorder_module.Recorder(dispatch, str(tmp_path / f"{number}"), "en0")
            recorder.put([one] * count, OUT)
            recorder.put([one], IN)
            recorder.close()
            other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
            await trio.sleep(0.002)
            assert os.fstat(other).st_size == 0
            os.close(other)
            found = read_records((tmp_path / f"{number}").read_bytes())
            assert [record.direction for record in found] == [OUT] * count + [IN]


def test_what_a_slow_disk_cannot_take_is_told_by_the_next_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "WAITING_MAX", 1000)
    dispatch = VirtualDispatch(1)
    recorder = recorder_module.Recorder(dispatch, str(tmp_path / "f"), "en0")
    one = frame(THEM, US, bytes(900))
    recorder.put([one], OUT)
    recorder.put([one] * 3, OUT, drops=2)
    dispatch.run_for(1.0)
    recorder.put([one], IN)
    recorder.close(2, "dropped: tx_queue_full 2")
    reader = PcapngReader()
    assert [found.drops for found in reader.feed((tmp_path / "f").read_bytes())] == [0, 5]
    assert attrs.astuple(reader.statistics[0]) == (0, 5, 5, "dropped: tx_queue_full 2")


@pytest.mark.host
@pytest.mark.parametrize("wrapped", [False, True])
async def test_two_pipes_are_a_cable(tmp_path: Path, wrapped: bool) -> None:
    for name in ("ab", "ba"):
        os.mkfifo(tmp_path / name)
    async with open_dispatch() as dispatch:
        a: Driver = PcapDriver(dispatch, PcapOptions(str(tmp_path / "ba"), str(tmp_path / "ab")), US)
        b: Driver = PcapDriver(dispatch, PcapOptions(str(tmp_path / "ab"), str(tmp_path / "ba")), THEM)
        if wrapped:
            outer = [FaultDriver(dispatch, FaultOptions()) for _ in range(2)]
            for wrapper, driver in zip(outer, (a, b), strict=True):
                wrapper.around(driver)
            a, b = outer
        await check_driver(Pair(a, b))
        assert dispatch.statistics().descriptors == 0


def test_refusals_are_one_sentence(tmp_path: Path) -> None:
    dispatch = VirtualDispatch(1)
    for options, code in (
        (PcapOptions(), errno.EINVAL),
        (PcapOptions(str(tmp_path / "none")), errno.ENOENT),
        (PcapOptions(write=str(tmp_path / "no" / "folder")), errno.ENOENT),
        (PcapOptions(str(tmp_path / "none"), mac="x"), errno.EINVAL),
    ):
        with pytest.raises(ModuleError) as raised:
            PcapDriver(dispatch, options, US)
        assert raised.value.errno == code
        assert "\n" not in str(raised.value)


def test_the_wrapper_records_both_ways_with_drops(tmp_path: Path) -> None:
    dispatch = VirtualDispatch(1)
    hub = Hub(dispatch)
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    loaded = stack.load(hub.module(), "mac=02:00:00:00:00:01", wrap=[("pcap", f"file={tmp_path}/f,snap=40"), ("fault", "oneway=rx")])
    other = hub.port("x", THEM)
    other.start(RecordingPort())
    other.accept(None)
    interface = loaded.interface
    assert interface is not None
    stack.register_ethertype(TYPE, lambda interface, frames: None)
    request, answer, lost = frame(US, THEM, b"request" * 20), frame(THEM, US, b"answer"), frame(THEM, US, bytes(1501))
    other.transmit([request])
    dispatch.run_for(0.1)
    (wrapper, _) = loaded.wrappers
    assert isinstance(wrapper, PcapWrapper)
    wrapper.transmit([lost])
    wrapper.transmit([answer])
    assert "recording" in interface.statistics.info
    stack.unload(loaded)
    reader = PcapngReader()
    found = list(reader.feed((tmp_path / "f").read_bytes()))
    assert reader.names == ("en0",)
    assert [(one.frame, one.length, one.direction, one.drops) for one in found] == [
        (request[:40], len(request), IN, 0),
        (lost[:40], len(lost), OUT, 0),
        (answer, len(answer), OUT, 1),
    ]
    assert reader.statistics[0].comment == "dropped: too_long 1"


def test_a_wrapper_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    dispatch = VirtualDispatch(1)
    hub = Hub(dispatch)
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    with pytest.raises(ModuleError, match="cannot write"):
        stack.load(hub.module(), "mac=02:00:00:00:00:01", wrap=[("fault", ""), ("pcap", f"file={tmp_path}/no/f")])
    assert hub.ports == ()
    assert PcapWrapOptions("f").snap == pcap.SNAP_MAX
    assert isinstance(read_records(pcap.pack_header() + pcap.pack_record(0, b"x"))[0], Record)


@pytest.mark.priv
def test_a_start_that_fails_leaves_no_file_and_none_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_bytes(b"kept")
    words = ["-d", "lo", "--wrap", "pcap", f"file={new}", "-d", "pcap", f"write={old}", "-d", "packet", "ifname=none0"]
    assert main(["--run-dir", str(tmp_path / "run"), *words]) == 1
    assert "there is no network interface none0" in capsys.readouterr().err
    assert not new.exists()
    assert old.read_bytes() == b"kept"


def test_what_was_there_is_gone_with_the_first_write(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 4096)
    dispatch = VirtualDispatch(1)
    recorder = recorder_module.Recorder(dispatch, str(path), "en0")
    dispatch.run_for(1)
    recorder.close()
    written = path.read_bytes()
    assert written[:4] == bytes.fromhex("0a0d0d0a")
    assert b"x" * 8 not in written
