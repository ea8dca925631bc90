"""Records what passes a driver, both ways, into a pcapng file: wrapper `pcap` with `file=trace.pcapng,limit=100M`.

Each frame has its direction and the time of the turn in which it passed; a frame also tells how many were dropped on the interface since
the one before, and the end of the file why, by name. Around a bad link (`fault`) it sees what the stack sees, inside it what is on the
wire.
`stack.drivers.pcap_file.recorder` says what happens when the disk is slow or full.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from resmgr.dispatch import Dispatch
from stack.core.driver import Driver
from stack.core.module import Context, Kind, Module
from stack.core.options import Size
from stack.core.statistics import Counters
from stack.core.wrapper import Around
from stack.drivers.pcap_file.recorder import Recorder
from stack.frame import Frame
from stack.wire.pcap import IN, OUT, SNAP_MAX


@attrs.frozen
class PcapWrapOptions:
    """Options of the wrapper `pcap`."""

    file: str
    """The file, or a pipe: `mkfifo p; wireshark -k -i p`."""
    snap: int = attrs.field(default=SNAP_MAX, validator=[attrs.validators.ge(14), attrs.validators.le(SNAP_MAX)])
    """Bytes kept of each frame."""
    limit: Size | None = None
    """Bytes after which the file ends."""


class PcapWrapper(Around):
    """See the head of this file. The file is made when the wrapper gets its driver, whose name it tells."""

    def __init__(self, dispatch: Dispatch, options: PcapWrapOptions) -> None:
        super().__init__()
        self._dispatch = dispatch
        self._options = options
        self._recorder: Recorder | None = None
        self._drops = Counters()
        self._untold = 0

    def around(self, driver: Driver) -> None:
        super().around(driver)
        self._recorder = Recorder(self._dispatch, self._options.file, driver.name, self._options.snap, self._options.limit)

    def to_wire(self, frames: list[Frame]) -> None:
        self._record(frames, OUT)
        self.send(frames)

    def to_stack(self, frames: list[Frame]) -> None:
        self._record(frames, IN)
        self.hand_up(frames)

    def count(self, reason: str, number: int = 1) -> None:
        self._drops.count(reason, number)
        self._untold += number
        super().count(reason, number)

    def close(self) -> None:
        if self._recorder is not None:
            why = ", ".join(f"{name} {number}" for name, number in self._drops.items())
            self._recorder.close(sum(self._drops.values()), f"dropped: {why}" if why else "")

    def info(self) -> Mapping[str, str | int]:
        recording = {} if self._recorder is None else {"recording": self._recorder.describe()}
        return {**self.inner.info(), **recording}

    def _record(self, frames: list[Frame], direction: int) -> None:
        if self._recorder is not None and frames:
            drops, self._untold = self._untold, 0
            self._recorder.put(frames, direction, drops)


def _attach(context: Context, options: PcapWrapOptions) -> PcapWrapper:
    return PcapWrapper(context.dispatch, options)


MODULE = Module("pcap", Kind.WRAPPER, PcapWrapOptions, _attach)
