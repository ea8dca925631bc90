"""`qnet bench --only files`: the columns of work with another node's files, ours beside sshfs and 9P, in turn in one run.

Every run has trees and files of its own, which neither kernel nor daemon of the client has seen, and a fresh mount for each peer; all
see the same tree where it is only read, so what the far node's caches hold is the same. The far node's folder is in its memory (tmpfs).
The near daemon, the peer's client and the program are on one core, the far daemon, sshd and the 9P server on another.

`local` is the floor: the same program on the same core, but at home on the far node, in that folder, with nothing between.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import ninep
import peers
from run import CLIENT, NONE, SERVER, Bench, Figures, Result

WORK = str(Path(__file__).with_name("filework.py"))
TREE = str(Path(__file__).parent.parent)
FOLDER = "/tmp/bench"
MOUNT = "/tmp/bench-mount"
SIZE = 256 << 20
RANDOM_SIZE = 64 << 20
FAR = 5.0
"""Milliseconds of delay each way from which on the targets of a slow network count."""
SIDES = ("ours", "sshfs", "9P", "local")
FLOOR = "local"


@attrs.frozen
class Column:
    """One line of the table. Targets are ratios to sshfs: `>=` for rates, `<=` for times."""

    name: str
    what: str
    """`{count}` is how much of it is done."""
    verb: str
    field: str
    unit: str
    at_9000: float | None = None
    at_1500: float | None = None
    over_udp: float | None = None
    """At 1500, over the UDP bearer."""

    def target(self, bench: Bench) -> float | None:
        if bench.delay_ms >= FAR:
            return None if self.unit == "MB/s" else 0.35
        if bench.mtu >= 9000:
            return self.at_9000
        return self.at_1500 if bench.bearer == "ethernet" or self.over_udp is None else self.over_udp


def _column(name: str, what: str, verb: str, field: str, unit: str, target: float | None = None) -> Column:
    return Column(name, what, verb, field, unit, target, target)


COLUMNS = (
    Column("write", "write 256 MiB", "write", "rate", "MB/s", 1.0, 0.4, 0.7),
    Column("read", "read 256 MiB", "read", "rate", "MB/s", 1.6, 0.7, 1.0),
    _column("random", "random read of 4 KiB", "random", "p50", "us", 0.8),
    _column("stat", "stat, first time", "stat", "p50", "us", 0.8),
    _column("small", "open, read, close of 1 KiB", "small", "p50", "us", 0.5),
    _column("find-cold", "find over {count:,} files", "find", "find_cold", "s", 1.0),
    _column("find-warm", "find again", "find", "find_warm", "s", 0.3),
    _column("ls-cold", "ls -lR over {count:,} files", "ls", "ls_cold", "s", 1.0),
    _column("ls-warm", "ls -lR again", "ls", "ls_warm", "s", 0.3),
    _column("copy", "cp -r of {count:,} files from there", "copy", "copy", "s"),
    _column("grep", "grep -r over them", "copy", "grep", "s"),
    _column("create", "create {count:,} files of 1 KiB", "create", "create", "s", 0.6),
    _column("delete", "delete {count:,} files", "create", "delete", "s", 0.6),
    _column("tar", "tar x of a source tree", "unpack", "tar", "s"),
    _column("compileall", "python -m compileall", "unpack", "compileall", "s"),
    _column("rm", "rm -r of the tree", "unpack", "rm", "s"),
    _column("clone", "git clone", "git", "clone", "s"),
    _column("status-first", "git status after it", "git", "status_first", "s"),
    _column("status", "git status again", "git", "status", "s", 0.3),
    _column("diff", "git diff", "git", "diff", "s"),
    _column("sqlite", "sqlite transaction", "sqlite", "sqlite", "ms"),
)
BULK = frozenset(("write", "read"))
"""Verbs that have no place on a slow network here: congestion control would be measured, not files."""
READ_ONLY = frozenset(("random", "stat", "small", "find", "ls", "copy"))
"""Verbs whose sides see one tree."""


def amount(verb: str, far: bool) -> int:
    """How much of its work a verb does; less where each round trip takes 20 ms."""
    near_and_far = {
        "write": (SIZE, SIZE),
        "read": (SIZE, SIZE),
        "random": (1000, 100),
        "stat": (2000, 300),
        "small": (2000, 300),
        "find": (10_000, 2_000),
        "ls": (10_000, 2_000),
        "copy": (2000, 300),
        "create": (1000, 100),
        "sqlite": (100, 20),
    }
    return near_and_far.get(verb, (0, 0))[far]


def chosen(names: Sequence[str]) -> list[Column]:
    """Columns by their names; all if none are named. A name may be that of a verb, too: `find` is both."""
    if not names:
        return list(COLUMNS)
    unknown = [name for name in names if not any(name in (column.name, column.verb) for column in COLUMNS)]
    if unknown:
        raise SystemExit(f"bench: no column {', '.join(unknown)}; there are: {', '.join(column.name for column in COLUMNS)}")
    return [column for column in COLUMNS if column.name in names or column.verb in names]


def floor_note(peer: str, medians: Mapping[str, float | None]) -> str:
    """What the row of *peer* says of the floor: there the peers' ratios to it, in sshfs's row its own to sshfs, which nobody can better."""
    floor, sshfs = medians.get(FLOOR), medians.get("sshfs")
    if not floor:
        return ""
    if peer == FLOOR:
        return ", ".join(f"{side} {value / floor:.2f}" for side, value in medians.items() if side not in ("ours", FLOOR) and value)
    return f"at best {floor / sshfs:.2f}" if peer == "sshfs" and sshfs else ""


class Files:
    """The measurements on one cluster."""

    def __init__(self, bench: Bench, columns: Sequence[Column], sides: Sequence[str]) -> None:
        self.bench = bench
        self.far = bench.delay_ms >= FAR
        self.columns = [column for column in columns if not (self.far and column.verb in BULK)]
        self.sides = sides

    def verbs(self) -> list[str]:
        return list(dict.fromkeys(column.verb for column in self.columns))

    def work(self, node: str, *words: str) -> str:
        command = [sys.executable, WORK, "--cpu", str(self.bench.cpus[node]), *words]
        return self.bench.cluster.run(node, *command, seconds=300).stdout

    def prepare(self, verb: str, number: int) -> None:
        """What a verb finds on the server, and the client's sources."""
        if verb == "random":
            self.work(SERVER, "make-file", f"{FOLDER}/random{number}", str(RANDOM_SIZE))
        elif verb in READ_ONLY:
            self.work(SERVER, "make-tree", f"{FOLDER}/{verb}{number}", str(amount(verb, self.far) + 100 * (verb in ("stat", "small"))))
        elif verb in ("unpack", "git") and number == 0:
            for node in {self.home(side) for side in self.sides}:
                self.work(node, "make-source", TREE)

    def home(self, side: str) -> str:
        """The node on which the program runs."""
        return SERVER if side == FLOOR else CLIENT

    @contextlib.contextmanager
    def mounted(self, side: str) -> Iterator[str]:
        """Where the program finds the server's folder."""
        bench = self.bench
        if side == "ours":
            yield f"/net/{SERVER}{FOLDER}"
        elif side == FLOOR:
            yield FOLDER
        elif side == "sshfs":
            with peers.sshfs(bench.cluster, CLIENT, bench.address(SERVER), FOLDER, MOUNT, bench.cpus[CLIENT], peers.BEST):
                yield MOUNT
        else:
            with ninep.mounted(bench.cluster, CLIENT, bench.address(SERVER), MOUNT, bench.cpus[CLIENT]):
                yield MOUNT

    def once(self, verb: str, number: int, side: str) -> tuple[Figures, dict[str, float]]:
        bench = self.bench
        name = f"{verb}{number}" if verb in READ_ONLY else f"{'write' if verb == 'read' else verb}{number}-{side}"
        with self.mounted(side) as root:
            command = [sys.executable, WORK, "--cpu", str(bench.cpus[CLIENT]), verb, f"{root}/{name}", str(amount(verb, self.far))]
            before = bench.usage()
            figures: Figures = json.loads(bench.cluster.run(self.home(side), *command, seconds=300).stdout)
            return figures, bench.used_since(before)

    def measure(self) -> None:
        bench = self.bench
        bench.cluster.run(SERVER, "sh", "-c", f"mkdir -p {FOLDER}; mount -t tmpfs -o mode=1777 none {FOLDER}")
        bench.place("split")
        with contextlib.ExitStack() as servers:
            if "sshfs" in self.sides:
                servers.enter_context(peers.sshd(bench.cluster, CLIENT, SERVER, bench.address(SERVER)))
                pin = f"for p in $(pgrep -x sshd); do taskset -a -p -c {bench.cpus[SERVER]} $p >/dev/null; done"
                bench.cluster.run(SERVER, "sh", "-c", pin)
            if "9P" in self.sides:
                servers.enter_context(ninep.server(bench.cluster, SERVER, FOLDER, bench.cpus[SERVER]))
            for verb in self.verbs():
                self.measure_verb(verb)

    def measure_verb(self, verb: str) -> None:
        if verb == "read" and "write" not in self.verbs():
            for number in range(self.bench.runs):
                for side in self.sides:
                    self.work(SERVER, "make-file", f"{FOLDER}/write{number}-{side}", str(SIZE))
        found: dict[str, list[Figures]] = {side: [] for side in self.sides}
        used = dict.fromkeys(self.sides, NONE)
        failed: dict[str, str] = {}
        for number in range(self.bench.runs):
            self.prepare(verb, number)
            for side in self.sides:
                if side in failed:
                    continue
                try:
                    figures, used[side] = self.once(verb, number, side)
                except AssertionError as error:
                    if side != "9P":
                        raise
                    # It has no locks, links or exact times, and some programs need them.
                    failed[side] = str(error).strip().splitlines()[-1][-120:]
                else:
                    found[side].append(figures)
        for column in self.columns:
            if column.verb == verb:
                self.report(column, found, used, failed)

    def report(self, column: Column, found: dict[str, list[Figures]], used: dict[str, dict[str, float]], failed: dict[str, str]) -> None:
        def median(side: str, field: str) -> float | None:
            values = [float(figures[field]) for figures in found.get(side, ()) if field in figures]  # type: ignore[literal-required]
            return statistics.median(values) if values else None

        ours = median("ours", column.field)
        assert ours is not None
        tail = column.field == "p50"
        for peer in [side for side in self.sides if side != "ours"] or [""]:
            theirs = median(peer, column.field)
            target = column.target(self.bench) if peer == "sshfs" else None
            sign = ">=" if column.unit == "MB/s" else "<="
            met = None
            if target is not None and theirs is not None:
                met = ours >= target * theirs if sign == ">=" else ours <= target * theirs
            self.bench.here(
                Result(
                    column.what.format(count=amount(column.verb, self.far)),
                    column.unit,
                    ours,
                    peer,
                    theirs,
                    ours_p99=median("ours", "p99") if tail else None,
                    theirs_p99=median(peer, "p99") if tail else None,
                    target="" if target is None else f"{sign} {target:g}",
                    met=met,
                    note=f"fails: {failed[peer]}"
                    if peer in failed
                    else floor_note(peer, {side: median(side, column.field) for side in self.sides}),
                    ours_usage=used["ours"],
                    theirs_usage=used.get(peer, NONE),
                )
            )


def measure(bench: Bench, names: Sequence[str], without: Sequence[str]) -> None:
    """Measure the columns called *names* beside the peers that are there, and at home, but for those in *without*."""
    sides = [side for side in SIDES if side not in without]
    if "9P" in sides and (lacking := ninep.missing()):
        print(f"qnet bench: without 9P, which needs {lacking}", file=sys.stderr)
        sides.remove("9P")
    Files(bench, chosen(names), sides).measure()
