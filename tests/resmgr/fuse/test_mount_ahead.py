"""Files opened ahead through a real kernel: what a program that reads one file after another waits for."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from resmgr.testing.fusemount import Served

pytestmark = pytest.mark.priv

Serve = Callable[..., Served]
FILES = 100


@pytest.fixture
def served() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        os.chmod(directory, 0o755)
        (Path(directory) / "d").mkdir()
        for number in range(FILES):
            (Path(directory) / f"d/f{number:03}").write_bytes(b"%d\n" % number * 100)
        yield Path(directory)


def events(mount: Served) -> dict[str, int]:
    return cast("dict[str, dict[str, int]]", mount.order("statistics"))["events"]


@pytest.mark.parametrize("how", ["cp", "grep", "sorted"])
def test_files_read_one_after_another_are_opened_ahead(serve: Serve, served: Path, tmp_path: Path, how: str) -> None:
    mount = serve(served)
    folder = mount.path / "d"
    if how == "cp":
        subprocess.run(["cp", "-r", folder, tmp_path / "copy"], check=True)
        for number in range(FILES):
            assert (tmp_path / f"copy/f{number:03}").read_bytes() == b"%d\n" % number * 100
    elif how == "grep":
        out = subprocess.run(["grep", "-rc", "^4", folder], check=True, stdout=subprocess.PIPE, text=True).stdout
        assert sum(line.endswith(":100") for line in out.splitlines()) == 11
    else:
        for name in sorted(os.listdir(folder)):
            assert (folder / name).read_bytes() == b"%d\n" % int(name[1:]) * 100
    told = events(mount)
    assert told["open_ahead_hits"] > FILES * 0.8
    assert told.get("open_ahead_unused", 0) < 10


def test_cp_goes_by_inode_numbers(serve: Serve, tmp_path: Path) -> None:
    """Which are neither in the order of the listing nor of the names, if the files were not made in that."""
    (tmp_path / "served/d").mkdir(parents=True)
    numbers = list(range(FILES))
    random.Random(1).shuffle(numbers)
    for number in numbers:
        (tmp_path / f"served/d/f{number:03}").write_bytes(b"%d\n" % number)
    mount = serve(tmp_path / "served")
    subprocess.run(["cp", "-r", mount.path / "d", tmp_path / "copy"], check=True)
    for number in range(FILES):
        assert (tmp_path / f"copy/f{number:03}").read_bytes() == b"%d\n" % number
    assert events(mount)["open_ahead_hits"] > FILES * 0.7


def test_names_that_were_never_listed(serve: Serve, served: Path) -> None:
    """Nor is the directory open: LOOKUPs that follow each other have it listed."""
    mount = serve(served)
    for number in range(FILES):
        assert (mount.path / f"d/f{number:03}").read_bytes() == b"%d\n" % number * 100
    told = events(mount)
    assert told["open_ahead_hits"] > FILES * 0.8


def test_several_directories_in_turn(serve: Serve, served: Path) -> None:
    for folder in range(8):
        (served / f"e{folder}").mkdir()
        for number in range(FILES // 2):
            (served / f"e{folder}/f{number:03}").write_bytes(b"%d\n" % number)
    mount = serve(served)
    for number in range(FILES // 2):
        for folder in range(8):
            assert (mount.path / f"e{folder}/f{number:03}").read_bytes() == b"%d\n" % number
    assert events(mount)["open_ahead_hits"] > 8 * FILES / 2 * 0.7


@pytest.mark.parametrize("what", ["unlink", "rename", "replace", "truncate"])
def test_what_was_read_and_is_changed_at_once_does_not_wait_for_itself(serve: Serve, served: Path, what: str) -> None:
    """As tar --remove-files does it: no message is put off by the server until the file is closed."""
    mount = serve(served)
    folder = mount.path / "d"
    for name in sorted(os.listdir(folder)):
        (folder / name).read_bytes()
        if what == "unlink":
            (folder / name).unlink()
        elif what == "rename":
            (folder / name).rename(folder / ("x" + name))
        elif what == "replace":
            (folder / "new").write_bytes(b"new")
            (folder / "new").replace(folder / name)
        else:
            os.truncate(folder / name, 1)
    assert events(mount)["open_ahead_hits"] > FILES * 0.8
    assert cast("dict[str, int]", mount.order("counters"))["delegations_waits"] < FILES * 0.1
