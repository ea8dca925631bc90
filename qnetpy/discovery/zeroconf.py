"""Discovery by mDNS and DNS-SD (RFC 6762, RFC 6763): the one file that knows python-zeroconf.

python-zeroconf runs on asyncio, so it lives in a thread of its own; what it hears is collected per turn of its loop and handed over as one
batch with `Dispatch.call_from_thread`. The thread also pays for the import (0.15 s), so a daemon's start does not wait for either.

Each interface has its own responder and browser, bound to that interface: an announcement heard on one is never taken for a path through
another. The interfaces are the stack's; their IP addresses, which mDNS needs and Qnet does not, are the kernel's and may come and go, so
the thread watches the kernel's address notifications (rtnetlink) and restarts an interface's responder when its addresses change or its
carrier comes back.

Speed. A normal registration probes for 1.7 s whether its name is taken. RFC 6762 section 8.1 asks for that to keep unique names unique;
ours is 128 random bits, so it is registered as cooperating responders do: sockets, then the browser, then the first announcement at
once, repeated after 225 and 450 ms. Of two nodes that start at the same moment, the later one's first announcement already reaches
the earlier.

A Qnet node needs an IPv4 address or an IPv6 link-local address on the interface for this to work; static peers need none.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from qnetpy.discovery.addresses import Addresses, confine, usable_addresses
from qnetpy.discovery.hint import (
    ADDRESSES_MAX,
    JOIN_TYPE,
    SERVICE_TYPE,
    VERSION,
    Announcement,
    Hint,
    Interface,
    JoinOffer,
    OnHint,
    Place,
    instance_name,
    pack_txt,
    parse_instance,
    parse_txt,
)
from qnetpy.discovery.table import Drop, HintTable
from resmgr.dispatch import Dispatch, Timer
from resmgr.errors import BadMessage, Misuse
from stack.interfaces import RECEIVE_MAX, notices

if TYPE_CHECKING:
    import asyncio

    from zeroconf import RecordUpdate, Zeroconf
    from zeroconf.asyncio import AsyncZeroconf

log = logging.getLogger(__name__)

TTL = 1200
"""Seconds an announcement stands. The library raises pointer records below 1125 s to that, so a shorter life would not be kept."""
RESOLVE_MAX = 16
"""Queries under way for announcements that came without their records. Stops names that nobody will ever explain from piling up."""
RESOLVE_TIMEOUT_MS = 1500
BATCH_MAX = 1024
"""Events kept for one hand-over. Stops a flood that outruns the dispatch; the library's cache bounds what is behind it."""
SETTLE = 0.02
"""Seconds between a kernel notification and the look at all addresses: notifications come in bursts."""
RETRY = 1.0
"""Seconds after which an interface that could not be used is tried again, if no notification comes earlier."""
CLOSE_WAIT = 1.0
"""Seconds `close` waits for the thread at most; measured it takes 10 ms."""


@attrs.frozen
class _Gone:
    interface: str
    token: bytes


_Event = Hint | _Gone | Drop


