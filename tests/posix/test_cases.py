"""The same system calls on a mount of hostfs and on the file system behind it: results and errors must be equal (docs/posix.md)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from resmgr.testing.fusemount import Served
from tests.posix.cases import CASES

pytestmark = pytest.mark.priv

USER = 1234
MAY_DIFFER = ("server", "rights_are_asked")
"""What was looked up a moment ago may be told from memory, although the directory's mode forbids it now: the first of its last results."""


def run(directory: Path, uid: int) -> dict[str, object]:
    command = [sys.executable, "-m", "tests.posix.cases", str(directory), str(uid)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120)
    return cast(dict[str, object], json.loads(done.stdout))


@pytest.fixture(scope="module")
def results() -> Iterator[dict[tuple[str, int], dict[str, object]]]:
    """Results by where ("local", or who checks permissions on the mount) and user."""
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        top.chmod(0o755)
        found: dict[tuple[str, int], dict[str, object]] = {}
        local = top / "local"
        local.mkdir()
        for uid in (0, USER):
            found["local", uid] = run(local, uid)
        for checks, users in (("kernel+server", (0, USER)), ("server", (USER,))):
            (top / f"served-{checks}").mkdir()
            (top / f"mnt-{checks}").mkdir()
            served = Served(top / f"mnt-{checks}", {"permissions": checks}, top / f"served-{checks}")
            try:
                for uid in users:
                    found[checks, uid] = run(served.path, uid)
            finally:
                served.close()
        yield found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("checks", "uid"), [("kernel+server", 0), ("kernel+server", USER), ("server", USER)])
def test_as_at_home(results: dict[tuple[str, int], dict[str, object]], checks: str, uid: int, name: str) -> None:
    here, at_home = results[checks, uid][name], results["local", uid][name]
    assert not str(at_home).startswith(("NameError", "TypeError", "AttributeError")), at_home
    if (checks, name) == MAY_DIFFER:
        for found in cast(list[list[object]], here), cast(list[list[object]], at_home):
            del found[-1][0]
    assert here == at_home
