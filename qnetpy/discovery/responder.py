"""What mDNS says and hears on one interface: our announcements, and hints from those of others. On the asyncio loop of
`qnetpy.discovery.zeroconf`.

A normal registration probes for 1.7 s whether its name is taken. RFC 6762 section 8.1 asks for that to keep unique names unique; ours is
128 random bits, so it is registered as cooperating responders do: sockets, then the browser, then the first announcement at once, repeated
after 225 and 450 ms. Of two nodes that start at the same moment, the later one's first announcement already reaches the earlier.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from qnetpy.discovery.addresses import Addresses
from qnetpy.discovery.brake import program
from qnetpy.discovery.hint import (
    ADDRESSES_MAX,
    JOIN_TYPE,
    SERVICE_TYPE,
    VERSION,
    Announcement,
    Hint,
    Interface,
    JoinOffer,
    Place,
    instance_name,
    pack_txt,
    parse_instance,
    parse_txt,
)
from qnetpy.discovery.mdns import open_mdns, resolve
from qnetpy.discovery.table import Drop
from resmgr.errors import BadMessage
from stack.filter.bpf.attach import attach

if TYPE_CHECKING:
    import asyncio

    from zeroconf import RecordUpdate, RecordUpdateListener, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

TTL = 1200
"""Seconds an announcement stands. The library raises pointer records below 1125 s to that, so a shorter life would not be kept."""
RESOLVE_MAX = 16
"""Queries under way for announcements that came without their records. Stops names that nobody will ever explain from piling up."""


@attrs.frozen
class Gone:
    """An announcement was taken back."""

    interface: str
    token: bytes


Heard = Hint | Gone | Drop


class Responder:
    """Announces and browses on one interface. *report* is called with each thing that is heard."""

    def __init__(self, announce: Announcement, interface: Interface, places: Addresses, report: Callable[[Heard], None]) -> None:
        self.interface = interface
        self.places = places
        self.broken = False
        self._announce = announce
        self._report = report
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._announcing: asyncio.Future[object] | None = None
        self._offered: tuple[JoinOffer, AsyncServiceInfo, asyncio.Future[object]] | None = None
        self._resolving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """OSError or RuntimeError when the addresses cannot be used (yet)."""
        import asyncio

        from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo

        self._zeroconf = await open_mdns(self.interface.name, self.places)
        library = self._zeroconf.zeroconf
        library.async_add_listener(_listener(self), None)
        # The browser is there for its schedule of queries (RFC 6762 section 5.2); what is heard comes through the listener.
        self._browser = AsyncServiceBrowser(library, SERVICE_TYPE, handlers=[lambda **_: None])
        announce = self._announce
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            instance_name(announce.token),
            port=self.interface.port,
            properties=pack_txt(Place(VERSION, self.interface.mac, announce.ethertype)),
            server=f"{announce.token.hex()}.local.",
            host_ttl=TTL,
            other_ttl=TTL,
            parsed_addresses=self.places.texts(),
        )
        self._announcing = asyncio.ensure_future(await self._zeroconf.async_register_service(info, cooperating_responders=True))

    def listen(self, part: float) -> None:
        """Hear that part of the packets, at random (`qnetpy.discovery.brake`)."""
        if self._zeroconf is None or not self._zeroconf.zeroconf.started:
            return
        for reader in self._zeroconf.zeroconf.engine.readers:
            with contextlib.suppress(OSError):
                attach(reader.transport.get_extra_info("socket"), program(part))

    async def offer(self, offer: JoinOffer | None) -> None:
        """Announce *offer* from now on in place of what was offered before."""
        import asyncio

        from zeroconf.asyncio import AsyncServiceInfo

        if self._zeroconf is None or self.broken or offer == (None if self._offered is None else self._offered[0]):
            return
        if self._offered is not None:
            _, info, announcing = self._offered
            self._offered = None
            announcing.cancel()
            await self._zeroconf.async_unregister_service(info)
        if offer is not None:
            info = AsyncServiceInfo(
                JOIN_TYPE,
                f"{offer.token.hex()}.{JOIN_TYPE}",
                port=offer.port,
                properties=b"",
                server=f"{offer.token.hex()}.local.",
                parsed_addresses=self.places.texts(),
            )
            announcing = asyncio.ensure_future(await self._zeroconf.async_register_service(info, cooperating_responders=True))
            self._offered = offer, info, announcing

    def withdraw(self, goodbye: bool) -> None:
        """Stop announcing; with *goodbye* in one packet (RFC 6762 section 10.1) that is sent before this returns.

        Without the goodbye our peers' hints stand: this responder is about to be replaced. To be called before `close`, because the
        library's own way out says goodbye three times and takes 0.25 s.
        """
        if self._zeroconf is None:
            return
        library = self._zeroconf.zeroconf
        out = library.generate_unregister_all_services()
        if out is not None and goodbye:
            library.async_send(out)

    async def close(self) -> None:
        """The browser first: a task of its own asks, and fails when it finds the library closed before it had its first turn."""
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._announcing is not None:
            self._announcing.cancel()
        if self._offered is not None:
            self._offered[2].cancel()
        for task in self._resolving:
            task.cancel()
        if self._zeroconf is not None:
            await self._zeroconf.async_close()

    def heard(self, library: Zeroconf, name: str, expired: bool) -> None:
        """A pointer record: *name* is announced, again or no longer."""
        import asyncio

        from zeroconf.asyncio import AsyncServiceInfo

        try:
            token = parse_instance(name)
        except BadMessage:
            self._report(Drop.BAD_NAME)
            return
        if token == self._announce.token:
            return
        if expired:
            self._report(Gone(self.interface.name, token))
            return
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        if info.load_from_cache(library):
            self._tell(token, info)
        elif len(self._resolving) >= RESOLVE_MAX:
            self._report(Drop.RESOLVE_BUSY)
        else:
            task = asyncio.ensure_future(self._resolve(library, token, info))
            self._resolving.add(task)
            task.add_done_callback(self._resolving.discard)

    async def _resolve(self, library: Zeroconf, token: bytes, info: AsyncServiceInfo) -> None:
        if await resolve(library, info):
            self._tell(token, info)
        else:
            self._report(Drop.UNRESOLVED)

    def _tell(self, token: bytes, info: AsyncServiceInfo) -> None:
        try:
            place = parse_txt(info.text or b"")
        except BadMessage:
            self._report(Drop.BAD_TXT)
            return
        addresses = tuple(info.parsed_addresses()[:ADDRESSES_MAX])
        port = info.port or 0
        if not place.mac and not port:
            self._report(Drop.BAD_TXT)
            return
        self._report(Hint(self.interface.name, place.mac, place.ethertype, token, 0.0, port, addresses))


def _listener(responder: Responder) -> RecordUpdateListener:
    """The record listener of one responder. Made here, because its base class only exists once the library is imported."""
    from zeroconf import RecordUpdateListener

    class Listener(RecordUpdateListener):
        """Collects the names that one packet mentions; looks at them when the library has all of the packet in its cache."""

        def __init__(self) -> None:
            self._names: collections.OrderedDict[str, bool] = collections.OrderedDict()

        def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
            self._library = zc
            for update in records:
                record = update.new
                alias = getattr(record, "alias", None)
                if alias is not None and record.name.lower() == SERVICE_TYPE:
                    self._names[alias] = record.is_expired(now)
                elif record.name.lower().endswith("." + SERVICE_TYPE) and not record.is_expired(now):
                    self._names.setdefault(record.name, False)

        def async_update_records_complete(self) -> None:
            names = self._names
            if names:
                self._names = collections.OrderedDict()
                for name, expired in names.items():
                    responder.heard(self._library, name, expired)

    return Listener()
