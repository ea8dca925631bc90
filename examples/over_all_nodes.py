"""Maps a function over all nodes that are up: which numbers below a limit are prime, counted in parts.

    python examples/over_all_nodes.py 200000

Each node runs one worker with this machine's files (`image="near"`), so neither this program nor qnetpy is installed there. The nodes must
be let read them ([[access.exports]] here), and let you start programs ([access.spawn] there). Workers import this file as `multiprocessing`
does, so what it does when it is run stands behind `if __name__ == "__main__"`.
"""

from __future__ import annotations

import os
import sys
from collections import Counter

from qnetpy.processes.executor import NodeExecutor

PART = 10_000


def primes(first: int) -> tuple[str, int]:
    """Where it was counted, and how many of the PART numbers from *first* on are prime."""
    count = sum(1 for n in range(max(first, 2), first + PART) if all(n % d for d in range(2, int(n**0.5) + 1)))
    return os.uname().nodename, count


def main() -> None:
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else 10 * PART
    parts: Counter[str] = Counter()
    total = 0
    with NodeExecutor(image="near", retries=1) as executor:
        for node, count in executor.map(primes, range(0, limit, PART)):
            parts[node] += 1
            total += count
    print(f"{total} primes; parts: {', '.join(f'{node} {parts[node]}' for node in sorted(parts))}")


if __name__ == "__main__":
    main()
