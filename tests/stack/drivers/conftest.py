"""What tests of drivers on real interfaces share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from resmgr.runner import TrioDispatch, open_dispatch


@pytest.fixture
async def dispatch() -> AsyncIterator[TrioDispatch]:
    """Of a driver that leaves no descriptor on it."""
    async with open_dispatch() as made:
        yield made
        assert made.statistics().descriptors == 0
