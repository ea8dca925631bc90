"""One of those whose history is looked at: random operations on files that all of them use, each written down with the times of its call
and of its answer, by the clock that all of them share.

    python -P recording.py work ROOT ME NUMBER WORKERS SEED BEGIN SECONDS SETTLES
    python -P recording.py look ROOT       what there is, as JSON

It is a program of its own, without anything of this project, so that it runs on every node and on any file system. BEGIN is a time of
CLOCK_MONOTONIC. It judges nothing: history.py starts it and does. When SECONDS are over it says `done`, reads from its input what `look`
says on the server, looks until it sees the same, for SETTLES seconds at most, and says all that it did and saw.

What is changed at `d`: common names, which everybody replaces, makes, removes and moves (what they lead to never changes but when it is
made); of each worker one file that it rewrites and appends to, and one of 8 bytes that all have open and mapped all the time.
"""

from __future__ import annotations

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
OBJECTS = 10_000_000
"""Numbers of what a worker makes lie so far from those of the next."""


def in_place(worker: int) -> str:
    return f"f{worker}"


def kept(worker: int) -> str:
    return f"g{worker}"


class Worker:
    def __init__(self, root: str, me: str, number: int, workers: int, seed: int, local: bool) -> None:
        self.root, self.me, self.number, self.workers = root, me, number, workers
        self.local = local
        self.rng = random.Random(f"{seed}/{number}")
        self.said: list[list[object]] = []
        self.stale = 0
        self.made = 0
        self.written = 0
        self.text = ""
        self.fds = [os.open(self.at(kept(one)), os.O_RDWR if one == number else os.O_RDONLY) for one in range(workers)]
        protections = [mmap.PROT_READ | (mmap.PROT_WRITE if one == number else 0) for one in range(workers)]
        self.maps = [mmap.mmap(fd, 8, mmap.MAP_SHARED, prot) for fd, prot in zip(self.fds, protections, strict=True)]

    def at(self, name: str) -> str:
        return f"{self.root}/d/{name}"

    def say(self, what: str, began: float, ended: float, *more: object) -> None:
        self.said.append([what, began, ended, *more])

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
        began = time.monotonic()
        os.rename(temporary, self.at(name))
        self.say("named", began, time.monotonic(), name, ino, None)

    def make(self) -> None:
        name = self.rng.choice(NAMES)
        ino, text = self.new()
        began = time.monotonic()
        try:
            fd = os.open(self.at(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            self.say("there", began, time.monotonic(), name, True, False)
            return
        opened = time.monotonic()
        os.write(fd, text.encode())
        os.close(fd)
        ended = time.monotonic()
        self.say("there", began, opened, name, False, True)
        self.say("named", began, opened, name, ino, None)
        self.say("held", began, opened, ino, "")
        self.say("held", opened, ended, ino, text)

    def unlink(self) -> None:
        name = self.rng.choice(NAMES)
        began = time.monotonic()
        try:
            os.unlink(self.at(name))
        except FileNotFoundError:
            self.say("there", began, time.monotonic(), name, False, False)
            return
        ended = time.monotonic()
        self.say("there", began, ended, name, True, True)
        self.say("named", began, ended, name, None, None)

    def rename(self) -> None:
        old, new = self.rng.sample(NAMES, 2)
        began = time.monotonic()
        try:
            os.rename(self.at(old), self.at(new))
        except FileNotFoundError:
            self.say("there", began, time.monotonic(), old, False, False)
            return
        ended = time.monotonic()
        self.say("there", began, ended, old, True, True)
        self.say("named", began, ended, old, None, None)
        self.say("named", began, ended, new, None, old)

    # ---- what one changes in place

    def rewrite(self) -> None:
        text = self.fresh()
        began = time.monotonic()
        fd = os.open(self.at(in_place(self.number)), os.O_WRONLY | os.O_TRUNC)
        opened = time.monotonic()
        os.write(fd, text.encode())
        os.close(fd)
        self.say("held", began, opened, -1 - self.number, "")
        self.say("held", opened, time.monotonic(), -1 - self.number, text)
        self.text = text

    def append(self) -> None:
        text = self.fresh()
        if len(self.text) + len(text) > TEXT_MAX:
            self.rewrite()
            return
        fd = os.open(self.at(in_place(self.number)), os.O_WRONLY | os.O_APPEND)
        began = time.monotonic()
        os.write(fd, text.encode())
        os.close(fd)
        self.text += text
        self.say("held", began, time.monotonic(), -1 - self.number, self.text)

    def store(self) -> None:
        self.written += 1
        data = b"%02d%06d" % (self.number, self.written % 1_000_000)
        began = time.monotonic()
        if self.local or self.rng.randrange(2):
            # What a program of the server stores into memory nobody is told of.
            os.pwrite(self.fds[self.number], data, 0)
            if not self.local:
                os.fsync(self.fds[self.number])
        else:
            self.maps[self.number][:] = data
            self.maps[self.number].flush()
        self.say("held", began, time.monotonic(), -1001 - self.number, data.decode())

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
        text = self.maps[one][:].decode()
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
        while time.monotonic() < until:
            looking = rng.randrange(3) > 0
            try:
                rng.choice(looks if looking else changes)()
            except OSError as error:
                if error.errno != errno.ESTALE or not looking:
                    raise
                self.stale += 1
            time.sleep(rng.choice(PAUSES))

    def settle(self, truth: dict[str, dict[str, str]], seconds: float) -> tuple[float, dict[str, object]]:
        """Look until everything is as it is on the server; after how long, and what is not."""
        texts = truth["texts"]
        began = time.monotonic()
        wrong: dict[str, object] = {"not looked at": ""}
        while wrong and time.monotonic() - began < seconds:
            wrong = {}
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
            if wrong:
                time.sleep(0.01)
        return time.monotonic() - began, wrong


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
    root, me, number, workers, seed, begin, seconds, settles = words[1:]
    local = not root.startswith("/net")
    try:
        worker = Worker(root, me, int(number), int(workers), int(seed), local)
        time.sleep(max(0.0, float(begin) - time.monotonic()))
        worker.work(float(begin) + float(seconds))
        print("done", flush=True)
        took, wrong = worker.settle(json.loads(sys.stdin.readline()), float(settles))
    except OSError as error:
        print(f"{me}: {error} ({error.filename})", file=sys.stderr)
        return 1
    print(json.dumps({"said": worker.said, "settled": took, "wrong": wrong, "stale": worker.stale}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
