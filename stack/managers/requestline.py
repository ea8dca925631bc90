"""A line of requests in which nobody stands behind all that somebody else has asked: users take turns, and each has so many places.

Root has its places whatever others do. All users of another node are one user here, because their node names them as it likes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from resmgr.channel import ND_LOCAL, ClientInfo

T = TypeVar("T")
ROOT = (ND_LOCAL, 0)


def _always(request: object) -> bool:
    return True


def user_of(info: ClientInfo) -> tuple[int, int]:
    """Node and number; the number is 0 for all users of another node."""
    return (info.nd, info.credentials.uid if info.nd == ND_LOCAL else 0)


class RequestLine(Generic[T]):
    """At most *each* requests of one user, and *others* of all users but root. `refused` counts what had no place."""

    def __init__(self, each: int, others: int) -> None:
        self._each = each
        self._others = others
        self._waiting: dict[tuple[int, int], deque[T]] = {}
        """By user; whose turn it is comes first."""
        self.refused = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, user: tuple[int, int], request: T) -> bool:
        """Put it at the end of the user's own. False when there is no place."""
        own = self._waiting.get(user, ())
        others = sum(len(waiting) for one, waiting in self._waiting.items() if one != ROOT)
        if len(own) >= self._each or (user != ROOT and others >= self._others):
            self.refused += 1
            return False
        self._waiting.setdefault(user, deque()).append(request)
        return True

    def take(self, ready: Callable[[T], bool] = _always) -> T | None:
        """The next request that is *ready*; its user goes behind the others. None when there is none. *ready* is asked in the order of
        turns, and of one user in the order in which they came."""
        for user, waiting in self._waiting.items():
            for place, request in enumerate(waiting):
                if ready(request):
                    del waiting[place], self._waiting[user]
                    if waiting:
                        self._waiting[user] = waiting
                    return request
        return None
