"""Run a file-system suite that somebody built or installed on a mount, and compare what fails with what is known to (docs/posix.md).

    python -m tests.suites pjdfstest DIRECTORY [PATTERN]     a tree of *.t that print TAP, run by sh as root
    python -m tests.suites tools [NAME ...]                  the programs of tests/suites/tools that are installed here
    python -m tests.suites program PATH [ARGUMENT ...]       fsx, fsstress, an LTP test, a shell script: passes when it exits with 0
    python -m tests.suites cases                             our own, on the mount and beside it (tests/posix)

Nothing is fetched and nothing built. The mount is /net/b of a cluster of two machines in namespaces, unless --on says otherwise. Programs
find the working directory on the mount.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from tests.suites import places, tap, toolbox

ON = ("cluster", "sshfs", "process", "here")


def place(args: argparse.Namespace, needed: Sequence[Path]) -> AbstractContextManager[places.Place]:
    if args.on == "sshfs":
        return places.over_sshfs(needed)
    if args.on == "process":
        return places.one_process(args.permissions, args.devices)
    if args.on == "here":
        return places.this_machine()
    return places.two_machines(needed, "nodevices_as_files" if args.devices else "")


def pjdfstest(args: argparse.Namespace) -> int:
    directory = args.path.resolve()
    with place(args, (directory,)) as there:
        results = tap.run(there, directory, args.arguments[0] if args.arguments else "")
    suite = "pjdfstest" + ("+devices" if args.devices else "") + ("" if args.on == "cluster" else f"@{args.on}")
    as_expected = tap.compare(suite, results)
    if args.lines:
        print("\n".join(tap.lines(suite, results.failed)))
    return int(not as_expected)


def program(args: argparse.Namespace) -> int:
    path = args.path.resolve()
    with place(args, (path.parent,)) as there:
        done = there.run([str(path), *args.arguments])
    print(done.stdout + done.stderr)
    return done.returncode


def run_tools(args: argparse.Namespace) -> int:
    names = [str(name) for name in (args.path, *args.arguments) if name is not None]
    sources = {}
    for text in args.source:
        name, _, path = text.partition("=")
        sources[name] = Path(path).resolve()
    with place(args, tuple(sources.values())) as there:
        return toolbox.run(there, names, sources)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.suites", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--on", choices=ON, default="cluster", help="where it runs (default: %(default)s)")
    parser.add_argument("--permissions", choices=("server", "kernel+server"), default="server", help="who checks them (--on process)")
    parser.add_argument("--devices", action="store_true", help="devices and FIFOs are shown as what they are")
    parser.add_argument("--lines", action="store_true", help="print what failed as lines of expected.txt")
    parser.add_argument("--source", action="append", default=[], metavar="NAME=PATH", help="tools: where a suite is that somebody built")
    parser.add_argument("suite", choices=("pjdfstest", "tools", "program", "cases"))
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args(words)
    if args.suite == "cases":
        return subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/posix"], check=False).returncode
    if args.suite == "tools":
        return run_tools(args)
    if args.path is None or not args.path.exists():
        parser.error(f"{args.path or 'PATH'}: not there; build the suite and say where it is")
    return pjdfstest(args) if args.suite == "pjdfstest" else program(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
