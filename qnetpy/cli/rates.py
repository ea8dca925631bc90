"""Rates of interfaces from two readings of their counters, and a view of them that goes on: `netstat -w`, `nicinfo --watch`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import attrs

from qnetpy.cli import iopkt
from qnetpy.cli.output import CommandError

COUNTERS = ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes")


@attrs.frozen
class Rate:
    """What an interface did per second. `drops` by reason, those that happened."""

    name: str
    rx_frames: float
    rx_bytes: float
    tx_frames: float
    tx_bytes: float
    drops: dict[str, float]


def rates(before: dict[str, object], after: dict[str, object], seconds: float) -> list[Rate]:
    """Of the interfaces that *after* has; one that is new, or that began anew, counts from zero."""
    earlier = {(one.get("name"), one.get("index")): one for one in iopkt.listed(before.get("interfaces"))}
    found = []
    for one in iopkt.listed(after.get("interfaces")):
        old = earlier.get((one.get("name"), one.get("index")), {})
        rx_frames, rx_bytes, tx_frames, tx_bytes = (
            (iopkt.number(one.get(name)) - iopkt.number(old.get(name))) / seconds for name in COUNTERS
        )
        lost = iopkt.numbers(old.get("drops"))
        drops = {
            reason: (count - lost.get(reason, 0)) / seconds
            for reason, count in iopkt.numbers(one.get("drops")).items()
            if count != lost.get(reason, 0)
        }
        found.append(Rate(str(one.get("name")), rx_frames, rx_bytes, tx_frames, tx_bytes, drops))
    return found


def readings(ask: Callable[[], dict[str, object]], interval: float, count: int) -> Iterator[tuple[dict[str, object], list[Rate]]]:
    """The facts and the rates every *interval* seconds, *count* times, or for ever if that is 0."""
    if not 0.1 <= interval <= 3600:
        raise CommandError(f"an interval of {interval:g} s is not between 0.1 and 3600", status=2)
    before, then = ask(), time.monotonic()
    shown = 0
    while count == 0 or shown < count:
        time.sleep(interval)
        after, now = ask(), time.monotonic()
        yield after, rates(before, after, now - then)
        before, then = after, now
        shown += 1
