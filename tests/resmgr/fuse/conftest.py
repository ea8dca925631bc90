"""A machine fed by the test, and real mounts served by another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resmgr.testing.fusemount import Served
from resmgr.testing.fuserig import Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start a mount: serve(directory=None, **options)."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    started: list[Served] = []

    def start(directory: Path | None = None, **options: object) -> Served:
        served = Served(mountpoint, options, directory)
        started.append(served)
        return served

    yield start
    for served in started:
        served.close()
