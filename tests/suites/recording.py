"""One of those whose history is looked at: random operations on files that all of them use, each written down with the times of its call
and of its answer, by the clock that all of them share.

    python -P recording.py work ROOT ME NUMBER WORKERS SEED SECONDS SETTLES FAULTS
    python -P recording.py look ROOT       what there is, as JSON

It is a program of its own, without anything of this project, so that it runs on every node and on any file system. It judges nothing:
history.py starts it and does. It says `there` when it has open what it needs, and reads from its input when it is to begin, by
CLOCK_MONOTONIC. When SECONDS are over it says `done`, reads what `look` says on the server, looks until it sees the same, for SETTLES
seconds at most, and says all that it did and saw. With FAULTS (1, else 0) calls may fail as those of a node that is down do; whether what
they were to change is done is not known then, which has no time of answer.

What is changed at `d`: common names, which everybody replaces, makes, removes and moves (what they lead to never changes but when it is
made); of each worker one file that it rewrites and appends to, and one of 8 bytes that all have open and mapped all the time.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import random
import sys
import time
from collections.abc import Callable

NAMES = [f"n{number}" for number in range(4)]
PAUSES = (0.0, 0.0005, 0.003, 0.02, 0.05)
TEXT_MAX = 4000
MAY_FAIL = (errno.EHOSTDOWN, errno.EIO, errno.ESTALE, errno.EFAULT)
"""With faults; EFAULT is said of a page that could not be brought."""
OBJECTS = 10_000_000
"""Numbers of what a worker makes lie so far from those of the next."""


def in_place(worker: int) -> str:
    return f"f{worker}"


def kept(worker: int) -> str:
    return f"g{worker}"


class Worker:
    def __init__(self, root: str, me: str, number: int, workers: int, seed: int, local: bool, faults: bool) -> None:
        self.root, self.me, self.number, self.workers = root, me, number, workers
        self.local = local
        self.faults = faults
        self.rng = random.Random(f"{seed}/{number}")
        self.said: list[list[object]] = []
        self.stale = self.failed = 0
        self.made = 0
        self.written = 0
        self.text: str | None = ""
        """What its own file holds; None: not known."""
        self.copy = os.memfd_create("mapped")
        self.fds = [-1] * workers
        self.maps: list[mmap.mmap | None] = [None] * workers
        for one in range(workers):
            self.open_kept(one)
            # What is seen later may be what is seen now.
            self.look_at_kept(one)
            self.look_at_mapped(one)

    def open_kept(self, one: int) -> None:
        own = one == self.number
        fd = os.open(self.at(kept(one)), os.O_RDWR if own else os.O_RDONLY)
        if self.fds[one] >= 0:
            os.close(self.fds[one])
        self.fds[one] = fd
        self.maps[one] = mmap.mmap(fd, 8, mmap.MAP_SHARED, mmap.PROT_READ | (mmap.PROT_WRITE if own else 0))

    def at(self, name: str) -> str:
        return f"{self.root}/d/{name}"

    def say(self, what: str, began: float, ended: float | None, *more: object) -> None:
        self.said.append([what, began, ended, *more])

    def changes(self, call: Callable[[], object], *facts: tuple[object, ...]) -> tuple[float, float]:
        """Carry out *call*, which changes all of *facts*; when it was called and answered."""
        began = time.monotonic()
        try:
            call()
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError:
            for what, *more in facts:
                self.say(str(what), began, None, *more)
            raise
        ended = time.monotonic()
        for what, *more in facts:
            self.say(str(what), began, ended, *more)
        return began, ended

    def new(self) -> tuple[int, str]:
        """The number of an object, and contents that were never written before, of a length that is rare."""
        self.made += 1
        return (self.number + 1) * OBJECTS + self.made, self.fresh()

    def fresh(self) -> str:
        self.written += 1
        head = f"{self.number}.{self.written};"
        return head.ljust(20 + (self.written * self.workers + self.number) % (TEXT_MAX - 100), "x")

    # ---- what everybody changes

    def replace(self) -> None:
        name = self.rng.choice(NAMES)
        ino, text = self.new()
        temporary = f"{self.root}/own{self.number}/new"
        with open(temporary, "w") as file:
            file.write(text)
        self.say("held", -1.0, -1.0, ino, text)
        self.changes(lambda: os.rename(temporary, self.at(name)), ("named", name, ino, None))

    def make(self) -> None:
        name = self.rng.choice(NAMES)
        ino, text = self.new()
        fd: list[int] = []
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        asked = time.monotonic()
        try:
            began, opened = self.changes(
                lambda: fd.append(os.open(self.at(name), flags, 0o644)), ("named", name, ino, None), ("held", ino, "")
            )
        except FileExistsError:
            self.say("there", asked, time.monotonic(), name, True, False)
            return
        self.say("there", began, opened, name, False, True)
        self.write(fd[0], text, ino, text)

    def write(self, fd: int, text: str, ino: int, makes: str) -> None:
        """In one piece, and closed: object *ino* holds *makes* then."""

        def call() -> None:
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)

        self.changes(call, ("held", ino, makes))

    def unlink(self) -> None:
        name = self.rng.choice(NAMES)
        asked = time.monotonic()
        try:
            began, ended = self.changes(lambda: os.unlink(self.at(name)), ("named", name, None, None))
        except FileNotFoundError:
            self.say("there", asked, time.monotonic(), name, False, False)
            return
        self.say("there", began, ended, name, True, True)

    def rename(self) -> None:
        old, new = self.rng.sample(NAMES, 2)
        asked = time.monotonic()
        try:
            began, ended = self.changes(
                lambda: os.rename(self.at(old), self.at(new)), ("named", old, None, None), ("named", new, None, old)
            )
        except FileNotFoundError:
            self.say("there", asked, time.monotonic(), old, False, False)
            return
        self.say("there", began, ended, old, True, True)

    # ---- what one changes in place

    def rewrite(self) -> None:
        text = self.fresh()
        ino = -1 - self.number
        fd: list[int] = []
        self.text = None
        self.changes(lambda: fd.append(os.open(self.at(in_place(self.number)), os.O_WRONLY | os.O_TRUNC)), ("held", ino, ""))
        self.write(fd[0], text, ino, text)
        self.text = text

    def append(self) -> None:
        text, before = self.fresh(), self.text
        if before is None or len(before) + len(text) > TEXT_MAX:
            self.rewrite()
            return
        fd = os.open(self.at(in_place(self.number)), os.O_WRONLY | os.O_APPEND)
        self.text = None
        self.write(fd, text, -1 - self.number, before + text)
        self.text = before + text

    def store(self) -> None:
        self.written += 1
        data = b"%02d%06d" % (self.number, self.written % 1_000_000)
        pages = self.maps[self.number]
        # What a program of the server stores into memory nobody is told of; a page that cannot be brought ends who stores.
        mapped = not self.local and not self.faults and self.rng.randrange(2)

        def call() -> None:
            if mapped and pages is not None:
                pages[:] = data
                pages.flush()
            else:
                os.pwrite(self.fds[self.number], data, 0)
                if not self.local:
                    os.fsync(self.fds[self.number])

        self.changes(call, ("held", -1001 - self.number, data.decode()))

    # ---- what is seen

    def stat(self, name: str) -> int | None:
        began = time.monotonic()
        try:
            size: int | None = os.stat(self.at(name)).st_size
        except FileNotFoundError:
            size = None
        self.say("stat", began, time.monotonic(), name, size)
        return size

    def read(self, name: str) -> str | None:
        began = time.monotonic()
        try:
            fd = os.open(self.at(name), os.O_RDONLY)
        except FileNotFoundError:
            self.say("read", began, time.monotonic(), name, None)
            return None
        try:
            text = os.read(fd, 65536).decode()
        finally:
            os.close(fd)
        self.say("read", began, time.monotonic(), name, text)
        return text

    def listing(self) -> list[str]:
        began = time.monotonic()
        found = sorted(os.listdir(f"{self.root}/d"))
        self.say("list", began, time.monotonic(), found)
        return found

    def look_at_kept(self, one: int) -> str:
        began = time.monotonic()
        text = os.pread(self.fds[one], 8, 0).decode()
        self.say("kept", began, time.monotonic(), -1001 - one, text)
        return text

    def look_at_mapped(self, one: int) -> str:
        began = time.monotonic()
        pages = self.maps[one]
        assert pages is not None
        # As data of a system call: a page that cannot be brought is an error of it, and no signal.
        os.pwrite(self.copy, pages, 0)
        text = os.pread(self.copy, 8, 0).decode()
        self.say("mapped", began, time.monotonic(), -1001 - one, text)
        return text

    def work(self, until: float) -> None:
        rng = self.rng

        def somebody() -> int:
            return rng.randrange(self.workers)

        looks: list[Callable[[], object]] = [
            *[lambda: self.stat(rng.choice(NAMES))] * 4,
            *[lambda: self.read(rng.choice(NAMES))] * 3,
            *[self.listing] * 2,
            lambda: self.stat(in_place(somebody())),
            *[lambda: self.read(in_place(somebody()))] * 2,
            lambda: self.look_at_kept(somebody()),
            lambda: self.look_at_mapped(somebody()),
        ]
        changes: list[Callable[[], object]] = [
            self.replace,
            self.replace,
            self.make,
            self.unlink,
            self.rename,
            self.rewrite,
            self.append,
            self.store,
        ]
        first: list[Callable[[], object]] = [self.store]
        while time.monotonic() < until:
            looking = not first and rng.randrange(3) > 0
            try:
                (first.pop() if first else rng.choice(looks if looking else changes))()
            except OSError as error:
                if self.faults and error.errno in MAY_FAIL:
                    self.failed += 1
                elif error.errno != errno.ESTALE or not looking:
                    raise
                else:
                    self.stale += 1
            time.sleep(rng.choice(PAUSES))

    def settle(self, truth: dict[str, dict[str, str]], seconds: float) -> tuple[float, dict[str, object]]:
        """Look until everything is as it is on the server; after how long, and what is not."""
        texts = truth["texts"]
        began = time.monotonic()
        wrong: dict[str, object] = {"not looked at": ""}
        while wrong and time.monotonic() - began < seconds:
            try:
                wrong = self.differs(texts)
            except OSError as error:
                if not self.faults:
                    raise
                # What was open is another daemon's, or was lost with its node.
                wrong = {"error": str(error)}
                with contextlib.suppress(OSError):
                    for one in range(self.workers):
                        self.open_kept(one)
            if wrong:
                time.sleep(0.01)
        return time.monotonic() - began, wrong

    def differs(self, texts: dict[str, str]) -> dict[str, object]:
        wrong: dict[str, object] = {}
        if (found := self.listing()) != sorted(texts):
            wrong["list"] = found
        for name in NAMES:
            if (size := self.stat(name)) != (len(texts[name]) if name in texts else None):
                wrong[f"stat {name}"] = size
        for name in (*NAMES, *(in_place(one) for one in range(self.workers))):
            if (text := self.read(name)) != texts.get(name):
                wrong[f"read {name}"] = text
        for one in range(self.workers):
            for how in (self.look_at_kept, self.look_at_mapped):
                if (text := how(one)) != texts[kept(one)]:
                    wrong[f"{how.__name__} {kept(one)}"] = text
        return wrong


def look(root: str) -> dict[str, dict[str, str]]:
    texts = {}
    for name in os.listdir(f"{root}/d"):
        with open(f"{root}/d/{name}") as file:
            texts[name] = file.read()
    return {"texts": texts}


def main(words: list[str]) -> int:
    if words[0] == "look":
        print(json.dumps(look(words[1])))
        return 0
    root, me, number, workers, seed, seconds, settles, faults = words[1:]
    local = not root.startswith("/net")
    try:
        worker = Worker(root, me, int(number), int(workers), int(seed), local, faults == "1")
        print("there", flush=True)
        begin = float(sys.stdin.readline())
        time.sleep(max(0.0, begin - time.monotonic()))
        worker.work(begin + float(seconds))
        print("done", flush=True)
        took, wrong = worker.settle(json.loads(sys.stdin.readline()), float(settles))
    except OSError as error:
        print(f"{me}: {error} ({error.filename})", file=sys.stderr)
        return 1
    print(json.dumps({"said": worker.said, "settled": took, "wrong": wrong, "stale": worker.stale, "failed": worker.failed}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
