"""Settings of the C library's allocator, seen from outside."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
if sys.argv[1] == "kept":
    from resmgr.heap import keep_freed_memory
    assert keep_freed_memory()
import resource
def burst():
    return [bytes(9000) for _ in range(400)]
for _ in range(5):
    burst()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    burst()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout)


def test_bursts_of_packets_take_no_page_faults() -> None:
    assert faults("kept") < faults("left") / 10
