"""How busy this machine is, for who chooses among servers of several nodes."""

from __future__ import annotations

import os


def load_average() -> int:
    """The load average of one minute per processor, in hundredths."""
    return round(100 * os.getloadavg()[0] / (os.cpu_count() or 1))
