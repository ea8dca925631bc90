"""Peers and seeds from configuration, given by host name or IP address: for the UDP bearer, beyond the reach of mDNS.

Names are looked up in a worker thread, again and again: a seed that moves is found where it is. While a name cannot be looked up, what was
known of it stands. A host with several addresses is one hint with all of them, of which the nearest is not known: each is called.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import socket
from collections.abc import Callable, Sequence

import attrs

from qnetpy.discovery.hint import ADDRESSES_MAX, TOKEN_LENGTH, Announcement, Hint, Interface, OnHint
from resmgr.dispatch import Dispatch, Timer
from resmgr.errors import Misuse

log = logging.getLogger(__name__)

AGAIN = 60.0
"""Seconds between look-ups of a name that was found."""
RETRY_FIRST = 2.0
"""Seconds until the next look-up of a name that was not found; doubles up to AGAIN."""

LookUp = Callable[[str], Sequence[str]]
"""IP addresses of a host as text, link-local ones with %interface. Blocks. OSError when there are none."""


def look_up(host: str) -> list[str]:
    """By the resolver of this machine."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    texts = []
    for family, _, _, _, sockaddr in found:
        text = str(sockaddr[0])
        if family == socket.AF_INET6 and len(sockaddr) == 4 and sockaddr[3] and "%" not in text:
            text += f"%{socket.if_indextoname(sockaddr[3])}"
        texts.append(text)
    return list(dict.fromkeys(texts))


@attrs.define(eq=False)
class _Place:
    host: str
    port: int
    token: bytes
    standing: Hint | None = None
    failures: int = 0
    timer: Timer | None = None


class LookupDiscovery:
    """A `Discovery` over (host, port) pairs."""

    def __init__(self, peers: Sequence[tuple[str, int]], resolve: LookUp = look_up) -> None:
        self._places = [
            _Place(host, port, hashlib.blake2s(f"{host} {port}".encode(), digest_size=TOKEN_LENGTH).digest())
            for host, port in dict.fromkeys(peers)
        ]
        self._resolve = resolve
        self._dispatch: Dispatch | None = None
        self._ethertype = 0
        self._on_hint: OnHint | None = None

    def start(self, dispatch: Dispatch, interfaces: Sequence[Interface], announce: Announcement, on_hint: OnHint, on_gone: OnHint) -> None:
        """Hints follow in later turns."""
        if self._dispatch is not None:
            raise Misuse("discovery started twice")
        self._dispatch, self._on_hint = dispatch, on_hint
        self._ethertype = announce.ethertype
        for place in self._places:
            self._look_up(place)

    def interface_added(self, interface: Interface) -> None:
        """A way to a name server may have come: what was not found is looked up now."""
        for place in self._places:
            if place.failures and place.timer is not None:
                place.timer.cancel()
                self._look_up(place)

    def interface_removed(self, name: str) -> None:
        pass

    def close(self) -> None:
        self._on_hint = None
        for place in self._places:
            if place.timer is not None:
                place.timer.cancel()

    def _look_up(self, place: _Place) -> None:
        place.timer = None
        if self._dispatch is not None and self._on_hint is not None:
            self._dispatch.call_blocking(functools.partial(self._resolve, place.host), lambda result: self._found(place, result))

    def _found(self, place: _Place, result: Sequence[str] | BaseException) -> None:
        if self._dispatch is None or self._on_hint is None:
            return
        wait = AGAIN
        if isinstance(result, BaseException) or not result:
            if not place.failures:
                log.warning("discovery: %s is not found: %s", place.host, result or "it has no address")
            wait = min(RETRY_FIRST * 2.0 ** min(place.failures, 10), AGAIN)
            place.failures += 1
        else:
            place.failures = 0
            addresses = tuple(sorted(result)[:ADDRESSES_MAX])
            hint = Hint("", b"", self._ethertype, place.token, math.inf, place.port, addresses)
            before, place.standing = place.standing, hint
            if before != hint:
                self._on_hint(hint)
        place.timer = self._dispatch.call_at(self._dispatch.now() + wait, lambda: self._look_up(place))
