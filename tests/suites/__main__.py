"""Run a file-system suite that somebody built on a mount, and compare what fails with what is known to (docs/posix.md).

    python -m tests.suites pjdfstest DIRECTORY [PATTERN]     a tree of *.t that print TAP, run by sh as root
    python -m tests.suites program PATH [ARGUMENT ...]       fsx, fsstress, an LTP test, a shell script: passes when it exits with 0
    python -m tests.suites cases                             our own, on the mount and beside it (tests/posix)

Nothing is fetched and nothing built. By default the mount is one process that serves a temporary directory; with --cluster it is /net/b of
a cluster of two machines in namespaces, over the link. Programs find the working directory on the mount.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qnetpy.testing import cluster as kit
from resmgr.testing.fusemount import Served

EXPECTED = Path(__file__).with_name("expected.txt")
TOPOLOGY = """
title = "suites"
users = [{ name = "alice", uid = 4001 }]
[[config.access.users]]
mapping = "identity"
root = "root"
[[config.access.exports]]
path = "/"
verbs = ["read", "write"]
setuid = true
[nodes.a]
[nodes.b]
"""
Run = Callable[[list[str]], subprocess.CompletedProcess[str]]
"""Runs a command with the mount as its working directory."""
SECONDS = 900.0
"""How long one test file, or a program, may take in a cluster."""
_NOT_OK = re.compile(r"^not ok (\d+)(?!.*# TODO)", re.MULTILINE)
_PLAN = re.compile(r"^1\.\.(\d+)", re.MULTILINE)
_RESULT = re.compile(r"^(?:not )?ok \d+", re.MULTILINE)


@contextmanager
def one_process(permissions: str, devices: bool) -> Iterator[Run]:
    """A mount served by one process on this machine."""
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        top.chmod(0o755)
        for name in ("mnt", "served"):
            (top / name).mkdir()
        served = Served(top / "mnt", {"permissions": permissions, "devices_as_files": not devices}, top / "served")

        def run(command: list[str]) -> subprocess.CompletedProcess[str]:
            inside = ["sh", "-c", 'cd "$0" && exec "$@"', str(top / "mnt"), *command]
            return subprocess.run([*served.inside, *inside], capture_output=True, text=True, errors="replace", check=False)

        try:
            yield run
        finally:
            served.close()


@contextmanager
def two_machines(needed: Path | None) -> Iterator[Run]:
    """/net/b/srv on machine a; *needed* is seen on both."""
    with kit.cluster(TOPOLOGY, () if needed is None else (needed,)) as cluster:
        cluster.run("a", "qnet", "nodes", "--wait", "b")
        cluster.run("b", "mkdir", "-p", "/tmp/suite")
        cluster.run("b", "chmod", "755", "/tmp/suite")
        yield lambda command: cluster.run("a", "sh", "-c", 'cd /net/b/tmp/suite && exec "$@"', "sh", *command, check=False, seconds=SECONDS)


def expected(suite: str) -> set[str]:
    """Failures that are known: lines `SUITE NAME NUMBER...` of the file beside; `#` begins a comment."""
    known: set[str] = set()
    for line in EXPECTED.read_text().splitlines():
        words = line.partition("#")[0].split()
        if words and words[0] == suite:
            for word in words[2:]:
                first, _, last = word.partition("-")
                known.update(f"{words[1]} {number}" for number in range(int(first), int(last or first) + 1))
    return known


def tap(run: Run, directory: Path, pattern: str) -> tuple[int, set[str], set[str]]:
    """Run the tests below *directory* whose path matches: checks made, those that failed, files that were run."""
    checks = 0
    failed: set[str] = set()
    ran: set[str] = set()
    for file in sorted(directory.rglob("*.t")):
        name = str(file.relative_to(directory)).removesuffix(".t").removeprefix("tests/")
        if not re.search(pattern, name):
            continue
        ran.add(name)
        done = run(["sh", str(file)])
        results = len(_RESULT.findall(done.stdout))
        plan = _PLAN.search(done.stdout)
        checks += results
        bad = {f"{name} {number}" for number in _NOT_OK.findall(done.stdout)}
        if plan is None or int(plan[1]) != results:
            bad.add(f"{name} 0")
        failed |= bad
        print(f"{name:24} {results:5} checks, {len(bad)} failed", flush=True)
    return checks, failed, ran


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.suites", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--permissions", choices=("server", "kernel+server"), default="server", help="who checks permissions")
    parser.add_argument("--devices", action="store_true", help="devices and FIFOs are shown as what they are")
    parser.add_argument("--cluster", action="store_true", help="on /net of a cluster of two machines")
    parser.add_argument("suite", choices=("pjdfstest", "program", "cases"))
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args(words)
    if args.suite != "cases" and (args.path is None or not args.path.exists()):
        parser.error(f"{args.path or 'PATH'}: not there; build the suite and say where it is")
    if args.suite == "cases":
        return subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/posix"], check=False).returncode
    path = args.path.resolve()
    where = two_machines(path if path.is_dir() else path.parent) if args.cluster else one_process(args.permissions, args.devices)
    with where as run:
        if args.suite == "program":
            done = run([str(path), *args.arguments])
            print(done.stdout + done.stderr)
            return done.returncode
        checks, failed, ran = tap(run, path, args.arguments[0] if args.arguments else "")
    known = {one for one in expected("pjdfstest" + ("+devices" if args.devices else "")) if one.split()[0] in ran}
    for title, found in (("failed, and should not", failed - known), ("should fail, and did not", known - failed)):
        for one in sorted(found):
            print(f"{title}: {one}")
    print(f"{checks} checks in {len(ran)} files, {len(failed)} failed, {len(failed & known)} of them known")
    return int(failed != known)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
