"""Very many files are walked in bounded memory of both daemons.

    python -m tests.suites.millions [COUNT [WALK ...]]     walks are list, scan, find, find_sizes, seek; default all

The server gets a directory of COUNT entries (a million) and a tree of as many files. Each walk tells its time, and what the daemons have
in memory: before, at most, at its end, and after the kernel gave back what it knew of the mount. Memory that Python keeps for the next
objects counts, so the proof that nothing is left is that the same walk takes no more the second time.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from tests.cluster.daemons import Daemon, Two, two_nodes

PROGRAM = str(Path(__file__).with_name("manyfiles.py"))
FOLDER = "/tmp/many"
SECONDS = 3600.0
WALKS = ("list", "scan", "find", "find_sizes", "find_sizes", "seek")


@attrs.frozen
class Walk:
    """Bytes that a daemon had resident; seconds."""

    name: str
    took: float
    before: dict[str, int]
    most: dict[str, int]
    after: dict[str, int]


class Watch:
    """The most that daemons have resident while it is entered."""

    def __init__(self, daemons: dict[str, Daemon]) -> None:
        self._daemons = daemons
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.most = dict.fromkeys(daemons, 0)

    def _look(self) -> None:
        while not self._over.wait(0.05):
            for node, daemon in self._daemons.items():
                self.most[node] = max(self.most[node], daemon.resident())

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class Millions:
    def __init__(self, two: Two, count: int) -> None:
        self.two = two
        self.count = count
        self.walks: list[Walk] = []

    def python(self, node: str, *words: str) -> str:
        return self.two.cluster.run(node, sys.executable, "-P", PROGRAM, *words, seconds=SECONDS).stdout

    def shell(self, script: str) -> str:
        return self.two.cluster.run("a", "sh", "-c", script, seconds=SECONDS).stdout.strip()

    def make(self) -> None:
        self.python("b", "make", f"{FOLDER}-flat", f"{FOLDER}-tree", str(self.count))

    def forget(self) -> None:
        """Have a's kernel give back what it knows of /net; remounting drops all entries that nobody uses."""
        self.shell("mount -i -o remount,rw,nosuid,nodev /net")
        held = -1
        while held != (held := self.resident()["a"]):
            time.sleep(1)

    def resident(self) -> dict[str, int]:
        return {node: daemon.resident() for node, daemon in self.two.daemons.items()}

    def walk(self, name: str, walk: Callable[[], None]) -> Walk:
        before = self.resident()
        began = time.monotonic()
        with Watch(self.two.daemons) as watch:
            walk()
            took = time.monotonic() - began
        self.forget()
        self.walks.append(Walk(name, took, before, watch.most, self.resident()))
        return self.walks[-1]

    def expect(self, said: str, what: str) -> None:
        assert said.split()[0] == str(self.count), f"{what} saw {said}, {self.count} are there"

    def list(self) -> None:
        self.expect(self.shell(f"ls -f /net/b{FOLDER}-flat | grep -c entry"), "ls -f")

    def scan(self) -> None:
        self.expect(self.python("a", "scan", f"/net/b{FOLDER}-flat"), "os.scandir")

    def find(self) -> None:
        self.expect(self.shell(f"find /net/b{FOLDER}-tree -type f | wc -l"), "find")

    def find_sizes(self) -> None:
        self.expect(self.shell(f"find /net/b{FOLDER}-tree -size 0 -type f | wc -l"), "find -size")

    def seek(self) -> None:
        """Positions stay good while every tenth entry is removed and as many are made."""
        flat = f"/net/b{FOLDER}-flat"
        with self.two.cluster.running("a", sys.executable, "-P", PROGRAM, "seek", flat) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            self.expect(process.stdout.readline().decode(), "readdir")
            change = f"cd {FOLDER}-flat && ls -f | grep entry-.*3$ | xargs rm && seq {self.count // 10} | sed s/^/new-/ | xargs touch"
            self.two.cluster.run("b", "sh", "-c", change, seconds=SECONDS)
            process.stdin.write(b"\n")
            process.stdin.close()
            gone = process.stdout.read().decode().strip()
            assert process.wait() == 0, process.stderr.read().decode()
            assert int(gone) > 0


def main(words: list[str]) -> int:
    count = int(words[0]) if words else 1_000_000
    with two_nodes() as two:
        millions = Millions(two, count)
        millions.make()
        for name in words[1:] or WALKS:
            walk = millions.walk(name, getattr(millions, name))
            print(f"{walk.name:12} {walk.took:7.1f} s", end="")
            for node, role in (("a", "client"), ("b", "server")):
                mib = [value / 2**20 for value in (walk.before[node], walk.most[node], walk.after[node])]
                each = (walk.most[node] - walk.before[node]) / count
                print(f"; {role} {mib[0]:.0f} MiB before, {mib[1]:.0f} at most ({each:.0f} bytes an entry), {mib[2]:.0f} after", end="")
            print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
