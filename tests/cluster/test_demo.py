"""The demo is what a newcomer sees first: it must work, in time, and leave nothing."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from qnetpy.testing import cluster as kit

SECONDS = 120.0
STEPS = 12


@pytest.mark.cluster
@pytest.mark.priv
def test_the_demo_shows_every_step() -> None:
    lacking = kit.missing()
    if lacking:
        pytest.skip(f"needs rights: {lacking}")
    begin = time.monotonic()
    result = subprocess.run([sys.executable, "-m", "qnetpy.cluster.demo"], capture_output=True, text=True, timeout=2 * SECONDS, check=False)
    assert result.stderr == ""
    assert result.returncode == 0
    shown = [line for line in result.stdout.splitlines() if line[:1].isdigit()]
    assert len(shown) == STEPS, shown
    assert result.stdout.splitlines()[-1].startswith("Everything is gone again")
    assert time.monotonic() - begin < SECONDS
