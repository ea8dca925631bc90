"""One of those who hammer a tree: random operations on files that all of them use, each looked at at once.

    python -P hammering.py work ROOT ME OTHER,... SEED BEGIN SECONDS     what was done, as JSON
    python -P hammering.py digest ROOT                                   what there is, with digests, as JSON
    python -P hammering.py contents ROOT NAME ...                        all that is below some names, as JSON

It is a program of its own, without anything of this project, so that it runs on every node and on any file system. BEGIN is a time of the
clock that all of them share. Whoever sees what must not be says so and ends with 1. hammer.py starts it and knows the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import mmap
import os
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable

LOG_SECONDS = 10.0
"""So long everybody appends to one log."""
CONTESTS = 4.0
"""Things a second that everybody tries to make."""
PUBLISHED = 3
MOVED = 10
DIRECTORIES = ("p", "q", "r")
OWN_MAX = 60
TOKEN_FILES = 4
SIZE_MAX = 200_000
RENAME_NOREPLACE = 1
F_OFD_SETLKW = 38


class Broken(Exception):
    """Something was seen that must not be."""


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def sealed(head: str, data: bytes) -> bytes:
    """*data* that says itself whether it is whole."""
    return f"{head} {len(data)} {digest(data)}\n".encode() + data


def opened(what: str, whole: bytes) -> str:
    """The head of what `sealed` made."""
    line, _, data = whole.partition(b"\n")
    words = line.decode(errors="replace").split()
    if len(words) < 3 or int(words[-2]) != len(data) or words[-1] != digest(data):
        raise Broken(f"{what}: torn: {len(whole)} bytes, {line[:80]!r}")
    return " ".join(words[:-2])


def read(path: str) -> bytes | None:
    """All of a file; None if it is not there."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


