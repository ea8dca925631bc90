"""Leases through a real kernel: who is asked by a second walk, and how soon programs see what others do to the server's files."""

from __future__ import annotations

import mmap
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from resmgr.testing.fusemount import Served
from tests.resmgr.waiting import until
from tests.suites.manyfiles import Directory

pytestmark = pytest.mark.priv

Serve = Callable[..., Served]
LONG = {"entry_valid": 60, "attr_valid": 60, "negative_valid": 60}
"""Validities with which nothing would be seen that is not told: `until` waits for half as long."""


@pytest.fixture
def served(tmp_path: Path) -> Path:
    directory = tmp_path / "served"
    for number in range(5):
        (directory / f"d{number}").mkdir(parents=True)
        for file in range(20):
            (directory / f"d{number}" / f"f{file}").write_bytes(b"x" * file)
    return directory


def statistics(mount: Served) -> dict[str, dict[str, int]]:
    return cast("dict[str, Any]", mount.order("statistics"))


def walk(mount: Served) -> str:
    return subprocess.run(["find", ".", "-printf", "%p %s %m %n\n"], cwd=mount.path, capture_output=True, text=True, check=True).stdout


def served_messages(mount: Served) -> int:
    """Requests of the kernel that went on to the server."""
    found = statistics(mount)
    asked = sum(count for name, count in found["requests"].items() if name in ("LOOKUP", "GETATTR", "OPENDIR", "READDIR", "READDIRPLUS"))
    return asked - found["events"].get("lease_hits", 0)


def test_a_second_walk_asks_nobody(serve: Serve, served: Path) -> None:
    mount = serve(served)
    first = walk(mount)
    # Directories' attributes are sure from when they were opened; the kernel hears that with its next question.
    assert walk(mount) == first
    before = served_messages(mount)

    assert walk(mount) == first
    names = {name for name in first.split() if name.startswith("./d")}
    assert len(names) == 105
    assert served_messages(mount) == before


def test_what_others_do_is_seen_soon(serve: Serve, served: Path) -> None:
    mount = serve(served, **LONG)
    walk(mount)
    walk(mount)
    here, there = mount.path / "d1", served / "d1"
    for name in ("new", "moved"):
        assert not (here / name).exists()

    (there / "new").write_bytes(b"12345")
    until(lambda: (here / "new").exists() and os.stat(here / "new").st_size == 5)
    assert "new" in os.listdir(here)
    (there / "new").write_bytes(b"1234567")
    until(lambda: os.stat(here / "new").st_size == 7)
    (there / "new").chmod(0o600)
    until(lambda: os.stat(here / "new").st_mode & 0o777 == 0o600)
    (there / "new").rename(there / "moved")
    until(lambda: (here / "moved").exists() and not (here / "new").exists())
    (there / "moved").unlink()
    until(lambda: not (here / "moved").exists())
    assert sorted(os.listdir(here)) == sorted(os.listdir(there))
    (there / "sub").mkdir()
    until(lambda: (here / "sub").is_dir())
    (there / "sub/deep").write_bytes(b"")
    until(lambda: (here / "sub/deep").exists())
    (there / "f3").unlink()
    (there / "other").write_bytes(b"replacement")
    os.rename(there / "other", there / "f4")
    until(lambda: (here / "f4").read_bytes() == b"replacement" and not (here / "f3").exists())
    there.rename(served / "elsewhere")
    until(lambda: not here.exists() and (mount.path / "elsewhere/f4").exists())
    there = served / "elsewhere"
    (there / "after").write_bytes(b"")
    until(lambda: "after" in os.listdir(mount.path / "elsewhere"))


def test_open_files_and_mappings_see_what_others_write(serve: Serve, served: Path) -> None:
    mount = serve(served, **LONG)
    path, there = mount.path / "d2/f19", served / "d2/f19"
    os.listdir(mount.path / "d2")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 19, prot=mmap.PROT_READ) as mapped:
        assert mapped[:3] == b"xxx"
        descriptor = file.fileno()
        assert os.pread(descriptor, 3, 0) == b"xxx"
        for text in (b"abc", b"def", b"ghi"):
            with open(there, "r+b") as writer:
                writer.write(text)
            expected = text
            until(lambda: os.pread(descriptor, 3, 0) == expected)  # noqa: B023
            until(lambda: mapped[:3] == expected)  # noqa: B023


def test_what_is_done_here_is_not_told_back(serve: Serve) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        # Of a disk that is slow at the moment worker threads take care, and what they do is told.
        nothing_told_back(serve(Path(directory)), Path(directory))


def nothing_told_back(mount: Served, served: Path) -> None:
    (served / "d3").mkdir()
    here = mount.path / "d3"
    walk(mount)
    walk(mount)
    events = statistics(mount)["events"].get("lease_events", 0)

    for number in range(50):
        (here / f"own{number}").write_bytes(b"own")
        os.rename(here / f"own{number}", here / f"renamed{number}")
        os.truncate(here / f"renamed{number}", 1)
        os.utime(here / f"renamed{number}")
    (here / "dir").mkdir()
    (here / "dir").rmdir()
    for number in range(50):
        os.unlink(here / f"renamed{number}")

    assert sorted(os.listdir(here)) == sorted(os.listdir(served / "d3"))
    told = statistics(mount)["events"].get("lease_events", 0) - events
    # Truncating is always done by a thread.
    assert told <= 50


