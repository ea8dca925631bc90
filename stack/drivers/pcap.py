"""A file in the place of a cable: `io-pkt -d pcap read=trace.pcapng,mac=02:00:00:00:00:01,write=answers.pcapng`.

The frames of `read` (pcap or pcapng, a file or a pipe) arrive as they did when they were recorded, `speed` times as fast, or with `fast`
as quickly as they are taken; `loop` times, 0 without end. The replay begins when somebody wants an ethertype. Like a network card the
driver delivers what is for `mac`, broadcast and multicast, all when it is promiscuous. What is transmitted goes to `write`, a pcapng file
or a pipe. The link is down when the replay is over. A pipe's writer sets the pace; two pipes make a cable between two programs.

    rx_not_ethernet     of another link type            rx_cut      recorded in part only
    tx_not_recorded     there is no file to write, or it has ended
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

import attrs

from resmgr.dispatch import Dispatch, Timer
from stack.core.driver import BATCH_MAX, Port
from stack.core.errors import ModuleError
from stack.core.fitting import fitting, is_wanted
from stack.core.module import Context, Kind, Module
from stack.core.names import station_address
from stack.core.options import Size
from stack.core.silent import SILENT
from stack.core.statistics import Drop
from stack.drivers.pcap_file.recorder import Recorder
from stack.drivers.pcap_file.replay import END_OF_FILE, Replay
from stack.frame import Frame
from stack.wire.ethernet import HEADER_SIZE, MTU_DEFAULT, MTU_MIN, made_station
from stack.wire.pcap import LINKTYPE_ETHERNET, OUT, SECOND, Record

EARLY = 100e-6
"""Seconds: frames that are due so soon go in one batch."""


@attrs.frozen
class PcapOptions:
    """Options of `-d pcap`."""

    read: str | None = None
    """A file or pipe to replay."""
    write: str | None = None
    """A file or pipe that gets what is transmitted."""
    speed: float = attrs.field(default=1.0, validator=attrs.validators.gt(0.0))
    fast: bool = False
    """Without waiting."""
    loop: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    """How often; 0 for ever."""
    limit: Size | None = None
    """Bytes after which `write` ends."""
    mac: str | None = None
    """Ours; one of chance by default."""
    name: str = "pcap0"
    mtu: int = attrs.field(default=MTU_DEFAULT, validator=[attrs.validators.ge(MTU_MIN), attrs.validators.le(65535)])


class PcapDriver:
    """See the head of this file and `stack.core.driver.Driver`."""

    def __init__(self, dispatch: Dispatch, options: PcapOptions, mac: bytes) -> None:
        """*mac*: ours, unless the options say another. ModuleError when a file cannot be opened."""
        if options.read is None and options.write is None:
            raise ModuleError(errno.EINVAL, "pcap: give a file to replay or to record, read=FILE or write=FILE")
        self.mac = mac if options.mac is None else station_address(options.mac, "pcap")
        self.name, self.mtu, self.up = options.name, options.mtu, True
        self._dispatch = dispatch
        self._options = options
        self._port: Port = SILENT
        self._accepted: frozenset[int] | None = frozenset()
        self._others = False
        self._closed = False
        self._timer: Timer | None = None
        self._due = False
        self._rounds = 0
        self._delivered = 0
        self._began: tuple[float, int] | None = None
        """Now, and the time of the first record, when this round began."""
        self._started = False
        self._replay = None if options.read is None else Replay(dispatch, options.read, self._schedule)
        try:
            self._recorder = None if options.write is None else Recorder(dispatch, options.write, options.name, limit=options.limit)
        except BaseException:
            if self._replay is not None:
                self._replay.close()
            raise

    def start(self, port: Port) -> None:
        self._port = port

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        self._accepted = ethertypes
        if self._replay is not None and not self._started and not self._closed and (ethertypes is None or ethertypes):
            self._started = True
            self._replay.start()

    def promiscuous(self, on: bool) -> None:
        self._others = on

    def info(self) -> Mapping[str, str | int]:
        told: dict[str, str | int] = {"driver": "pcap"}
        if self._replay is not None:
            pace = "as they come" if self._replay.live else "without waiting" if self._options.fast else f"speed {self._options.speed:g}"
            told["replay"] = f"{self._options.read}: {self._delivered} frames delivered, {pace}"
            told["replay rounds"] = self._rounds
            if self._replay.ended and not self.up:
                told["replay ended"] = self._replay.ended
        if self._recorder is not None:
            told["recording"] = self._recorder.describe()
        return told

    def detach(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.up = False
        if self._timer is not None:
            self._timer.cancel()
        if self._replay is not None:
            self._replay.close()
        if self._recorder is not None:
            self._recorder.close()

    def transmit(self, frames: list[Frame]) -> None:
        if not self.up:
            self._port.count(Drop.LINK_DOWN, len(frames))
            return
        good = fitting(frames, self.mtu, self._port.count)
        if not good:
            return
        if self._recorder is None or self._recorder.ended:
            self._port.count("tx_not_recorded", len(good))
        else:
            self._recorder.put(good, OUT)

    # Replay

    def _schedule(self) -> None:
        """There may be something to deliver now, or later."""
        if self._closed or self._due:
            return
        self._due = True
        self._dispatch.call_soon(self._deliver)

    def _wait(self) -> bool:
        """Whether the next record is not due yet; then a timer waits for it."""
        assert self._replay is not None
        if self._options.fast or self._replay.live:
            return False
        now, first = self._dispatch.now(), self._replay.records[0].time
        if self._began is None:
            self._began = now, first
        when = self._began[0] + (first - self._began[1]) / SECOND / self._options.speed
        if when <= now + EARLY:
            return False
        if self._timer is None:
            self._timer = self._dispatch.call_at(when, self._timeout)
        return True

    def _timeout(self) -> None:
        self._timer = None
        self._schedule()

    def _deliver(self) -> None:
        self._due = False
        replay = self._replay
        if self._closed or replay is None:
            return
        frames: list[Frame] = []
        looked_at = 0
        while replay.records and looked_at < BATCH_MAX and not self._wait():
            looked_at += 1
            record = replay.records.popleft()
            if self._is_wanted(record):
                frames.append(record.frame)
        if frames:
            self._delivered += len(frames)
            self._port.deliver(frames)
            if self._closed:
                return
        if replay.records:
            if self._timer is None:
                # Not at once: whoever else has something to do in this turn comes first.
                self._timer = self._dispatch.call_at(self._dispatch.now(), self._timeout)
        elif replay.ended:
            self._round_is_over(replay)
        if not self._closed:
            replay.taken()

    def _round_is_over(self, replay: Replay) -> None:
        if not self.up:
            return
        self._rounds += 1
        self._began = None
        if replay.ended == END_OF_FILE and replay.found and not replay.live and self._rounds != self._options.loop:
            replay.rewind()
            return
        self.up = False
        self._port.changed()

    def _is_wanted(self, record: Record) -> bool:
        frame = record.frame
        if record.linktype != LINKTYPE_ETHERNET:
            self._port.count("rx_not_ethernet")
            return False
        if len(frame) < record.length:
            self._port.count("rx_cut")
            return False
        if len(frame) < HEADER_SIZE:
            self._port.count(Drop.TOO_SHORT)
            return False
        return is_wanted(frame, self.mac, self._others, self._accepted)


def _attach(context: Context, options: PcapOptions) -> PcapDriver:
    return PcapDriver(context.dispatch, options, made_station(context.random(6)))


MODULE = Module("pcap", Kind.DRIVER, PcapOptions, _attach)
