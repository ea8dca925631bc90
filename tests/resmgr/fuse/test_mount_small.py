"""Many small files through a real kernel: what programs see of files whose attributes and contents come before they are asked for."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from resmgr.testing.fusemount import Served

pytestmark = pytest.mark.priv

Serve = Callable[..., Served]


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The directory that the mount shows: `d` with 60 files, numbered, of about 1 KiB."""
    directory = tmp_path / "served"
    (directory / "d").mkdir(parents=True)
    for number in range(60):
        (directory / "d" / f"f{number}").write_bytes(content(number, 0))
    return directory


def content(number: int, version: int) -> bytes:
    return b"%d.%d;" % (number, version) * (200 + number + version)


def statistics(mount: Served) -> dict[str, dict[str, int]]:
    return cast("dict[str, Any]", mount.order("statistics"))


def test_each_is_one_open_and_no_read(serve: Serve, served: Path) -> None:
    mount = serve(served)

    for number in range(60):
        assert (mount.path / "d" / f"f{number}").read_bytes() == content(number, 0)

    found = statistics(mount)
    assert "READ" not in found["requests"]
    assert "FLUSH" not in found["requests"]
    assert found["events"]["stored"] == 60
    assert found["events"]["ahead_hits"] > 50
    # And again, with all of it in the page cache.
    assert (mount.path / "d/f7").read_bytes() == content(7, 0)
    assert "READ" not in statistics(mount)["requests"]


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_open_after_a_change_there_sees_it(serve: Serve, served: Path, how: str) -> None:
    """Close-to-open, whatever was read ahead and kept: contents, and the size that fstat tells."""
    mount = serve(served)
    for version in range(1, 4):
        for number in range(0, 60, 3):
            path = served / "d" / f"f{number}"
            if how == "written":
                path.write_bytes(content(number, version))
            else:
                new = served / "new"
                new.write_bytes(content(number, version))
                new.rename(path)
            with open(mount.path / "d" / f"f{number}", "rb") as file:
                assert os.fstat(file.fileno()).st_size == len(content(number, version))
                assert file.read() == content(number, version)


def test_stat_is_not_older_than_the_validity(serve: Serve, served: Path) -> None:
    mount = serve(served, attr_valid=0.3, entry_valid=0.3)
    for number in range(60):
        os.stat(mount.path / "d" / f"f{number}")
    hits = statistics(mount)["events"]["ahead_hits"]
    assert hits > 50
    for number in range(60):
        (served / "d" / f"f{number}").write_bytes(b"")
    changed = time.monotonic()
    left = set(range(60))
    while left:
        asked = time.monotonic()
        for number in list(left):
            if os.stat(mount.path / "d" / f"f{number}").st_size == 0:
                left.discard(number)
        # The bound itself is tested in virtual time; a loaded machine adds to it.
        assert not left or asked - changed < 2.0, left


def test_what_a_program_here_does_it_sees_at_once(serve: Serve, served: Path) -> None:
    mount = serve(served)
    chosen = random.Random(3)
    here = {f"f{number}": len(content(number, 0)) for number in range(60)}
    directory = mount.path / "d"
    for step in range(600):
        name = f"f{chosen.randrange(60)}"
        kind = chosen.randrange(6)
        if kind == 0:
            (directory / name).write_bytes(bytes(step))
            here[name] = step
        elif kind == 1 and name in here:
            os.truncate(directory / name, step)
            here[name] = step
        elif kind == 2 and name in here:
            os.unlink(directory / name)
            del here[name]
        elif kind == 3 and name in here:
            other = f"f{chosen.randrange(60)}"
            os.rename(directory / name, directory / other)
            here[other] = here.pop(name)
        elif name in here:
            assert os.stat(directory / name).st_size == here[name]
            assert len((directory / name).read_bytes()) == here[name]
        else:
            assert not (directory / name).exists()
    assert {entry.name: entry.stat().st_size for entry in os.scandir(directory)} == here


READER = """
import errno, mmap, os, random, sys
chosen = random.Random(int(sys.argv[2]))
for _ in range(400):
    path = f"{sys.argv[1]}/d/f{chosen.randrange(8)}"
    try:
        file = open(path, "rb")
    except OSError as error:
        # Replaced again while the kernel walked a second time, which is as often as it does.
        if error.errno != errno.ESTALE:
            raise
        continue
    with file:
        kind = chosen.randrange(3)
        if kind == 0 and os.fstat(file.fileno()).st_size:
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
                assert memory[0:1].isdigit()
        elif kind == 1:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert len(file.read()) >= 800
"""


def test_readers_mappers_and_writers_of_the_same_files_never_stop(serve: Serve, served: Path) -> None:
    """Pages are given to a kernel that may be about to lock them: nobody may wait for each other."""
    mount = serve(served)
    readers = [subprocess.Popen([sys.executable, "-c", READER, str(mount.path), str(seed)], stderr=subprocess.PIPE) for seed in range(3)]
    stop = threading.Event()

    def change() -> None:
        version = 0
        while not stop.wait(0.002):
            version += 1
            number = version % 8
            new = served / "new"
            new.write_bytes(content(number, version % 50))
            new.rename(served / "d" / f"f{number}")

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for reader in readers:
            _, errors = reader.communicate(timeout=60)
            assert reader.returncode == 0, errors.decode()
    finally:
        stop.set()
        changer.join()
        for reader in readers:
            reader.kill()
            reader.communicate()
    assert statistics(mount)["events"]["stored"] > 0


def test_pages_given_unasked_can_be_mapped(serve: Serve, served: Path) -> None:
    mount = serve(served)
    with open(mount.path / "d/f9", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        assert bytes(memory) == content(9, 0)
    assert "READ" not in statistics(mount)["requests"]