class ZeroconfDiscovery:
    """A `Discovery` over python-zeroconf. `drops` counts by reason what was heard and not believed."""

    def __init__(self) -> None:
        self._dispatch: Dispatch | None = None
        self._on_hint: OnHint | None = None
        self._on_gone: OnHint | None = None
        self._table: HintTable | None = None
        self._timer: Timer | None = None
        self._worker: _Worker | None = None

    @property
    def drops(self) -> dict[Drop, int]:
        return {} if self._table is None else dict(self._table.drops)

    def start(self, dispatch: Dispatch, interfaces: Sequence[Interface], announce: Announcement, on_hint: OnHint, on_gone: OnHint) -> None:
        """Returns at once; hints follow in later turns."""
        if self._dispatch is not None:
            raise Misuse("discovery started twice")
        self._dispatch, self._on_hint, self._on_gone = dispatch, on_hint, on_gone
        self._table = HintTable(announce.token, dispatch.now())
        self._worker = _Worker(announce, lambda events: dispatch.call_from_thread(functools.partial(self._deliver, events)))
        for interface in interfaces:
            self._worker.post_add(interface)
        self._worker.start()

    def interface_added(self, interface: Interface) -> None:
        if self._worker is None:
            raise Misuse("discovery not started")
        self._worker.post_add(interface)

    def interface_removed(self, name: str) -> None:
        if self._worker is None or self._table is None:
            return
        self._worker.post_remove(name)
        self._table.interface_gone(name)
        self._tell()

    def invite(self, offer: JoinOffer | None) -> None:
        """Announce on every interface that a machine can join here, or no longer."""
        if self._worker is not None:
            self._worker.post_offer(offer)

    def close(self) -> None:
        """Blocks until the goodbye is sent and the thread has ended (measured 10 ms, at most CLOSE_WAIT)."""
        worker, self._worker = self._worker, None
        self._on_hint = self._on_gone = None
        if self._timer is not None:
            self._timer.cancel()
        if worker is not None:
            worker.stop()

    def _deliver(self, events: list[_Event]) -> None:
        table, dispatch = self._table, self._dispatch
        if self._worker is None or table is None or dispatch is None:
            return
        expiry = dispatch.now() + TTL
        for event in events:
            if isinstance(event, Hint):
                # An interface that was removed meanwhile: its hints must not come back.
                if self._worker.knows(event.interface):
                    table.heard(attrs.evolve(event, expiry=expiry))
            elif isinstance(event, _Gone):
                table.gone(event.interface, event.token)
            else:
                table.drop(event)
        self._tell()

    def _tell(self) -> None:
        table, dispatch = self._table, self._dispatch
        if table is None or dispatch is None:
            return
        fresh, gone = table.poll(dispatch.now())
        for hint in gone:
            if self._on_gone is not None:
                self._on_gone(hint)
        for hint in fresh:
            if self._on_hint is not None:
                self._on_hint(hint)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = table.next_timeout()
        if due is not None and self._worker is not None:
            self._timer = dispatch.call_at(due, self._tell)


