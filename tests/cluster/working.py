"""Programs in the middle of one operation each, over and over, on a directory of another node: `python working.py DIRECTORY SEED`.

Each says in lines of JSON what it met: operation, the monotonic clock (of the machine, so lines of several nodes compare), seconds that it
took, errno (0: done); every result that differs from the one before, every slow one, and one every BEAT. They end when the input does, and
say what they were told is written: {"op": "write", "sure": records that an fsync answered for}, {"op": "append", "sure": numbers,
"unsure": numbers}.
"""

from __future__ import annotations

import fcntl
import inspect
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Generator
from hashlib import sha256

BEAT = 0.2
RECORD = struct.Struct("!Q32s")
SIZE = RECORD.size
NAMES = 40


def record(number: int) -> bytes:
    return RECORD.pack(number, sha256(b"%d" % number).digest())


class Log:
    def __init__(self, op: str) -> None:
        self.op = op
        self.last = -1
        self.told = 0.0

    def say(self, **more: object) -> None:
        os.write(1, json.dumps({"op": self.op, "at": time.monotonic(), **more}).encode() + b"\n")

    def result(self, began: float, error: int) -> None:
        now = time.monotonic()
        if error != self.last or now - began > 0.5 or now - self.told > BEAT:
            self.last, self.told = error, now
            self.say(took=round(now - began, 4), error=error)


Step = Generator[Callable[[], object], None, None]


def writing(path: str, sure: dict[str, object]) -> Step:
    """Records one after another, an fsync behind every few; after an error from the last that was surely there."""
    done = number = 0
    while True:
        fd = os.open(f"{path}/journal", os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            while True:
                for _ in range(5):
                    yield lambda: os.pwrite(fd, record(number), number * SIZE)  # noqa: B023  # called before the loop goes on
                    number += 1
                yield lambda: os.fsync(fd)  # noqa: B023
                done = number
                sure["sure"] = done
        except GeneratorExit:
            raise
        except OSError:
            number = done
            try:
                os.close(fd)
            except OSError:
                pass
            yield lambda: time.sleep(0.02)


def appending(path: str, sure: dict[str, object]) -> Step:
    """Each record once: what an error was told for may be there or not."""
    acknowledged: list[int] = []
    unsure: list[int] = []
    sure.update(sure=acknowledged, unsure=unsure)
    number = 0
    while True:
        number += 1
        unsure.append(number)

        def append() -> None:
            fd = os.open(f"{path}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(fd, record(number))  # noqa: B023
            finally:
                os.close(fd)

        try:
            yield append
            unsure.remove(number)
            acknowledged.append(number)
        except OSError:
            yield lambda: time.sleep(0.02)


def reading(path: str, sure: dict[str, object]) -> Step:
    while True:
        fd = os.open(f"{path}/read", os.O_RDONLY | os.O_DIRECT)
        try:
            while True:
                yield lambda: check(os.pread(fd, 65536, 0))  # noqa: B023
        except OSError:
            os.close(fd)
            yield lambda: time.sleep(0.02)


def check(data: bytes) -> None:
    assert data == record(0)[:8] * (len(data) // 8)
    assert len(data) == 65536


def listing(path: str, sure: dict[str, object]) -> Step:
    while True:
        try:
            yield lambda: len(os.listdir(f"{path}/names")) == NAMES or sys.exit("names are missing")
        except OSError:
            yield lambda: time.sleep(0.02)


def renaming(path: str, sure: dict[str, object]) -> Step:
    names = [f"{path}/x", f"{path}/y"]

    def rename() -> None:
        os.rename(*names)
        names.reverse()

    def look() -> None:
        """An error came of the last one: it was done or not."""
        try:
            os.stat(names[0])
        except FileNotFoundError:
            os.stat(names[1])
            names.reverse()

    unsure = False
    while True:
        try:
            yield look if unsure else rename
            unsure = False
        except OSError:
            unsure = True
            yield lambda: time.sleep(0.02)


def locking(path: str, sure: dict[str, object]) -> Step:
    while True:
        fd = os.open(f"{path}/lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while True:
                yield lambda: fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)  # noqa: B023
                yield lambda: fcntl.lockf(fd, fcntl.LOCK_UN, 10, 5)  # noqa: B023
        except OSError:
            os.close(fd)
            yield lambda: time.sleep(0.02)


def mapping(path: str, sure: dict[str, object]) -> Step:
    """A page of a shared mapping in a child, which SIGBUS may end."""

    def touch() -> None:
        child = os.fork()
        if not child:
            try:
                with open(f"{path}/read", "rb") as file, mmap.mmap(file.fileno(), 65536, prot=mmap.PROT_READ) as mapped:
                    os._exit(mapped[4096:4104] != record(0)[:8])
            except OSError as error:
                os._exit(error.errno or 1)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGBUS, status
            raise OSError(5, "SIGBUS")
        if os.WEXITSTATUS(status):
            raise OSError(os.WEXITSTATUS(status), "mapping")

    while True:
        try:
            yield touch
            yield lambda: time.sleep(0.02)
        except OSError:
            yield lambda: time.sleep(0.02)


WORK = {
    "write": writing,
    "append": appending,
    "read": reading,
    "readdir": listing,
    "rename": renaming,
    "lock": locking,
    "mmap": mapping,
}


def work(op: str, path: str) -> None:
    ended: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    log = Log(op)
    sure: dict[str, object] = {}
    steps = WORK[op](path, sure)
    failure: OSError | None = None
    while not ended:
        began = time.monotonic()
        try:
            step = next(steps) if failure is None else steps.throw(failure)
            failure = None
            step()
            error = 0
        except OSError as one:
            failure = one
            if inspect.getgeneratorstate(steps) == inspect.GEN_CLOSED:
                # It ended opening its file.
                steps, failure = WORK[op](path, sure), None
                time.sleep(0.02)
            error = one.errno or 0
        log.result(began, error)
    log.say(**sure)


def prepare(path: str) -> None:
    os.makedirs(f"{path}/names", exist_ok=True)
    for number in range(NAMES):
        open(f"{path}/names/{number}", "w").close()
    with open(f"{path}/read", "wb") as file:
        file.write(record(0)[:8] * 8192)
    open(f"{path}/x", "w").close()


def main(path: str) -> None:
    children = []
    for op in WORK:
        child = os.fork()
        if not child:
            os.close(0)
            work(op, path)
            os._exit(0)
        children.append(child)
    sys.stdin.read()
    for child in children:
        os.kill(child, signal.SIGTERM)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(sys.argv[2])
    else:
        main(sys.argv[1])
