"""Many seeds of `qnetpy.testing.scenario`, in several processes: says what failed and how long it took.

python -m qnetpy.testing.campaign 0-9999 --jobs 2
chrt -i 0 nice python -m qnetpy.testing.campaign 0-9999     # when the machine has something else to do
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence

import attrs

from qnetpy.testing.scenario import ScenarioFailed, run

PART = 40
"""Seeds that a process runs before it asks for more."""
COLLECT_EVERY = 8


@attrs.define
class Report:
    """Of a part, or of all."""

    seeds: int = 0
    failed: list[int] = attrs.Factory(list)
    results: Counter[str] = attrs.Factory(Counter)
    frames: int = 0
    virtual: float = 0.0
    """Seconds that passed in the worlds."""

    def add(self, other: Report) -> None:
        self.seeds += other.seeds
        self.failed += other.failed
        self.results += other.results
        self.frames += other.frames
        self.virtual += other.virtual


def part(seeds: Sequence[int]) -> Report:
    """Run *seeds* one after the other; each that fails is told at once."""
    report = Report()
    # Worlds are full of cycles and end all at once: looking for them meanwhile costs a tenth of the time.
    gc.disable()
    for seed in seeds:
        report.seeds += 1
        if report.seeds % COLLECT_EVERY == 0:
            gc.collect()
        try:
            outcome = run(seed)
        except ScenarioFailed as error:
            report.failed.append(seed)
            print(error, flush=True)
        else:
            report.results += outcome.results
            report.frames += outcome.frames
            report.virtual += outcome.seconds
    gc.enable()
    return report


def campaign(first: int, last: int, jobs: int) -> Report:
    """Run a range of seeds in that many processes; how it goes is told on standard error."""
    # Its processes end with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    began = time.monotonic()
    parts = [range(start, min(start + PART, last + 1)) for start in range(first, last + 1, PART)]
    whole = Report()
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for report in pool.imap_unordered(part, parts):
            whole.add(report)
            told = f"{whole.seeds} of {last + 1 - first} seeds in {time.monotonic() - began:.0f} s, {len(whole.failed)} failed"
            print(told, file=sys.stderr, flush=True)
    return whole


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m qnetpy.testing.campaign", description="Run a range of simulated scenarios.")
    parser.add_argument("seeds", help="FIRST-LAST")
    parser.add_argument("--jobs", type=int, default=1, help="processes among which they are divided")
    arguments = parser.parse_args(argv)
    first, _, last = arguments.seeds.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) and arguments.jobs > 0):
        parser.error(f"{arguments.seeds!r}: a range such as 0-999, and at least one process, are needed")
    began = time.monotonic()
    report = campaign(int(first), int(last), arguments.jobs)
    print(f"seeds {first} to {last}: {time.monotonic() - began:.0f} s, {report.virtual / 3600:.1f} virtual hours, {report.frames} frames")
    print(f"results: {dict(sorted(report.results.items()))}")
    print(f"failed: {sorted(report.failed) or 'none'}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
