"""A mount that is handed over while the kernel waits to do what it was told: the next daemon answers what it waits for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resmgr.testing.fusemount import Served
from tests.resmgr.waiting import until

pytestmark = pytest.mark.priv


def waits_for_a_lock(pid: object) -> bool:
    return any("inval_entry" in (thread / "stack").read_text() for thread in Path(f"/proc/{pid}/task").iterdir())


def test_what_a_process_of_the_mount_waits_for_is_left_to_the_next_daemon(serve: Callable[..., Served]) -> None:
    served = serve()
    served.order("write", path="file", data="x")
    until(lambda: len(helpers(served)) == 2)
    served.fault(operation="lookup", name="slow", hang=True, deaf=True)
    with subprocess.Popen([sys.executable, "-c", f"import os; os.stat({str(served.path / 'slow')!r})"], stderr=subprocess.PIPE) as program:
        until(lambda: served.order("status") != [])
        served.order("invalidate", path="file")
        until(lambda: waits_for_a_lock(helpers(served)[0]))
        served.order("hand over")
        until(lambda: served.order("handed") is True)
        assert program.poll() is None, "nobody has answered it"
        served.kill()
        assert program.wait(10) != 0


def helpers(served: Served) -> list[int]:
    found = served.order("helpers")
    assert isinstance(found, list)
    return found