def test_a_mount_over_a_directory_is_seen(serve: Serve, served: Path) -> None:
    mount = serve(served, **LONG)
    walk(mount)
    walk(mount)
    inside = f"/proc/{mount.process.pid}/root{served}/d4"
    if mount.inside:
        subprocess.run([*mount.inside, "mount", "-t", "tmpfs", "none", f"{served}/d4"], check=True)
    until(lambda: not os.listdir(mount.path / "d4"))
    assert os.listdir(inside) == []


def test_storms_are_followed(serve: Serve, served: Path) -> None:
    """More changes than are queued, and then the truth."""
    mount = serve(served, **LONG)
    here, there = mount.path / "d0", served / "d0"
    walk(mount)
    for number in range(400):
        (there / f"s{number}").write_bytes(b"")
        if number % 2:
            (there / f"s{number}").unlink()
    until(lambda: sorted(os.listdir(here)) == sorted(os.listdir(there)))


def md5(path: Path) -> str:
    return subprocess.run(["md5sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


def test_reports_of_others(serve: Serve, served: Path) -> None:
    """What users of sshfs reported (its issues 302, 93, 88, 346), with validities with which nothing is seen that is not told."""
    mount = serve(served, **LONG)
    here, there = mount.path / "d0", served / "d0"
    walk(mount)
    # 302: sums taken here of a file that grows there: the second and the third differ, or the second is still the first.
    (there / "text").write_bytes(b"some text\n")
    sums = {md5(here / "text")}
    for number in range(8):
        with open(there / "text", "ab") as file:
            file.write(b"more %d\n" % number)
        assert md5(here / "text") == md5(here / "text") == md5(there / "text")
        sums.add(md5(here / "text"))
    assert len(sums) == 9
    # 93: a file of some KiB is appended to there: its times and its last lines here are those of before.
    (there / "file_1").write_bytes(os.urandom(2048).hex().encode())
    assert (here / "file_1").read_bytes()
    with open(there / "file_1", "ab") as file:
        file.write(b"\nrevision 2\n")
    assert (here / "file_1").read_bytes().endswith(b"revision 2\n")
    until(lambda: os.stat(here / "file_1").st_mtime_ns == os.stat(there / "file_1").st_mtime_ns)
    # 88: a file saved there by an editor (rewritten, or replaced), while it is known here: cut short, or zeros at its end.
    before = b""
    for number in range(12):
        content = b"line %d\n" % number * (300 + 37 * number if number % 3 else 20)
        if number % 2:
            (there / "saved").write_bytes(content)
        else:
            (there / ".saved.swp").write_bytes(content)
            os.replace(there / ".saved.swp", there / "saved")
        # What is read more often may be opened here for some milliseconds after it was replaced there (protocol/delegation.md): as it was.
        seen = (here / "saved").read_bytes()
        assert seen in (content, before)
        until(lambda: (here / "saved").read_bytes() == content)  # noqa: B023
        before = content
        until(lambda: os.stat(here / "saved").st_size == len(content))  # noqa: B023
    # 346: directories that were removed there are still listed here, and cannot be entered or removed.
    for _ in range(5):
        (there / "phantom").mkdir()
        (there / "phantom/inside").write_bytes(b"")
        until(lambda: os.listdir(here / "phantom") == ["inside"] if (here / "phantom").exists() else False)
        (there / "phantom/inside").unlink()
        (there / "phantom").rmdir()
        until(lambda: "phantom" not in os.listdir(here) and not (here / "phantom").exists())
        os.mkdir(here / "phantom")
        os.rmdir(here / "phantom")


def test_positions_outlast_another_listing(serve: Serve, served: Path) -> None:
    """What telldir(3) told leads there, though somebody else read the directory after it had changed."""
    mount = serve(served, **LONG)
    here, there = mount.path / "d1", served / "d1"
    for number in range(200):
        (there / f"more{number}").touch()
    walk(mount)
    stream = Directory(str(here))
    told: list[tuple[int, bytes | None]] = [(stream.tell(), stream.read())]
    while told[-1][1] is not None:
        told.append((stream.tell(), stream.read()))
    assert len(told) == 2 + 220 + 1

    for number in range(0, 200, 3):
        (there / f"more{number}").unlink()
    for number in range(100):
        (there / f"new{number}").touch()
    until(lambda: not (here / "more0").exists() and (here / "new99").exists())
    for _ in range(2):
        names = set(os.listdir(os.fsencode(here)))
        assert len(names) == 220 - 67 + 100
    for position, name in told:
        stream.seek(position)
        if name in names:
            # Or what was put in between.
            found = stream.read()
            assert found == name or found in names - {name for _, name in told}
    stream.close()

    def kept() -> bool:
        before = served_messages(mount)
        assert {os.fsencode(name) for name in os.listdir(here)} == names
        return served_messages(mount) == before

    # Alone it is kept again, and whoever comes is answered from it.
    until(kept)
