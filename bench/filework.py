"""What `qnet bench --only files` has done with files: each verb works below a directory and prints its figures as one JSON object.

    python bench/filework.py [--cpu N] VERB DIRECTORY [COUNT]

A verb of several columns prints the seconds of each by name. What it needs beforehand (a tree, an archive, a repository) `make` has put
there; the tools are the real ones: find, ls, tar, git, python -m compileall, sqlite3.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from probe import say

BLOCK = 1 << 20
PAGE = 4096
FOLDERS, FEW, MANY, SPARE = 100, 10, 1000, 100
"""Directories of a tree, fewer if it has less than MANY files, so that each has some; and files besides those that are counted."""
ARCHIVE = "/tmp/bench-source.tar"
"""On the client: what is unpacked."""
REPOSITORY = "/tmp/bench-source.git"
TRANSACTIONS = 100


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def tool(*words: str, cwd: str | None = None) -> None:
    """Run a program whose output nobody reads."""
    done = subprocess.run(words, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=ENVIRONMENT)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit status {done.returncode}: {done.stderr.decode(errors='replace').strip()[:300]}")


ENVIRONMENT = {
    **os.environ,
    **{f"GIT_{who}_{what}": text for who in ("AUTHOR", "COMMITTER") for what, text in (("NAME", "bench"), ("EMAIL", "bench@example.org"))},
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
}


# ---- one large file


def write(path: str, size: int) -> None:
    """Sequential, until close returns."""
    data = random.Random(1).randbytes(BLOCK)
    begin = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    left = size
    while left:
        left -= os.write(fd, data[:left] if left < BLOCK else data)
    os.close(fd)
    took = time.perf_counter() - begin
    found = os.stat(path).st_size
    if found != size:
        raise SystemExit(f"{path}: {found} bytes instead of {size}")
    say(seconds=took, rate=size / took / 1e6)


def read(path: str, size: int) -> None:
    """Sequential, with nothing of the file in this node's page cache."""
    buffer = bytearray(BLOCK)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    begin = time.perf_counter()
    total = 0
    while count := os.readv(fd, [buffer]):
        total += count
    took = time.perf_counter() - begin
    os.close(fd)
    if total != size:
        raise SystemExit(f"{path}: {total} bytes instead of {size}")
    say(seconds=took, rate=total / took / 1e6)


def random_read(path: str, count: int) -> None:
    """4 KiB at random places of a file of which this node has nothing, each place once; the kernel is told not to read ahead."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    pages = os.fstat(fd).st_size // PAGE
    places = random.Random(2).sample(range(pages), count)
    spread([lambda place=place: expect(os.pread(fd, PAGE, place * PAGE), PAGE) for place in places])  # type: ignore[misc]
    os.close(fd)


def expect(data: bytes, size: int) -> None:
    if len(data) != size:
        raise SystemExit(f"{len(data)} bytes instead of {size}")


def spread(calls: Sequence[Callable[[], object]]) -> None:
    """p50 and p99 of the calls in µs, and their sum in seconds."""
    clock = time.perf_counter_ns
    took = []
    for call in calls:
        begin = clock()
        call()
        took.append(clock() - begin)
    took.sort()
    say(p50=took[len(took) // 2] / 1e3, p99=took[len(took) * 99 // 100] / 1e3, seconds=sum(took) / 1e9)


# ---- many small files


def small_files(folder: str, count: int) -> list[str]:
    """Paths of that many files in a tree that `make_tree` made, known without listing it: nothing is looked up in advance."""
    folders = FOLDERS if count >= MANY else FEW
    return [f"{folder}/d{number % folders:02d}/f{number // folders:03d}" for number in range(count)]


def make_tree(folder: str, count: int) -> None:
    """*count* files of 1 KiB in 100 or 10 directories."""
    data = bytes(1024)
    for path in small_files(folder, count):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)


def make_file(path: str, size: int) -> None:
    with open(path, "wb") as file:
        for _ in range(size // BLOCK):
            file.write(random.Random(3).randbytes(BLOCK))


def stat(folder: str, count: int) -> None:
    """Each file for the first time; the directories are known already."""
    paths = small_files(folder, count + SPARE)
    for path in paths[count:]:
        os.stat(path)
    spread([lambda path=path: os.stat(path) for path in paths[:count]])  # type: ignore[misc]


def small(folder: str, count: int) -> None:
    """open, read and close of files of 1 KiB, each for the first time."""
    paths = small_files(folder, count + SPARE)
    for path in paths[count:]:
        open_read_close(path)
    spread([lambda path=path: open_read_close(path) for path in paths[:count]])  # type: ignore[misc]


def open_read_close(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    expect(os.read(fd, PAGE), 1024)
    os.close(fd)


def copy(folder: str, count: int) -> None:
    """cp -r to memory here, then grep -r."""
    with tempfile.TemporaryDirectory() as here:
        took = {"copy": timed(lambda: tool("cp", "-r", folder, here))}
        copied = sum(len(names) for _, _, names in os.walk(here))
    if copied != count:
        raise SystemExit(f"{copied} files copied instead of {count}")
    took["grep"] = timed(lambda: subprocess.run(["grep", "-rq", "not in them", folder], check=False))
    say(**took)


def find(folder: str, count: int) -> None:
    """find(1) with a test that needs each file's attributes, twice."""
    walk(folder, count, ["find", folder, "-type", "f", "-size", "+0"], str.startswith, folder, "find")


