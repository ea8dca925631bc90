"""File systems by their numbers, which change hands when something is unmounted; and who is asked when an open file is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from resmgr.hostfs.device import Device
from resmgr.iofunc.lanes import Lanes
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.virtual import VirtualDispatch


@pytest.mark.parametrize(("kind", "counts"), [(b"ext4", True), (b"tmpfs", True), (b"proc", False), (b"sysfs", False), (b"fuse.x", False)])
def test_on_which_kinds_having_it_open_is_enough(kind: bytes, counts: bool) -> None:
    assert Device(1, kind, 0, Lanes(VirtualDispatch(1))).open_counts is counts


@pytest.mark.priv
def test_an_open_file_is_read_by_whoever_has_it_open(host: HostDirectory) -> None:
    """As at home: its mode is looked at when it is opened."""
    path = host.root / "f"
    path.write_bytes(b"for all, at first")
    user = host.client(1234)
    entry = user.open(b"f")
    path.chmod(0o600)

    assert user.read(entry.target, entry.ocb, 0, 100) == b"for all, at first"


SCRIPT = """
import os, subprocess, sys
from pathlib import Path
from resmgr.access import Policy
from resmgr.channel import Kernel
from resmgr.hostfs.manager import HostFs
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.virtual import VirtualDispatch
from resmgr.users import Accounts

root = Path(sys.argv[1])
place = root / "m"
dispatch = VirtualDispatch(1)
kernel = Kernel(dispatch, "test")
fs = HostFs(kernel, Policy(Accounts(dispatch.now)), root=str(root))
host = HostDirectory(root, dispatch, kernel, fs)
fs.set_policy(host.policy())
user = host.client(1234)

subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
number = place.stat().st_dev
(place / "f").write_bytes(b"pages")
assert user.get(b"m/f") == b"pages"
kind = fs.devices.get(number).kind
subprocess.run(["umount", place], check=True)
subprocess.run(["mount", "-t", "proc", "none", place], check=True)
dispatch.run_for(1.0)
with subprocess.Popen(["sleep", "100"]) as other:
    code = user.get(b"m/%d/stat" % other.pid).rpartition(b")")[2].split()[23]
    other.kill()
print(kind.decode(), place.stat().st_dev == number, fs.devices.get(number).kind.decode(), code.decode())
fs.destroy()
"""
"""Where the code of a process begins is told to those who may trace it; to others it is 1. The kernel asks when /proc is read."""


@pytest.mark.priv
def test_a_number_that_another_file_system_gets_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    told = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", SCRIPT, tmp_path], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    ).stdout.split()
    if told[1] != "True":
        pytest.skip("this kernel gave the new file system another number")

    assert told == ["tmpfs", "True", "proc", "1"]
