"""Programs that people run on file systems: each file of `tools` is a shell script that runs one in an empty directory.

Its first lines are comments: what it does; `needs:` commands without which it is left out; `source:` a tree of that name that somebody
built and that is told with --source. The script finds this directory as $SUITES, and the tree as a variable of its name in capitals.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from tests.suites.places import Place

HERE = Path(__file__).parent
RUN = """set -eu
ulimit -c 0
mkdir "$1"
cd "$1"
. "$2"
"""


@attrs.frozen
class Tool:
    name: str
    path: Path
    what: str
    needs: tuple[str, ...]
    source: str

    def missing(self, sources: Mapping[str, Path]) -> str:
        """What it lacks here; empty when it can run."""
        lacking = [command for command in self.needs if shutil.which(command) is None]
        if self.source and self.source not in sources:
            lacking.append(f"--source {self.source}=DIRECTORY")
        return ", ".join(lacking)


def tools() -> dict[str, Tool]:
    return {path.stem: _tool(path) for path in sorted((HERE / "tools").glob("*.sh"))}


def _tool(path: Path) -> Tool:
    said = {"needs": "", "source": ""}
    what = ""
    for line in path.read_text().splitlines():
        if not line.startswith("# "):
            break
        key, colon, rest = line[2:].partition(": ")
        if colon and key in said:
            said[key] = rest
        else:
            what = f"{what} {line[2:]}".strip()
    return Tool(path.stem, path, what, tuple(said["needs"].split()), said["source"])


def run(place: Place, names: Sequence[str], sources: Mapping[str, Path]) -> int:
    """Run those called *names*, or all, one after another; how many failed."""
    known = tools()
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no tool {', '.join(unknown)}; there are: {', '.join(known)}")
    settings = [f"{name.upper()}={path}" for name, path in {**sources, "suites": HERE}.items()]
    failed = 0
    for name in names or known:
        if lacking := known[name].missing(sources):
            print(f"{name:12} left out: lacks {lacking}", flush=True)
            continue
        began = time.monotonic()
        done = place.run(["env", *settings, "bash", "-c", RUN, "bash", name, str(known[name].path)])
        result = "passed" if done.returncode == 0 else f"FAILED ({done.returncode})"
        print(f"{name:12} {result}, {time.monotonic() - began:.1f} s", flush=True)
        if done.returncode:
            failed += 1
            print("    " + "\n    ".join((done.stdout + done.stderr).strip().splitlines()[-25:]), flush=True)
    return failed
