"""A dispatch in real time for the length of a block. What it is, and how it waits: `resmgr.realtime`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from resmgr.company import STRETCH_ALONE
from resmgr.realtime import SPIN_DEFAULT, THREADS_DEFAULT, TrioDispatch

__all__ = ["SPIN_DEFAULT", "STRETCH_ALONE", "TrioDispatch", "open_dispatch"]


@asynccontextmanager
async def open_dispatch(*, spin: float = SPIN_DEFAULT, threads: int = THREADS_DEFAULT) -> AsyncIterator[TrioDispatch]:
    """Run a dispatch for the length of the block. *spin*: seconds of looking before a sleep; *threads*: cap for `call_blocking`.

    On the way out its tasks are cancelled and its descriptors let go. An exception that left a callback leaves this block.
    """
    dispatch: TrioDispatch | None = None
    try:
        async with trio.open_nursery() as nursery:
            dispatch = TrioDispatch(nursery, spin, threads)
            nursery.start_soon(dispatch.run)
            yield dispatch
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
    finally:
        # Not before the nursery has ended: its tasks still run, and may use descriptors, while they are being cancelled.
        if dispatch is not None:
            dispatch.close()
