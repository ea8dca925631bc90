"""What CI draws anew each day: more is tried in a month than in a run, and each run says how to have its draw again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


def seed_of_today() -> int:
    """SEED of the environment, or the day's. Printed, so pytest shows it beside what failed."""
    seed = int(os.environ.get("SEED") or time.strftime("%Y%m%d", time.gmtime()))
    print(f"seed {seed}; once more: SEED={seed} in the environment")
    return seed


def side_by_side(jobs: Sequence[Callable[[], None]]) -> None:
    """Run all at once in threads, and to their ends; the first that failed is raised. For what mostly waits, as clusters do."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        for under_way in [pool.submit(job) for job in jobs]:
            under_way.result()