class _Worker:
    """The thread: an asyncio loop, one `_Responder` per interface, the kernel's notifications."""

    def __init__(self, announce: Announcement, deliver: Callable[[list[_Event]], None]) -> None:
        self.announce = announce
        self._deliver = deliver
        self._events: list[_Event] = []
        self._flushing = False
        self._lock = threading.Lock()
        self._wanted: dict[str, Interface] = {}
        self._offer: JoinOffer | None = None
        self._stopping = False
        self._wake: Callable[[], None] | None = None
        self._responders: dict[str, _Responder] = {}
        self._thread = threading.Thread(target=self._main, name="qnet-discovery", daemon=True)

    # Called by the dispatch thread.

    def start(self) -> None:
        self._thread.start()

    def post_add(self, interface: Interface) -> None:
        with self._lock:
            self._wanted[interface.name] = interface
        self._poke()

    def post_remove(self, name: str) -> None:
        with self._lock:
            self._wanted.pop(name, None)
        self._poke()

    def post_offer(self, offer: JoinOffer | None) -> None:
        with self._lock:
            self._offer = offer
        self._poke()

    def knows(self, name: str) -> bool:
        with self._lock:
            return name in self._wanted

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
        self._poke()
        self._thread.join(CLOSE_WAIT)
        if self._thread.is_alive():
            log.warning("discovery: the zeroconf thread did not end within %g s", CLOSE_WAIT)

    def _poke(self) -> None:
        with self._lock:
            # RuntimeError: the loop has ended by itself; that was logged.
            if self._wake is not None:
                with contextlib.suppress(RuntimeError):
                    self._wake()

    # Called by the zeroconf thread.

    def event(self, event: _Event) -> None:
        """Collect; everything of one turn of the loop goes over in one call."""
        import asyncio

        if len(self._events) < BATCH_MAX:
            self._events.append(event)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        events, self._events = self._events, []
        with self._lock:
            stopping = self._stopping
        if not stopping:
            self._deliver(events)

    def _main(self) -> None:
        import asyncio

        try:
            import zeroconf.asyncio  # noqa: F401  # the slow import, before anything waits for this thread

            asyncio.run(self._run())
        except Exception as error:
            # Qnet works without discovery (configured peers, peers that call us), so this is told and not fatal.
            log.warning("discovery: zeroconf ended: %s: %s", type(error).__name__, error)

    async def _run(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        with self._lock:
            self._wake = lambda: _ignore(loop.call_soon_threadsafe(changed.set))
        heard = notices()
        loop.add_reader(heard, lambda: self._noticed(heard, loop, changed))
        try:
            while True:
                with self._lock:
                    stopping, wanted, offer = self._stopping, dict(self._wanted), self._offer
                if stopping:
                    return
                await self._settle(wanted, loop, changed)
                for responder in self._responders.values():
                    await responder.offer(offer)
                await changed.wait()
                changed.clear()
        finally:
            with self._lock:
                self._wake = None
            loop.remove_reader(heard)
            heard.close()
            for responder in self._responders.values():
                responder.withdraw(goodbye=True)
            for responder in self._responders.values():
                await responder.close()

    def _noticed(self, heard: socket.socket, loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
        # ENOBUFS (notices were lost) is a notice too; what they say is read from the kernel afresh.
        with contextlib.suppress(OSError):
            while heard.recv(RECEIVE_MAX):
                pass
        loop.call_later(SETTLE, changed.set)

    async def _settle(self, wanted: dict[str, Interface], loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
        """Make the responders fit the interfaces that the stack has and the addresses that the kernel has."""
        kernel = usable_addresses(wanted)
        for name, responder in list(self._responders.items()):
            fits = responder.interface == wanted.get(name) and responder.places == kernel.get(name)
            if not fits or responder.broken:
                del self._responders[name]
                responder.withdraw(goodbye=name not in wanted)
                await responder.close()
        for name, interface in wanted.items():
            places = kernel.get(name)
            if places is None or name in self._responders:
                continue
            responder = _Responder(self, interface, places)
            self._responders[name] = responder
            try:
                await responder.start()
            except (OSError, RuntimeError) as error:
                # The address went between the look and the bind (RuntimeError from the library), or another program holds the port.
                log.info("discovery: %s: %s", name, error)
                responder.broken = True
                loop.call_later(RETRY, changed.set)


class _Responder:
    """Announces and browses on one interface."""

    def __init__(self, worker: _Worker, interface: Interface, places: Addresses) -> None:
        self.interface = interface
        self.places = places
        self.broken = False
        self._worker = worker
        self._zeroconf: AsyncZeroconf | None = None
        self._announcing: asyncio.Future[object] | None = None
        self._offered: tuple[JoinOffer, _Info, asyncio.Future[object]] | None = None
        self._resolving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """OSError when the addresses cannot be used (yet)."""
        import asyncio

        from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

        self._zeroconf = AsyncZeroconf(interfaces=self.places.families(), ip_version=_version(self.places))
        library = self._zeroconf.zeroconf
        await library.async_wait_for_start()
        for reader in library.engine.readers:
            confine(reader.transport.get_extra_info("socket"), self.interface.name)
        # What came before that may be another interface's: forget it, so that it is not sent along as a known answer, but asked for.
        for known in library.cache.names():
            library.cache.async_remove_records(list(library.cache.async_entries_with_name(known)))
        library.async_add_listener(_listener(self), None)
        # The browser is there for its schedule of queries (RFC 6762 section 5.2); what is heard comes through the listener.
        AsyncServiceBrowser(library, SERVICE_TYPE, handlers=[lambda **_: None])
        announce = self._worker.announce
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
            self._worker.event(Drop.BAD_NAME)
            return
        if token == self._worker.announce.token:
            return
        if expired:
            self._worker.event(_Gone(self.interface.name, token))
            return
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        if info.load_from_cache(library):
            self._tell(token, info)
        elif len(self._resolving) >= RESOLVE_MAX:
            self._worker.event(Drop.RESOLVE_BUSY)
        else:
            task = asyncio.ensure_future(self._resolve(library, token, info))
            self._resolving.add(task)
            task.add_done_callback(self._resolving.discard)

    async def _resolve(self, library: Zeroconf, token: bytes, info: _Info) -> None:
        if await info.async_request(library, RESOLVE_TIMEOUT_MS):
            self._tell(token, info)
        else:
            self._worker.event(Drop.UNRESOLVED)

    def _tell(self, token: bytes, info: _Info) -> None:
        try:
            place = parse_txt(info.text or b"")
        except BadMessage:
            self._worker.event(Drop.BAD_TXT)
            return
        addresses = tuple(info.parsed_addresses()[:ADDRESSES_MAX])
        port = info.port or 0
        if not place.mac and not port:
            self._worker.event(Drop.BAD_TXT)
            return
        self._worker.event(Hint(self.interface.name, place.mac, place.ethertype, token, 0.0, port, addresses))


if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncServiceInfo as _Info


def _listener(responder: _Responder) -> _RecordUpdateListener:
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


if TYPE_CHECKING:
    from zeroconf import IPVersion
    from zeroconf import RecordUpdateListener as _RecordUpdateListener


def _version(places: Addresses) -> IPVersion:
    from zeroconf import IPVersion

    if places.ipv6 is None:
        return IPVersion.V4Only
    return IPVersion.V6Only if places.ipv4 is None else IPVersion.All


def _ignore(_: object) -> None:
    return None
