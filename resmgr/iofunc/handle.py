"""Handles: what a client holds of a manager (base handles and open control blocks), and clients. `handletable` has all of them.

Subclasses add what a handle is; they may be anybody's, so these two stay Python (docs/decisions/compiled-modules.md).
"""

from __future__ import annotations

from collections.abc import Callable

from resmgr.channel import ClientInfo


class Handle:
    """One open thing. Subclasses add what it is, and override `release`."""

    __slots__ = ("at_close", "busy", "client", "closed", "lent", "number")

    def __init__(self) -> None:
        self.number = 0
        self.client: Client | None = None
        self.lent = False
        self.closed = False
        self.busy = 0
        """Uses by worker threads; `release` waits until it is 0."""
        self.at_close: dict[object, Callable[[Handle], None]] | None = None
        """Called once when it is closed, before `release`: locks and whatever waits for something. The key is who wants to be called."""

    def release(self) -> None:
        """Called once, when nothing uses the handle any more: give back descriptors and the like. Does not raise."""

    def hold(self) -> None:
        self.busy += 1

    def drop(self) -> None:
        self.busy -= 1
        if self.closed and self.busy == 0:
            self.release()

    def close(self) -> None:
        """Idempotent; `release` runs now, or when the last user drops."""
        if not self.closed:
            self.closed = True
            calls, self.at_close = self.at_close, None
            for call in () if calls is None else calls.values():
                call(self)
            if self.busy == 0:
                self.release()


class Client:
    """What a manager knows of one client connection. Subclasses add what they cache per client."""

    __slots__ = ("gone", "handles", "info")

    def __init__(self, info: ClientInfo) -> None:
        self.info = info
        self.handles: set[Handle] = set()
        self.gone = False

    def same_as(self, other: Client) -> bool:
        """Whether *other* acts with the same rights from the same node."""
        mine, theirs = self.info, other.info
        a, b = mine.credentials, theirs.credentials
        return mine.nd == theirs.nd and a.uid == b.uid and a.gid == b.gid and a.groups == b.groups
