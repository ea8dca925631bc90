"""A file under two names through a real kernel: programs here that have it open by one see what those that have it by the other do."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from resmgr.testing.fusemount import Served
from tests.resmgr.waiting import until

pytestmark = pytest.mark.priv

Serve = Callable[..., Served]
LONG = {"entry_valid": 60, "attr_valid": 60, "negative_valid": 60}
"""Validities with which nothing would be seen that is only asked for again."""


@pytest.fixture
def served(tmp_path: Path) -> Path:
    directory = tmp_path / "served"
    directory.mkdir()
    (directory / "f").write_bytes(b"old")
    return directory


@pytest.mark.parametrize("how", ["linked", "renamed"])
@pytest.mark.parametrize("options", [{}, LONG, {"lease": 0}], ids=["leased", "long", "not leased"])
def test_what_is_done_by_one_name_is_seen_by_the_other(serve: Serve, served: Path, how: str, options: dict[str, int]) -> None:
    mount = serve(served, **options).path
    mount_f, mount_g = mount / "f", mount / "g"
    with open(mount_f, "r+b", buffering=0) as one:
        assert one.read() == b"old"
        (os.link if how == "linked" else os.rename)(served / "f", served / "g")
        with open(mount_g, "r+b", buffering=0) as other, mmap.mmap(other.fileno(), 3, prot=mmap.PROT_READ) as mapped:
            assert other.read() == b"old"
            assert os.path.sameopenfile(one.fileno(), other.fileno())
            for number in range(20):
                written, longer = b"%03d" % number, 4 + number
                os.pwrite(one.fileno(), written, 0)
                assert os.pread(other.fileno(), 3, 0) == written
                assert mapped[:] == written
                os.pwrite(other.fileno(), b"more", number)
                assert os.fstat(one.fileno()).st_size == longer
                assert os.stat(mount_g).st_size == longer
                assert os.pread(one.fileno(), 100, 0)[number:] == b"more"
            os.ftruncate(one.fileno(), 3)
            assert os.fstat(other.fileno()).st_size == 3
    assert (served / "g").read_bytes()[:3] == mount_g.read_bytes()


def test_the_name_of_before_is_gone_soon(serve: Serve, served: Path) -> None:
    mount = serve(served, **LONG).path
    with open(mount / "f", "rb"):
        os.rename(served / "f", served / "g")
        assert (mount / "g").read_bytes() == b"old"
        until(lambda: not (mount / "f").exists())
        os.rename(mount / "g", mount / "f")
        assert os.listdir(served) == ["f"]
        assert (mount / "f").read_bytes() == b"old"
    assert not (mount / "g").exists()


def test_one_of_two_names_is_given_to_another_file(serve: Serve, served: Path) -> None:
    os.link(served / "f", served / "g")
    mount = serve(served, **LONG).path
    for name in ("f", "g"):
        assert (mount / name).read_bytes() == b"old"
    for first, last in (("f", "g"), ("g", "f")):
        (served / "new").write_bytes(b"new " + first.encode())
        os.rename(served / "new", served / first)
        until(lambda: (mount / first).read_bytes() == b"new " + first.encode())  # noqa: B023
        assert os.stat(mount / last).st_size == 3
        assert (mount / last).read_bytes() == b"old"
        (mount / last).chmod(0o600)
        assert (served / first).stat().st_mode & 0o777 != 0o600
        (served / first).unlink()
        os.link(served / last, served / first)
        until(lambda: (mount / first).read_bytes() == b"old")  # noqa: B023
