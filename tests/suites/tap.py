"""Trees of test files that print TAP, and the checks of them that are known to fail."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import attrs

from tests.suites.places import Place

EXPECTED = Path(__file__).with_name("expected.txt")
_NOT_OK = re.compile(r"^not ok (\d+)(?!.*# TODO)(.*)", re.MULTILINE)
_PLAN = re.compile(r"^1\.\.(\d+)", re.MULTILINE)
_RESULT = re.compile(r"^(?:not )?ok \d+", re.MULTILINE)


@attrs.define
class Results:
    checks: int = 0
    ran: list[str] = attrs.field(factory=list)
    failed: dict[str, str] = attrs.field(factory=dict)
    """`FILE NUMBER` to what the test said. Number 0: the file did not make all checks that it announced."""


def run(place: Place, directory: Path, pattern: str) -> Results:
    """Run the test files below *directory* whose path matches, as they stand in its `tests`."""
    results = Results()
    for file in sorted(directory.rglob("*.t")):
        name = str(file.relative_to(directory)).removesuffix(".t").removeprefix("tests/")
        if not re.search(pattern, name):
            continue
        results.ran.append(name)
        output = place.run(["sh", str(file)]).stdout
        made = len(_RESULT.findall(output))
        plan = _PLAN.search(output)
        bad = {f"{name} {number}": said.strip(" -") for number, said in _NOT_OK.findall(output)}
        if plan is None or int(plan[1]) != made:
            bad[f"{name} 0"] = f"{made} checks made, announced: {plan[1] if plan else 'none'}"
        results.checks += made
        results.failed |= bad
        print(f"{name:24} {made:5} checks, {len(bad)} failed", flush=True)
    return results


def expected(suite: str, ran: Iterable[str]) -> set[str]:
    """Failures that are known of the files that *ran*: lines `SUITE FILE NUMBER...` of expected.txt; `#` begins a comment."""
    files = set(ran)
    known: set[str] = set()
    for line in EXPECTED.read_text().splitlines():
        words = line.partition("#")[0].split()
        if words and words[0] == suite and words[1] in files:
            for word in words[2:]:
                first, _, last = word.partition("-")
                known.update(f"{words[1]} {number}" for number in range(int(first), int(last or first) + 1))
    return known


def compare(suite: str, results: Results) -> bool:
    """Print what differs from what is known, and say whether nothing does."""
    known = expected(suite, results.ran)
    failed = set(results.failed)
    for one in sorted(failed - known, key=_order):
        print(f"failed, and should not: {one}: {results.failed[one]}")
    for one in sorted(known - failed, key=_order):
        print(f"should fail, and did not: {one}")
    print(f"{results.checks} checks in {len(results.ran)} files, {len(failed)} failed, {len(failed & known)} of them known")
    return failed == known


def lines(suite: str, failed: Iterable[str]) -> list[str]:
    """Failures as lines of expected.txt."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for name, number in sorted(_order(one) for one in failed):
        numbers[name].append(number)
    return [f"{suite} {name} {_ranges(found)}" for name, found in numbers.items()]


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _order(one: str) -> tuple[str, int]:
    name, number = one.split()
    return name, int(number)
