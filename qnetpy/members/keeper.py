"""Stores what membership keeps, in a worker thread, one writing at a time, so that the latest wins."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from qnetpy.members.store import Kept, Store
from resmgr.dispatch import Dispatch

log = logging.getLogger(__name__)


class Keeper:
    """*kept* gives the state of now. `close` stores what is not stored yet, and blocks for that. Counts `not_stored`."""

    def __init__(self, dispatch: Dispatch, kept: Callable[[], Kept], store: Store, counters: Counter[str]) -> None:
        self._dispatch = dispatch
        self._kept = kept
        self._store = store
        self._counters = counters
        self._writing = False
        self._dirty = False
        self._closed = False

    def save(self) -> None:
        """Store everything soon."""
        self._dirty = True
        if not self._writing and not self._closed:
            self._writing = True
            self._dispatch.call_soon(self._write)

    def close(self) -> None:
        """OSError when it could not be stored."""
        self._closed = True
        if self._dirty:
            self._dirty = False
            self._store.save(self._kept())

    def _write(self) -> None:
        if self._closed:
            return
        self._dirty = False
        kept = self._kept()
        self._dispatch.call_blocking(lambda: self._store.save(kept), self._written)

    def _written(self, result: BaseException | None) -> None:
        self._writing = False
        if isinstance(result, OSError):
            self._counters["not_stored"] += 1
            log.error("membership is not stored: %s", result.strerror or result)
        elif isinstance(result, BaseException):
            raise result
        if self._dirty:
            self.save()