class Hammer:
    def __init__(self, root: str, me: str, others: list[str], seed: int, begin: float) -> None:
        self.root, self.me, self.others = root, me, others
        self.everyone = sorted([me, *others])
        self.rng = random.Random(f"{seed}/{me}")
        self.begin = begin
        self.did: Counter[str] = Counter()
        self.appended: dict[str, int] = {}
        self.logs: dict[str, int] = {}
        self.versions: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.contested = -1
        self.won: dict[str, str] = {}
        self.counted: Counter[str] = Counter()
        self.counters = {kind: os.open(self.at(f"counter-{kind}"), os.O_RDWR) for kind in ("posix", "ofd", "flock")}
        self.own: set[str] = set()
        self.made = 0
        self.gone: dict[str, set[str]] = {other: set() for other in others}
        self.there: dict[str, set[str]] = {other: set() for other in others}
        self.tokens = 0
        self.copy = os.memfd_create("mapped")
        self.libc = ctypes.CDLL(None, use_errno=True)

    def at(self, *names: str) -> str:
        return os.path.join(self.root, *names)

    def elapsed(self) -> float:
        return time.time() - self.begin

    def data(self) -> bytes:
        return self.rng.randbytes(self.rng.choice((0, 1, 100, 4000, 4096, 30_000, self.rng.randrange(SIZE_MAX))))

    # Appends: each record once, whole, in the order of who wrote it.

    def append(self) -> None:
        name = f"log-{int(self.elapsed() / LOG_SECONDS)}"
        number = self.appended.get(name, 0)
        body = f"{self.rng.randrange(65536):04x}" * self.rng.choice((1, 10, 100, 1000, 3000))
        record = f"{self.me} {number} {body} {digest(f'{self.me}{number}{body}'.encode())}\n".encode()
        kept = self.logs.get(name)
        if kept is None and self.rng.randrange(3) == 0:
            self.close_logs()
            kept = self.logs[name] = os.open(self.at(name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        fd = os.open(self.at(name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if kept is None else kept
        try:
            if os.write(fd, record) != len(record):
                raise Broken(f"{name}: a short write")
            if self.rng.randrange(20) == 0:
                os.fsync(fd)
        finally:
            if kept is None:
                os.close(fd)
        self.appended[name] = number + 1

    def close_logs(self) -> None:
        for fd in self.logs.values():
            os.close(fd)
        self.logs.clear()

    def read_log(self) -> None:
        name = f"log-{int(self.elapsed() / LOG_SECONDS)}"
        mine = self.appended.get(name, 0)
        whole = read(self.at(name))
        if whole is None:
            if mine:
                raise Broken(f"{name} is gone")
            return
        count = check_log(name, whole)[self.me]
        if not self.logs and count != mine:
            raise Broken(
                f"{name}: {count} records of mine in {len(whole)} bytes, {mine} were written, now {os.stat(self.at(name)).st_size}"
            )

    # Files that are replaced as a whole: never torn, never older than what was seen.

    def publish(self) -> None:
        name = f"{self.me}-{self.rng.randrange(PUBLISHED)}"
        version = self.versions[name] + 1
        temporary = self.at("published", f"{name}.new")
        with open(temporary, "wb") as file:
            file.write(sealed(f"{name} {version}", self.data()))
            if self.rng.randrange(8) == 0:
                os.fsync(file.fileno())
        os.rename(temporary, self.at("published", name))
        self.versions[name] = version

    def peek(self) -> None:
        name = f"{self.rng.choice(self.everyone)}-{self.rng.randrange(PUBLISHED)}"
        path = self.at("published", name)
        before = max(self.seen[name], self.versions[name])
        try:
            with open(path, "rb") as file:
                whole = self.mapped(file.fileno()) if self.rng.randrange(4) == 0 else file.read()
        except FileNotFoundError:
            if before:
                raise Broken(f"{name} is gone, was at version {before}") from None
            return
        told, version = opened(name, whole).split()
        if told != name or int(version) < before:
            raise Broken(f"{name}: {told} {version}, version {before} was there before")
        self.seen[name] = int(version)

    def mapped(self, fd: int) -> bytes:
        """All of a file by a shared mapping, which may not be shorter than fstat says."""
        size = os.fstat(fd).st_size
        if not size:
            return b""
        with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as pages:
            # As data of a system call: a page that is not there is an error of it, and no signal.
            os.ftruncate(self.copy, 0)
            try:
                count = os.pwrite(self.copy, pages, 0)
            except OSError as error:
                raise Broken(f"a mapping of {size} bytes: {error}") from error
        if count != size:
            raise Broken(f"a mapping of {size} bytes ends after {count}")
        self.did["mapped"] += 1
        return os.pread(self.copy, size, 0)

    # What only one can make.

    def contest(self) -> None:
        number = int(self.elapsed() * CONTESTS)
        if number == self.contested:
            return
        self.contested = number
        kind = ("create", "mkdir", "link", "rename", "symlink")[number % 5]
        path = self.at("contests", f"{number}-{kind}")
        mine = self.at("contests", f"{self.me}.mine")
        try:
            if kind == "create":
                with open(path, "x") as file:
                    file.write(self.me)
            elif kind == "mkdir":
                os.mkdir(path)
            elif kind == "symlink":
                os.symlink(self.me, path)
            else:
                with open(mine, "w") as file:
                    file.write(self.me)
                try:
                    if kind == "link":
                        os.link(mine, path)
                    else:
                        self.rename(mine, path)
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(mine)
        except FileExistsError:
            return
        self.won[f"{number}-{kind}"] = self.me

    def rename(self, old: str, new: str) -> None:
        """Without replacing anything."""
        if self.libc.renameat2(-100, old.encode(), -100, new.encode(), RENAME_NOREPLACE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), new)

    # Counters under locks.

    def count(self) -> None:
        kind = self.rng.choice(list(self.counters))
        if self.rng.randrange(4) == 0:
            os.close(self.counters[kind])
            self.counters[kind] = os.open(self.at(f"counter-{kind}"), os.O_RDWR)
        fd = self.counters[kind]
        self.lock(fd, kind, fcntl.F_WRLCK)
        try:
            number = int(os.pread(fd, 20, 0))
            os.pwrite(fd, b"%020d" % (number + 1), 0)
        finally:
            self.lock(fd, kind, fcntl.F_UNLCK)
        self.counted[kind] += 1

    def lock(self, fd: int, kind: str, how: int) -> None:
        if kind == "flock":
            fcntl.flock(fd, fcntl.LOCK_UN if how == fcntl.F_UNLCK else fcntl.LOCK_EX)
        else:
            command = fcntl.F_SETLKW if kind == "posix" else F_OFD_SETLKW
            fcntl.fcntl(fd, command, struct.pack("hhqqi4x", how, os.SEEK_SET, 0, 0, 0))

    # Files that everybody moves about.

    def move(self) -> None:
        name = f"m{self.rng.randrange(MOVED)}"
        old, new = self.rng.sample(DIRECTORIES, 2)
        # Already there: somebody moved it between this kernel's two lookups.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            if self.rng.randrange(2):
                self.rename(self.at(old, name), self.at(new, name))
            else:
                os.rename(self.at(old, name), self.at(new, name))

    def look_at_moved(self) -> None:
        name = f"m{self.rng.randrange(MOVED)}"
        whole = read(self.at(self.rng.choice(DIRECTORIES), name))
        if whole is not None and opened(name, whole) != name:
            raise Broken(f"{name}: holds another's contents")

    # Directories of one: its own listing is exact, others see no name again that was gone.

    def change_own(self) -> None:
        kind = self.rng.randrange(3)
        name = f"{self.me}-{self.made}"
        if not self.own or (kind == 0 and len(self.own) < OWN_MAX):
            self.made += 1
            with open(self.at(f"of-{self.me}", name), "wb") as file:
                file.write(sealed(self.me, self.data()))
            self.own.add(name)
        elif kind == 1:
            old = self.rng.choice(sorted(self.own))
            os.unlink(self.at(f"of-{self.me}", old))
            self.own.remove(old)
        else:
            old = self.rng.choice(sorted(self.own))
            self.made += 1
            os.rename(self.at(f"of-{self.me}", old), self.at(f"of-{self.me}", name))
            self.own.remove(old)
            self.own.add(name)
        listed = os.listdir(self.at(f"of-{self.me}"))
        if sorted(listed) != sorted(self.own):
            raise Broken(f"own directory: {sorted(set(listed) ^ self.own)} differ, {len(listed)} listed")

    def look_at_other(self) -> None:
        other = self.rng.choice(self.others)
        directory = self.at(f"of-{other}")
        listed = set(os.listdir(directory))
        if back := listed & self.gone[other]:
            raise Broken(f"names of {other} came back: {sorted(back)}")
        self.gone[other] |= self.there[other] - listed
        self.there[other] = listed
        if listed:
            name = self.rng.choice(sorted(listed))
            whole = read(os.path.join(directory, name))
            # Empty: made, and not written yet. More than nothing may be a part of what is being written.
            if whole and (whole.partition(b"\n")[0].split() or [b""])[0] != other.encode():
                raise Broken(f"{name}: not {other}'s: {whole[:60]!r}")
        if self.gone[other]:
            name = self.rng.choice(sorted(self.gone[other]))
            if os.path.lexists(os.path.join(directory, name)):
                raise Broken(f"{name} came back")

    # A token: what was closed before it was passed on is seen by who has it now.

    def token(self) -> None:
        held = read(self.at("token", self.me))
        if held is None:
            return
        told = json.loads(held)
        contents: dict[str, bytes] = {}
        for name, (size, wanted) in told["files"].items():
            whole = self.read_somehow(self.at("token", name))
            if len(whole) != size or digest(whole) != wanted:
                who = f"token {told['number']} of {told['by']}"
                raise Broken(f"{who}: {name} is not as it was closed ({told['how']}): {len(whole)} of {size}")
            contents[name] = whole
        how = {}
        for number in range(TOKEN_FILES):
            name = f"f{number}"
            if name not in contents or self.rng.randrange(2):
                how[name], contents[name] = self.write_somehow(self.at("token", name), contents.get(name, b""))
        files = {name: [len(whole), digest(whole)] for name, whole in contents.items()}
        news = {"number": told["number"] + 1, "by": self.me, "how": how, "files": files}
        with open(self.at("token", f"{self.me}.new"), "w") as file:
            json.dump(news, file)
        os.unlink(self.at("token", self.me))
        next_one = self.everyone[(self.everyone.index(self.me) + 1) % len(self.everyone)]
        os.rename(self.at("token", f"{self.me}.new"), self.at("token", next_one))
        self.tokens += 1

    def read_somehow(self, path: str) -> bytes:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size and self.rng.randrange(2):
                with mmap.mmap(file.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ) as pages:
                    return bytes(pages)
            return file.read()

    def write_somehow(self, path: str, old: bytes) -> tuple[str, bytes]:
        data = self.data()
        offset = self.rng.randrange(len(old) + 5000)
        patched = old.ljust(offset, b"\0")[:offset] + data + old[offset + len(data) :] if data else old
        how = self.rng.choice(("new", "trunc", "append", "patch", "map", "cut", "copy"))
        if how == "new":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | {"trunc": os.O_TRUNC, "append": os.O_APPEND}.get(how, 0), 0o644)
        with open(fd, "r+b", buffering=0, closefd=True) as file:
            if how in ("new", "trunc"):
                file.write(data)
                return how, data
            if how == "append":
                file.write(data)
                return how, old + data
            if how == "patch":
                os.pwrite(file.fileno(), data, offset)
                return how, patched
            if how == "cut":
                size = self.rng.randrange(len(old) + 5000)
                os.ftruncate(file.fileno(), size)
                return how, old.ljust(size, b"\0")[:size]
            if how == "copy":
                count = os.copy_file_range(file.fileno(), file.fileno(), len(old), 0, len(old)) if old else 0
                return how, old + old[:count]
            if not old:
                return how, old
            with mmap.mmap(file.fileno(), len(old)) as pages:
                start = self.rng.randrange(len(old))
                pages[start : start + 1000] = data = self.rng.randbytes(len(pages[start : start + 1000]))
                if self.rng.randrange(2):
                    pages.flush()
            # A store into memory changes no time on tmpfs: this does, as databases do that map their files.
            os.utime(path)
            return how, old[:start] + data + old[start + len(data) :]

    def work(self, seconds: float) -> dict[str, object]:
        kinds: list[Callable[[], None]] = [
            *[self.append] * 3,
            self.read_log,
            *[self.publish] * 2,
            *[self.peek] * 3,
            self.contest,
            *[self.count] * 3,
            *[self.move] * 2,
            self.look_at_moved,
            *[self.change_own] * 3,
            *[self.look_at_other] * 2,
            *[self.token] * 3,
        ]
        while self.elapsed() < seconds:
            kind = self.rng.choice(kinds)
            try:
                kind()
            except OSError as error:
                raise Broken(f"{kind.__name__}: {error}") from error
            self.did[kind.__name__] += 1
        self.close_logs()
        for fd in self.counters.values():
            os.close(fd)
        facts = ("did", "appended", "versions", "won", "counted", "tokens")
        return {name: getattr(self, name) for name in facts} | {"own": sorted(self.own)}


def check_log(name: str, whole: bytes) -> Counter[str]:
    """How many records each has, which must be whole and in order; the last line may be one that is being written."""
    found: Counter[str] = Counter()
    for line in whole.split(b"\n")[:-1]:
        words = line.decode(errors="replace").split(" ")
        if len(words) != 4 or digest(f"{words[0]}{words[1]}{words[2]}".encode()) != words[3]:
            raise Broken(f"{name}: torn: {line[:60]!r}")
        if int(words[1]) != found[words[0]]:
            raise Broken(f"{name}: record {words[1]} of {words[0]} where {found[words[0]]} was due")
        found[words[0]] += 1
    return found


def everything(root: str) -> dict[str, list[object]]:
    """Type, size and digest of all that is below *root*."""
    found: dict[str, list[object]] = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            state = os.lstat(path)
            if os.path.islink(path):
                what = os.readlink(path)
            else:
                what = "" if name in names else digest(read(path) or b"")
            found[os.path.relpath(path, root)] = [state.st_mode, state.st_nlink, 0 if name in names else state.st_size, what]
    return found


def contents(root: str, names: list[str]) -> dict[str, str]:
    """What files hold that are, or are below, *names*, and the texts of symbolic links; nothing for directories."""
    found: dict[str, str] = {}
    for name in names:
        path = os.path.join(root, name)
        if os.path.islink(path):
            found[name] = os.readlink(path)
        elif os.path.isdir(path):
            found[name] = ""
            found.update(contents(root, [os.path.join(name, one) for one in os.listdir(path)]))
        else:
            found[name] = (read(path) or b"").decode("latin-1")
    return found


def main(words: list[str]) -> int:
    if words[0] == "contents":
        print(json.dumps(contents(words[1], words[2:])))
        return 0
    if words[0] == "digest":
        print(json.dumps(everything(words[1])))
        return 0
    root, me, others, seed, begin, seconds = words[1:]
    hammer = Hammer(root, me, others.split(","), int(seed), float(begin))
    try:
        print(json.dumps(hammer.work(float(seconds))))
    except Broken as broken:
        print(f"{me}: after {hammer.elapsed():.3f} s, {sum(hammer.did.values())} operations: {broken}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
