"""Makes directories of very many files, and walks them as programs do. A program of its own, as hammering.py is.

python -P manyfiles.py make FLAT TREE COUNT     a directory of COUNT files, and COUNT files in directories of a thousand
python -P manyfiles.py scan DIRECTORY           os.scandir, with the attributes of a thousandth; prints the number of entries
python -P manyfiles.py seek DIRECTORY           see `seek`
"""

from __future__ import annotations

import ctypes
import os
import sys

PER_DIRECTORY = 1000
KEPT = 997
"""Every so many entries a position is kept."""


def make(flat: str, tree: str, count: int) -> None:
    os.mkdir(flat)
    os.mkdir(tree)
    for number in range(count):
        os.mknod(f"{flat}/entry-{number:08}", 0o644)
        if number % PER_DIRECTORY == 0:
            os.mkdir(f"{tree}/{number // PER_DIRECTORY:05}")
        os.mknod(f"{tree}/{number // PER_DIRECTORY:05}/{number:08}", 0o644)


def scan(directory: str) -> None:
    count = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            count += 1
            assert entry.is_file()
            if count % 1000 == 0:
                assert entry.stat().st_size == 0
    print(count)


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_ulong),
        ("off", ctypes.c_long),
        ("length", ctypes.c_ushort),
        ("kind", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


class Directory:
    """A directory stream of the C library."""

    def __init__(self, path: str) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        for name in ("opendir", "readdir"):
            getattr(self.libc, name).restype = ctypes.c_void_p
        self.libc.telldir.restype = ctypes.c_long
        found = self.libc.opendir(path.encode())
        assert found, path
        self.stream = ctypes.c_void_p(found)

    def read(self) -> bytes | None:
        found = self.libc.readdir(self.stream)
        return bytes(_Dirent.from_address(found).name) if found else None

    def tell(self) -> int:
        return int(self.libc.telldir(self.stream))

    def seek(self, position: int) -> None:
        self.libc.seekdir(self.stream, ctypes.c_long(position))

    def close(self) -> None:
        self.libc.closedir(self.stream)


def seek(path: str) -> None:
    """Read a directory to its end and say so; then, when told on the input that files were made and removed meanwhile, go back to the
    positions that were kept. After each comes what came there before, or, if that was removed, something that came later."""
    directory = Directory(path)
    kept: list[tuple[int, bytes]] = []
    order: dict[bytes, int] = {}
    while True:
        position = directory.tell()
        name = directory.read()
        if name is None:
            break
        assert name not in order, f"{name!r} twice"
        order[name] = len(order)
        if len(order) % KEPT == 1:
            kept.append((position, name))
    print(len(order) - 2, flush=True)
    gone = 0
    input()
    there = set(os.listdir(os.fsencode(path)))
    for position, name in kept[::-1]:
        directory.seek(position)
        found = directory.read()
        if name in there or name in (b".", b".."):
            assert found == name, f"{found!r} where {name!r} was"
        else:
            gone += 1
            assert found is None or found not in order or order[found] > order[name], f"{found!r} after the place of {name!r}"
    print(gone, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        {"scan": scan, "seek": seek}[sys.argv[1]](sys.argv[2])
