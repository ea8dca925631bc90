"""Waiting for what a test waits for, and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable

POLL = 0.002
LONG = 30.0
"""Seconds. What is waited for takes milliseconds; a loaded machine adds to it."""


def until(goal: Callable[[], bool], seconds: float = LONG) -> None:
    """Look until *goal* holds. AssertionError if it does not within *seconds*."""
    end = time.monotonic() + seconds
    while not goal():
        assert time.monotonic() < end, f"not seen within {seconds:g} s"
        time.sleep(POLL)
