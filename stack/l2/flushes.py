"""How often topology changes may make a bridge forget its stations. Pure: `now` is an argument.

After each it floods until the stations have spoken again, so that whoever sends topology changes turns a bridge into a hub. The first
AT_ONCE of a port are done at once, as the protocol wants it; then those that come together are one, and wait for 1 / PER_SECOND seconds at
most. None is left out: what is behind a port may really have changed.
"""

from __future__ import annotations

from collections.abc import Iterable

from resmgr.bucket import TokenBucket

AT_ONCE = 10
PER_SECOND = 0.5


class FlushBound:
    """Of all ports of a bridge. `put_off` counts those that had to wait."""

    def __init__(self) -> None:
        self.put_off = 0
        self._buckets: dict[int, TokenBucket] = {}
        self._waiting: dict[int, TokenBucket] = {}

    def due(self, wanted: Iterable[int], now: float) -> list[int]:
        """Ports to be flushed now: of *wanted*, and of those that have waited."""
        waited = list(self._waiting)
        for port in wanted:
            if port in self._waiting:
                self.put_off += 1
            else:
                self._waiting[port] = self._buckets.setdefault(port, TokenBucket(PER_SECOND, AT_ONCE))
        done = [port for port, bucket in self._waiting.items() if bucket.take(now)]
        self.put_off += sum(port not in done and port not in waited for port in self._waiting)
        for port in done:
            del self._waiting[port]
        return done

    def next_timeout(self) -> float | None:
        return min((bucket.ready_at() for bucket in self._waiting.values()), default=None)

    def forget(self, port: int) -> None:
        """It is no port any more."""
        self._waiting.pop(port, None)
        self._buckets.pop(port, None)
