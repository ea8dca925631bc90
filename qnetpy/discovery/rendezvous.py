"""Where on the LAN a machine can join a cluster: the browsing half of JOIN_TYPE, for a machine that is no node yet. Blocks; used by `qnet
join`.

It looks on every Ethernet-like interface that is up and has an IPv4 address or an IPv6 link-local one. What is heard is hearsay: it is a
place to try the code at, which costs whoever announced it one guess.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import attrs

from qnetpy.discovery.addresses import Addresses, usable_addresses
from qnetpy.discovery.hint import ADDRESSES_MAX, JOIN_TYPE
from qnetpy.discovery.mdns import open_mdns, resolve
from stack.linux.interfaces import Rtnetlink
from stack.wire.endpoint import endpoint

if TYPE_CHECKING:
    import asyncio

    from zeroconf import Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

OFFERS_MAX = 16
"""Announcements looked at. Stops a stranger who announces thousands from keeping us busy."""


@attrs.frozen
class Offer:
    """Somebody announced that one can join at one of *addresses*; IPv6 link-local ones carry their interface (`fe80::1%eth0`)."""

    instance: str
    addresses: tuple[str, ...]
    port: int


def interfaces() -> list[str]:
    """Interfaces that may carry multicast, are up, and are no loop and no part of a bridge or bond."""
    with Rtnetlink() as kernel:
        return sorted(link.name for link in kernel.links() if link.enabled and link.multicast and not (link.loopback or link.master))


class Rendezvous:
    """Looks around in a thread of its own from `start` to `close`. `offers` yields what is heard, each announcement once."""

    def __init__(self) -> None:
        self._found: queue.SimpleQueue[Offer] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._wake: Callable[[], object] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._main, name="qnet-rendezvous", daemon=True)
        self._seen: set[tuple[str, str]] = set()
        self._resolving: set[asyncio.Task[None]] = set()
        self.problem = ""
        """Why nothing can be heard, when that is so."""

    def start(self) -> None:
        self._thread.start()

    def offers(self, seconds: float, clock: Callable[[], float]) -> Iterator[Offer]:
        """What is heard within *seconds*, as it is heard."""
        end = clock() + seconds
        while (left := end - clock()) > 0:
            try:
                yield self._found.get(timeout=min(left, 0.5))
            except queue.Empty:
                if not self._thread.is_alive() and self._found.empty():
                    return

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._wake is not None:
                with contextlib.suppress(RuntimeError):
                    self._wake()
        self._thread.join(1.0)

    def _main(self) -> None:
        import asyncio

        try:
            asyncio.run(self._run())
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"

    async def _run(self) -> None:
        import asyncio

        import zeroconf.asyncio  # noqa: F401  # the slow import

        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._closed:
                return
            self._wake = lambda: loop.call_soon_threadsafe(ended.set)
        browsers: list[tuple[AsyncZeroconf, AsyncServiceBrowser]] = []
        try:
            for name, addresses in usable_addresses(interfaces()).items():
                with contextlib.suppress(OSError, RuntimeError):
                    browsers.append(await self._browse(name, addresses))
            if not browsers:
                self.problem = "no interface that is up has an IP address"
                return
            await ended.wait()
        finally:
            with self._lock:
                self._wake = None
            # What asks goes first: it fails when it finds the library closed.
            for task in self._resolving:
                task.cancel()
            for opened, browser in browsers:
                await browser.async_cancel()
                await opened.async_close()

    async def _browse(self, interface: str, addresses: Addresses) -> tuple[AsyncZeroconf, AsyncServiceBrowser]:
        from zeroconf import ServiceStateChange
        from zeroconf.asyncio import AsyncServiceBrowser

        opened = await open_mdns(interface, addresses)

        def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
            import asyncio

            if state_change is not ServiceStateChange.Removed and (interface, name) not in self._seen and len(self._seen) < OFFERS_MAX:
                self._seen.add((interface, name))
                task = asyncio.ensure_future(self._resolve(interface, zeroconf, name))
                self._resolving.add(task)
                task.add_done_callback(self._resolving.discard)

        return opened, AsyncServiceBrowser(opened.zeroconf, JOIN_TYPE, handlers=[changed])

    async def _resolve(self, interface: str, library: Zeroconf, name: str) -> None:
        from zeroconf.asyncio import AsyncServiceInfo

        info = AsyncServiceInfo(JOIN_TYPE, name)
        if await resolve(library, info) and info.port:
            texts = [text.split("%")[0] for text in info.parsed_addresses()[:ADDRESSES_MAX]]
            places = tuple(f"{text}%{interface}" if endpoint(text, info.port).is_link_local else text for text in texts)
            self._found.put(Offer(name, places, info.port))


def started() -> Rendezvous:
    """A Rendezvous that looks around already."""
    rendezvous = Rendezvous()
    rendezvous.start()
    return rendezvous
