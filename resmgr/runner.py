"""A dispatch in real time for the length of a block. What it is, and how it waits: `resmgr.realtime`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from resmgr.company import STRETCH_ALONE
from resmgr.realtime import SPIN_DEFAULT, THREADS_DEFAULT, TrioDispatch

__all__ = ["SPIN_DEFAULT", "STRETCH_ALONE", "TrioDispatch", "open_dispatch"]


@trio.lowlevel.enable_ki_protection
async def _run(dispatch: TrioDispatch) -> None:
    """Ctrl-C waits for a checkpoint: it must not end a machine half way."""
    await dispatch.run()


@asynccontextmanager
async def open_dispatch(*, spin: float = SPIN_DEFAULT, threads: int = THREADS_DEFAULT, guest: bool = False) -> AsyncIterator[TrioDispatch]:
    """Run a dispatch for the length of the block. *spin*: seconds of looking before a sleep; *threads*: cap for `call_blocking`; *guest*:
    Trio is the guest of another loop (`trio.lowlevel.start_guest_run`), which must not stand still for milliseconds.

    On the way out its tasks are cancelled and its descriptors let go. An exception that left a callback leaves this block.
    """
    dispatch: TrioDispatch | None = None
    try:
        async with trio.open_nursery() as nursery:
            dispatch = TrioDispatch(nursery, spin, threads, guest)
            nursery.start_soon(_run, dispatch)
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
