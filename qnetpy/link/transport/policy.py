"""Which paths carry which messages. Acknowledgements, pings and probes go on every path; this is about data only.

    loadbalance   the usable path that delivers soonest; when its window is full, the next, unless waiting for the first is quicker
    preferred     the usable paths of one port as loadbalance has it; without any, all others
    exclusive     the paths of one port and no other, even if they fail
    redundant     every usable path; the first copy counts

A path that does not answer carries data only if its policy finds no other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from qnetpy.link.transport.path import Path
from qnetpy.link.transport.routes import EXCLUSIVE, PREFERRED, THEIRS

SHORTEST: Final = 1e-6
"""Seconds; what a clock does not tell from nothing is taken for this."""


def matches(number: int, path: Path) -> bool:
    """Whether *path* belongs to the port of that route."""
    return (path.peer_port if number & THEIRS else path.port) == number >> 8


def candidates(number: int, paths: Iterable[Path]) -> list[Path]:
    """The paths among which data of that route may choose now, best states first: usable ones, else those that might carry."""
    open_paths = [path for path in paths if path.open]
    policy = number & 3
    if policy == EXCLUSIVE:
        open_paths = [path for path in open_paths if matches(number, path)]
    usable = [path for path in open_paths if not path.suspect]
    if policy == PREFERRED:
        usable = [path for path in usable if matches(number, path)] or usable
    return usable or open_paths


def soonest(paths: list[Path]) -> list[Path]:
    """*paths* by when a packet given to each now would arrive."""
    return paths if len(paths) == 1 else sorted(paths, key=arrival)


def arrival(path: Path) -> float:
    """Seconds until a packet that is given to *path* now arrives, as far as known: what is under way counts as a queue."""
    return path.rtt.smoothed * (0.5 + path.in_flight / path.congestion.window) + (path.rtt.pto() if path.pto_count else 0.0)


def rank(path: Path) -> tuple[bool, bool, float]:
    """Sorts paths: those that carry and answer first, each by when it delivers."""
    return not path.open, path.suspect, arrival(path)


def has_room(path: Path) -> bool:
    """Whether the window of *path* takes another packet."""
    return path.congestion.window - path.in_flight >= path.payload


def worth_it(path: Path, better: list[Path], waiting: int) -> bool:
    """Whether *path* helps with *waiting* bytes although *better* paths, whose windows are full, would take them later.

    Earliest completion first (Lim et al., CoNEXT 2017): not if the better path is through with everything before a packet that leaves
    on this one now arrives. So the end of a transfer does not wait for a slow path.
    """
    best = better[0]
    # A window that was just made smaller turns round sooner than the round trips of before say: what was delivered lately counts as well.
    rate = max(best.congestion.window / max(best.rtt.smoothed, SHORTEST), best.congestion.seen_rate())
    wait = best.rtt.smoothed + waiting / rate
    return wait > path.rtt.smoothed or wait > arrival(path) + path.rtt.variation
