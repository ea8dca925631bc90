"""Discovery by mDNS and DNS-SD (RFC 6762, RFC 6763), in a thread of its own.

python-zeroconf runs on asyncio; what it hears is collected per turn of its loop and handed over as one batch with
`Dispatch.call_from_thread`. The thread also pays for the import (0.15 s), so a daemon's start does not wait for either.

Each interface has its own responder and browser, bound to that interface: an announcement heard on one is never taken for a path through
another. The interfaces are the stack's; their IP addresses, which mDNS needs and Qnet does not, are the kernel's and may come and go, so
the thread watches the kernel's address notifications (rtnetlink) and restarts an interface's responder when its addresses change or its
carrier comes back.

Anybody can say anything over mDNS, and as often as he likes. What reading it costs is bounded by `qnetpy.discovery.brake`.

A Qnet node needs an IPv4 address or an IPv6 link-local address on the interface for this to work; static peers need none.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from qnetpy.discovery.addresses import usable_addresses
from qnetpy.discovery.brake import LOOK, Brake
from qnetpy.discovery.hint import (
    Announcement,
    Hint,
    Interface,
    JoinOffer,
    OnHint,
)
from qnetpy.discovery.responder import TTL, Gone, Heard, Responder
from qnetpy.discovery.table import Drop, HintTable
from resmgr.dispatch import Dispatch, Timer
from resmgr.errors import Misuse
from stack.linux.interfaces import notices
from stack.linux.rtnetlink import RECEIVE_MAX

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

BATCH_MAX = 1024
"""Events kept for one hand-over. Stops a flood that outruns the dispatch; the library's cache bounds what is behind it."""
SETTLE = 0.02
"""Seconds between a kernel notification and the look at all addresses: notifications come in bursts."""
RETRY = 1.0
"""Seconds after which an interface that could not be used is tried again, if no notification comes earlier."""
CLOSE_WAIT = 1.0
"""Seconds `close` waits for the thread at most; measured it takes 10 ms."""


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

    def facts(self) -> dict[str, int]:
        """Announcements that stand, and by reason those that led to nothing; the part that is listened to, when it is not all."""
        standing = 0 if self._table is None else len(self._table)
        part = 1.0 if self._worker is None else self._worker.brake.part
        heard = {"heard_per_thousand": round(1000 * part)} if part < 1.0 else {}
        return {"announced": standing} | heard | {reason.value: count for reason, count in self.drops.items() if count}

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
        """Blocks until the goodbye is sent and the thread has ended (measured 10 ms, at most CLOSE_WAIT), if it had begun to announce."""
        worker, self._worker = self._worker, None
        self._on_hint = self._on_gone = None
        if self._timer is not None:
            self._timer.cancel()
        if worker is not None:
            worker.stop()

    def _deliver(self, events: list[Heard]) -> None:
        table, dispatch = self._table, self._dispatch
        if self._worker is None or table is None or dispatch is None:
            return
        expiry = dispatch.now() + TTL
        for event in events:
            if isinstance(event, Hint):
                # An interface that was removed meanwhile: its hints must not come back.
                if self._worker.knows(event.interface):
                    table.heard(attrs.evolve(event, expiry=expiry))
            elif isinstance(event, Gone):
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
    """The thread: an asyncio loop, one `Responder` per interface, the kernel's notifications."""

    def __init__(self, announce: Announcement, deliver: Callable[[list[Heard]], None]) -> None:
        self._announce = announce
        self._deliver = deliver
        self._events: list[Heard] = []
        self._flushing = False
        self._lock = threading.Lock()
        self._wanted: dict[str, Interface] = {}
        self._offer: JoinOffer | None = None
        self._stopping = False
        self._wake: Callable[[], None] | None = None
        self._responders: dict[str, Responder] = {}
        self.brake = Brake()
        self._looked = 0.0, 0.0
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
        """A thread that is still importing has opened nothing, and is not waited for: it ends after that by itself."""
        with self._lock:
            self._stopping = True
            importing = self._wake is None
        if importing:
            return
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

    def _heard(self, event: Heard) -> None:
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

            with self._lock:
                stopping = self._stopping
            if not stopping:
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
        self._looked = time.thread_time(), loop.time()
        self._look(loop)
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

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """How much of the processor this thread has used, and what follows from it."""
        before, self._looked = self._looked, (time.thread_time(), loop.time())
        was_calm = self.brake.part == 1.0
        if self.brake.look(self._looked[0] - before[0], self._looked[1] - before[1]):
            if was_calm:
                log.warning("discovery: a flood over mDNS: only a part of it is listened to while it lasts")
            for responder in self._responders.values():
                responder.listen(self.brake.part)
        loop.call_later(LOOK, self._look, loop)

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
            responder = Responder(self._announce, interface, places, self._heard)
            self._responders[name] = responder
            try:
                await responder.start()
                responder.listen(self.brake.part)
            except (OSError, RuntimeError) as error:
                # The address went between the look and the bind (RuntimeError from the library), or another program holds the port.
                log.info("discovery: %s: %s", name, error)
                responder.broken = True
                loop.call_later(RETRY, changed.set)


def _ignore(_: object) -> None:
    return None
