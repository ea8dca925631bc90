"""Coverage-guided fuzzing with atheris: `make fuzz SECONDS=N`, or `run.py SECONDS [TARGET...]`. docs/howto/fuzz.md.

Each target gets its part of the time, in a process of its own (a crash of the interpreter is a finding like any other). What covers new
code goes to .fuzz/TARGET, beside the corpus that is kept in tests/fuzz/corpus/TARGET; a finding is written to .fuzz/found/TARGET. Source
is run, also where it is compiled: only there it is seen what an input covers.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
WORK = HERE.parent.parent / ".fuzz"
LENGTH_MAX = 4096


def fuzz_one(name: str, seconds: int) -> None:
    """In a process of its own: libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["resmgr", "stack", "qnetpy"]):
        from qnetpy.testing.fuzz.targets import run

    work, found = WORK / name, WORK / "found" / name
    work.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    corpus = HERE / "corpus" / name
    flags = [
        f"-max_total_time={seconds}",
        f"-max_len={LENGTH_MAX}",
        f"-artifact_prefix={found}/",
        "-timeout=20",
        "-rss_limit_mb=2048",
    ]
    atheris.Setup([sys.argv[0], *flags, "-print_final_stats=1", str(work), str(corpus)], lambda data: run(name, data))
    atheris.Fuzz()


def main(words: list[str]) -> int:
    from qnetpy.testing.fuzz.targets import TARGETS

    seconds = int(words[0])
    names = words[1:] or list(TARGETS)
    failed = []
    for name in names:
        each = max(2, seconds // len(names))
        command = [sys.executable, __file__, "--one", name, str(each)]
        source = {**os.environ, "QNETPY_COMPILED": "off"}
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", env=source)
        stats = dict(line[6:].split(": ", 1) for line in result.stderr.splitlines() if line.startswith("stat::"))
        covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", result.stderr)
        edges, features, kept = covered[-1] if covered else ("?", "?", "?")
        count = stats.get("number_of_executed_units", "?").strip()
        print(f"{name}: {count} inputs in {each} s; {edges} edges, {features} features, {kept} inputs kept", flush=True)
        if result.returncode:
            failed.append(name)
            print(f"FOUND by {name}:\n{result.stdout[-3000:]}{result.stderr[-1500:]}\n", flush=True)
    print(f"findings: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        fuzz_one(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(main(sys.argv[1:]))
