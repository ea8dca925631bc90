"""How a task of Trio leaves that was cancelled, for who tells that from a failure and runs no tasks itself."""

from __future__ import annotations

import trio


def is_cancelled(error: BaseException) -> bool:
    """*error* is how a task leaves that whoever runs it has cancelled, or a group of nothing else. It must be raised on."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_cancelled(one) for one in error.exceptions)
    return isinstance(error, trio.Cancelled)
