"""A program that does one of everything in a directory of another node and keeps a journal of what it was told:
`python stepping.py DIRECTORY`.

What it says last is one line of JSON: {"told": [[step, errno], ...], "content": {name: text that is surely there}, "names": {name:
whether it must be there}}. What an error was told of may be done or not, and is in neither.

    python stepping.py check DIRECTORY JOURNAL    on the node that has the directory: what is not as the journal says
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

Told = list[tuple[str, int]]


class Program:
    def __init__(self, place: str) -> None:
        self.place = place
        self.told: Told = []
        self.content: dict[str, str] = {}
        self.names: dict[str, bool] = {}

    def path(self, name: str) -> str:
        return f"{self.place}/{name}"

    def do(self, step: str, call: Callable[[], object], *, made: str = "", gone: str = "") -> bool:
        for name in filter(None, (made, gone)):
            self.names.pop(name, None)
        try:
            call()
        except OSError as error:
            self.told.append((step, error.errno or 0))
            return False
        self.told.append((step, 0))
        if made:
            self.names[made] = True
        if gone:
            self.names[gone] = False
        return True

    def written(self, name: str, flags: int, data: str) -> None:
        """Open, write in two pieces, fsync, close: if all of it was told to be done, all of it is there."""
        self.content.pop(name, None)
        opened: list[int] = []
        if not self.do(f"open {name}", lambda: opened.append(os.open(self.path(name), flags, 0o644)), made=name):
            return
        fd = opened[0]
        half = len(data) // 2
        good = [self.do(f"write {name}", lambda piece=piece: os.write(fd, piece.encode())) for piece in (data[:half], data[half:])]  # type: ignore[misc]  # its own
        good.append(self.do(f"fsync {name}", lambda: os.fsync(fd)))
        good.append(self.do(f"lock {name}", lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)))
        good.append(self.do(f"stat {name}", lambda: os.fstat(fd)))
        good.append(self.do(f"close {name}", lambda: os.close(fd)))
        if all(good):
            self.content[name] = data

    def run(self) -> None:
        self.written("f", os.O_RDWR | os.O_CREAT | os.O_EXCL, "first and second half")
        self.do("mkdir d", lambda: os.mkdir(self.path("d")), made="d")
        self.do("symlink s", lambda: os.symlink("f", self.path("s")), made="s")
        self.do("link l", lambda: os.link(self.path("f"), self.path("l")), made="l")
        self.do("list", lambda: os.listdir(self.place))
        self.written("g", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "written with no reading")
        if self.do("rename g h", lambda: os.rename(self.path("g"), self.path("h")), made="h", gone="g") and "g" in self.content:
            self.content["h"] = self.content.pop("g")
        else:
            self.content.pop("g", None)
        self.do("read h", lambda: Path(self.path("h")).read_bytes())
        self.do("xattr f", lambda: os.setxattr(self.path("f"), "user.x", b"value"))
        self.do("chmod f", lambda: os.chmod(self.path("f"), 0o600))
        self.do("unlink l", lambda: os.unlink(self.path("l")), gone="l")
        self.do("rmdir d", lambda: os.rmdir(self.path("d")), gone="d")
        self.written("f", os.O_WRONLY | os.O_TRUNC, "once more, and all of it is new")


def wrong(place: str, journal: dict[str, dict[str, object]]) -> list[str]:
    found = []
    for name, text in journal["content"].items():
        try:
            with open(f"{place}/{name}") as file:
                if (there := file.read()) != text:
                    found.append(f"{name} has {there!r} instead of {text!r}")
        except OSError as error:
            found.append(f"{name}: {error}")
    found += [
        f"{name} is {'not ' if must else ''}there" for name, must in journal["names"].items() if os.path.lexists(f"{place}/{name}") != must
    ]
    return found


if __name__ == "__main__":
    if sys.argv[1] == "check":
        print(json.dumps(wrong(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        program = Program(sys.argv[1])
        program.run()
        print(json.dumps({"told": program.told, "content": program.content, "names": program.names}))
