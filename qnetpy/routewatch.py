"""Messages that insist on an interface: whether they get through, and when to stop waiting. One watch per link.

A route without a path is *waiting* for as long as a silent node may be silent before it is down; then it has *failed*, and what was sent by
it ends with ENETDOWN, as a node that is down ends it with EHOSTDOWN. The node itself may be up all the while, over other paths.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from resmgr.carrier import WAITING
from resmgr.dispatch import Dispatch


class RouteWatch:
    """*stuck*: whether no path of that route answers. *failed* is called when a route that somebody asked about has been so for *patience*
    seconds."""

    def __init__(self, dispatch: Dispatch, stuck: Callable[[int], bool], patience: float, failed: Callable[[], None]) -> None:
        self._dispatch = dispatch
        self._stuck = stuck
        self._patience = patience
        self._failed = failed
        self._since: dict[int, float] = {}
        """When each route that is stuck was first found so."""

    def state(self, route: int) -> int:
        """0, WAITING or ENETDOWN."""
        if not self._stuck(route):
            self._since.pop(route, None)
            return 0
        now = self._dispatch.now()
        since = self._since.get(route)
        if since is None:
            self._since[route] = now
            self._dispatch.call_at(now + self._patience, self._failed)
            return WAITING
        return errno.ENETDOWN if now >= since + self._patience else WAITING