def list_all(folder: str, count: int) -> None:
    """ls -lR, twice."""
    walk(folder, count, ["ls", "-lR", folder], str.startswith, "-rw", "ls")


def walk(folder: str, count: int, words: list[str], test: Callable[[str, str], bool], wanted: str, name: str) -> None:
    took = {}
    for when in ("cold", "warm"):
        begin = time.perf_counter()
        text = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout.decode()
        took[f"{name}_{when}"] = time.perf_counter() - begin
        found = sum(test(line, wanted) for line in text.splitlines())
        if found < count:  # 9P tells directories as files
            raise SystemExit(f"{folder}: {found} files instead of {count}")
    say(**took)


def create(folder: str, count: int) -> None:
    """Create *count* files with 1 KiB in them, then delete them by their names."""
    os.mkdir(folder)
    say(create=timed(lambda: fill(folder, count)), delete=timed(lambda: empty(folder, count)))


def fill(folder: str, count: int) -> None:
    data = bytes(1024)
    for number in range(count):
        fd = os.open(f"{folder}/n{number:04d}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, data)
        os.close(fd)


def empty(folder: str, count: int) -> None:
    for number in range(count):
        os.unlink(f"{folder}/n{number:04d}")


# ---- what people do with sources


def make_source(tree: str, _count: int) -> None:
    """On the client, once: an archive and a bare repository of the sources below *tree*."""
    work = "/tmp/bench-source"
    if os.path.exists(work):
        return
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc")
    for part in ("resmgr", "stack", "docs"):
        shutil.copytree(f"{tree}/{part}", f"{work}/{part}", ignore=ignored)
    tool("tar", "cf", ARCHIVE, "-C", work, "resmgr", "stack", "docs")
    tool("git", "init", "-q", work)
    tool("git", "add", ".", cwd=work)
    tool("git", "commit", "-q", "-m", "sources", cwd=work)
    tool("git", "clone", "-q", "--bare", work, REPOSITORY)


def unpack(folder: str, _count: int) -> None:
    """tar x, then compileall of a part, then rm -r."""
    os.mkdir(folder)
    took = {"tar": timed(lambda: tool("tar", "xf", ARCHIVE, "--no-same-owner", "-C", folder))}
    took["compileall"] = timed(lambda: tool(sys.executable, "-m", "compileall", "-q", f"{folder}/resmgr/iofunc", f"{folder}/resmgr/hostfs"))
    took["rm"] = timed(lambda: tool("rm", "-r", folder))
    say(**took)


def git(folder: str, _count: int) -> None:
    took = {"clone": timed(lambda: tool("git", "clone", "-q", "--no-hardlinks", f"file://{REPOSITORY}", folder))}
    # git compares whole seconds: files as young as its index are read once more by each status, however often it is asked.
    time.sleep(1.1)
    status = ("git", "status", "--porcelain")
    took["status_first"] = timed(lambda: tool(*status, cwd=folder))
    took["status"] = timed(lambda: tool(*status, cwd=folder))
    with open(f"{folder}/docs/architecture.md", "a", encoding="utf-8") as file:
        file.write("one more line\n")
    took["diff"] = timed(lambda: tool("git", "diff", "--stat", cwd=folder))
    say(**took)


def database(path: str, count: int) -> None:
    """*count* transactions of one row each, in sqlite's default journal mode: rollback journal, synchronous."""
    base = sqlite3.connect(path, isolation_level=None)
    base.execute("create table entries (number integer primary key, text text)")

    def work() -> None:
        for number in range(count):
            base.execute("begin immediate")
            base.execute("insert into entries values (?, ?)", (number, "x" * 100))
            base.execute("commit")

    took = timed(work)
    assert base.execute("select count(*) from entries").fetchone() == (count,)
    base.close()
    say(sqlite=took / count * 1e3)


VERBS: dict[str, Callable[[str, int], None]] = {
    "write": write,
    "read": read,
    "random": random_read,
    "stat": stat,
    "small": small,
    "find": find,
    "ls": list_all,
    "copy": copy,
    "create": create,
    "fill": fill,
    "empty": empty,
    "unpack": unpack,
    "git": git,
    "sqlite": database,
    "make-tree": make_tree,
    "make-file": make_file,
    "make-source": make_source,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu", type=int)
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("where")
    parser.add_argument("count", nargs="?", type=int, default=0)
    args = parser.parse_args()
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    try:
        VERBS[args.verb](args.where, args.count)
    except (OSError, sqlite3.Error) as error:
        sys.exit(f"{args.verb} {args.where}: {error}")


if __name__ == "__main__":
    main()
