"""Whole nodes for an ordinary user of this machine, in a user namespace that has root only.

The tests run as root and become that user in a mount namespace of their own. There /dev/fuse is open or closed as each test wants it, and
everybody may pass to the Python that runs them, though it may live in root's home.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qnetpy.testing import cluster as kit

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
UID = 54321
"""Not in /etc/passwd, without subordinate users."""
ROOT = Path(__file__).parents[2]
QNET = "-m", "qnetpy.cli.main"
BECOME = """
set -e
stage=$1 mode=$2 uid=$3 home=$4 closed=$5
shift 5
mount --make-rprivate /
mount -t tmpfs -o mode=0755 none "$stage"
mknod "$stage/fuse" c 10 229
chmod "$mode" "$stage/fuse"
mount --bind "$stage/fuse" /dev/fuse
mkdir -m 0700 "$stage/home" && chown "$uid:$uid" "$stage/home"
mount --bind "$stage/home" "$home"
if [ -n "$closed" ]; then
  number=0
  while [ "$1" != -- ]; do  # directories below the closed one that must be reached
    mkdir -p "$stage/kept$number" && mount --bind "$1" "$stage/kept$number"
    paths[number++]=$1
    shift
  done
  mount -t tmpfs -o mode=0711 none "$closed"
  for at in "${!paths[@]}"; do mkdir -p "${paths[at]}" && mount --bind "$stage/kept$at" "${paths[at]}"; done
fi
shift
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all --bounding-set=-all "$@"
"""
As = Callable[..., str]


def closed_above(path: Path) -> Path | None:
    """The highest directory on the way to *path* that others may not pass."""
    return next((place for place in reversed(path.parents) if not place.stat().st_mode & 0o001), None)


@pytest.fixture
def as_user(tmp_path_factory: pytest.TempPathFactory) -> As:
    lacking = kit.missing()
    if lacking:
        pytest.skip(f"needs rights: {lacking}")
    stage = tmp_path_factory.mktemp("stage")
    needed = sorted({Path(os.path.realpath(path)) for path in (sys.prefix, sys.base_prefix, ROOT)} | {Path(sys.prefix)})
    shut = {closed_above(path): path for path in needed}
    closed = next((place for place in shut if place is not None), None)
    below = [str(path) for path in needed if closed is not None and closed in path.parents]

    def run(*argv: str, fuse: str = "666", status: int = 0) -> str:
        """What `python ARGV` says as that user, where /dev/fuse has the mode *fuse*."""
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/mnt", "TMPDIR": "/mnt", "XDG_RUNTIME_DIR": "/mnt", "LANG": "C.UTF-8"}
        become = ["unshare", "-m", "bash", "-c", BECOME, "bash", str(stage), fuse, str(UID), "/mnt", str(closed or ""), *below, "--"]
        done = subprocess.run([*become, sys.executable, *argv], capture_output=True, text=True, check=False, timeout=120, env=env, cwd="/")
        assert done.returncode == status, (argv, done.stdout, done.stderr)
        return done.stdout + done.stderr

    return run


def test_a_device_that_is_closed_is_one_line(as_user: As) -> None:
    said = as_user(*QNET, "cluster", "up", str(ROOT / "clusters" / "three"), fuse="600", status=1)
    assert said == "qnet cluster: up: /dev/fuse: permission denied; run as root, or: chmod 666 /dev/fuse\n"


def test_the_demo_shows_every_step_to_an_ordinary_user(as_user: As) -> None:
    shown = as_user("-m", "qnetpy.cluster.demo").splitlines()
    assert len([line for line in shown if line[:1].isdigit()]) == 11, "all but the one about users of the nodes"
    assert shown[-1].startswith("Everything is gone again")
