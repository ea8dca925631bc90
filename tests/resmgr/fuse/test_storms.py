"""Directories in which names change faster than anybody is served by hearing of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from resmgr.fuse.inode import Node
from resmgr.fuse.storms import DIRECTORIES_MAX, NAMES_MAX, OFTEN, REPEATED_MAX, REST, Resting, Storm
from resmgr.testing.fusemount import Served
from resmgr.testing.fuserig import Rig

Serve = Callable[..., Served]
LONG = 60.0
"""Seconds. It takes five on a machine with nothing else to do; six hundred files, eight in a second, would take longer."""
EXCHANGE = """
import ctypes, sys
libc = ctypes.CDLL(None)
one, two = (name.encode() for name in sys.argv[1:])
print("begins", flush=True)
while libc.renameat2(-100, one, -100, two, 2) == 0:
    pass
"""


def test_the_same_names_over_and_over_are_a_storm() -> None:
    storm = Storm()
    assert not any(storm.event(b"ab"[number % 2 :], 5.0) for number in range(REPEATED_MAX + 2 * OFTEN))
    assert storm.event(b"b", 5.9)


def test_many_names_and_slow_changes_are_none() -> None:
    storm = Storm()
    # Made, moved, removed, thousands in a second.
    assert not any(storm.event(b"%d" % (number // 4), 5.0) for number in range(40 * NAMES_MAX))
    storm = Storm()
    assert not any(storm.event(b"a", number / REPEATED_MAX) for number in range(10 * REPEATED_MAX))


def test_a_directory_rests_for_a_while(rig: Rig) -> None:
    rig.fs.add(b"d/f", b"")
    root = rig.machine.nodes.root
    resting = Resting()
    assert not resting.rests(root, 5.0)
    resting.rest(root, 5.0)
    assert resting.rests(root, 5.0 + REST - 0.1)
    assert not resting.rests(root, 5.0 + REST)
    resting.rest(root, 5.0)
    for number in range(DIRECTORIES_MAX):
        resting.rest(Node(number + 2, root, b"", root.server, root.attr), 5.0)
    assert not resting.rests(root, 5.0)


@pytest.mark.priv
def test_programs_go_on_while_others_exchange_names(serve: Serve, tmp_path: Path) -> None:
    """Thousands of files are read in a second, where it were three to eight."""
    there = tmp_path / "served/d"
    there.mkdir(parents=True)
    for number in range(6):
        (there / f"f{number}").write_bytes(b"x")
    mount = serve(tmp_path / "served")
    here = mount.path / "d"
    names = sorted(path.name for path in here.iterdir())
    argv = [sys.executable, "-c", EXCHANGE]
    storms = [subprocess.Popen([*argv, f"f{number}", f"f{number + 1}"], cwd=there, stdout=subprocess.PIPE) for number in (0, 2)]
    try:
        for one in storms:
            assert one.stdout is not None
            assert one.stdout.readline() == b"begins\n"
        end = time.monotonic() + LONG
        for _ in range(100):
            assert sorted(path.name for path in here.iterdir()) == names
            assert [(here / name).read_bytes() for name in names] == [b"x"] * 6
            assert time.monotonic() < end, "too slow"
        assert all(one.poll() is None for one in storms)
    finally:
        for one in storms:
            one.kill()
            one.communicate()
    events = cast("dict[str, Any]", mount.order("statistics"))["events"]
    assert events["lease_flood"] >= 1
