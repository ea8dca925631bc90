"""A directory of live statistics of this machine: `cat /net/B/dev/stats/load`, `grep . /net/*/dev/stats/memory/*`.

python examples/stats.py [PATH]
"""

import os
import sys
from collections.abc import Callable

from qnetpy.manage import StaticDirectory, serve


def load() -> bytes:
    return b"%.2f %.2f %.2f\n" % os.getloadavg()


def uptime() -> bytes:
    with open("/proc/uptime", "rb") as file:
        return file.read().split()[0] + b"\n"


def memory(key: bytes) -> Callable[[], bytes]:
    """Kibibytes, of one line of /proc/meminfo."""

    def tell() -> bytes:
        with open("/proc/meminfo", "rb") as file:
            return next(line.split()[1] + b"\n" for line in file if line.startswith(key + b":"))

    return tell


def processors() -> bytes:
    return b"%d\n" % len(os.sched_getaffinity(0))


STATISTICS = StaticDirectory(
    {
        "load": load,
        "uptime": uptime,
        "processors": processors,
        "memory": {"total": memory(b"MemTotal"), "available": memory(b"MemAvailable")},
    }
)

if __name__ == "__main__":
    serve(sys.argv[1] if len(sys.argv) > 1 else "/dev/stats", STATISTICS)
