"""What users of other nodes let a third node take: tickets for ranges of files that they have open here. docs/protocol/copies.md.

A ticket is good for one node, one connection of it, one range, each byte of it once in sum, as long as the file is open and for LIFETIME.
Each part is read as READ by who offered it would read it.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable

from resmgr.channel import CHID_COPIES, ND_LOCAL, PID_SYSTEM, PULSE_DISCONNECT, Channel, Kernel, Message, Pulse
from resmgr.copymsg import TICKET, parse_offer, parse_take
from resmgr.dispatch import Timer
from resmgr.hostfs.inout import read_range
from resmgr.hostfs.objects import HostClient, HostHandle
from resmgr.hostfs.running import Running
from resmgr.iofunc.handle import Handle
from resmgr.users import LookingUp, retry

LIFETIME = 30.0
"""Seconds."""
OFFERS_OF_CLIENT = 16
OFFERS_OF_NODE = 64
OFFERS_MAX = 1024
"""More is EAGAIN: who offers without end fills no memory, and takes nothing from other nodes."""


class Offer:
    """One ticket. `left`: bytes that may still be taken; `scoid`: the connection that takes, 0: none yet."""

    __slots__ = ("client", "end", "handle", "left", "scoid", "start", "taker", "ticket", "timer")

    def __init__(self, ticket: bytes, client: HostClient, handle: HostHandle, start: int, length: int, taker: str) -> None:
        self.ticket = ticket
        self.client = client
        self.handle = handle
        self.start = start
        self.end = start + length
        self.left = length
        self.taker = taker
        self.scoid = 0
        self.timer: Timer | None = None


class Offers:
    """All tickets of one `HostFs`. Nothing is offered before `listen`."""

    def __init__(self, fs: Running, kernel: Kernel, random: Callable[[int], bytes] = os.urandom) -> None:
        self._fs = fs
        self._kernel = kernel
        self._random = random
        self._by_ticket: dict[bytes, Offer] = {}
        self._of_client: Counter[HostClient] = Counter()
        self._of_node: Counter[int] = Counter()
        self._channel: Channel | None = None

    def __len__(self) -> int:
        return len(self._by_ticket)

    def listen(self) -> Channel:
        """Make the channel to which other nodes bring tickets; its manager is asked whatever the policy says of who sends."""
        self._channel = self._kernel.channel(self._receive, on_pulse=self._pulse, pid=PID_SYSTEM, chid=CHID_COPIES)
        return self._channel

    def close(self) -> None:
        for offer in list(self._by_ticket.values()):
            self._end(offer)
        if self._channel is not None:
            self._channel.destroy()
            self._channel = None

    # ---- who offers

    def offer(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        """OFFER. OSError EXDEV: of that nobody else takes anything."""
        start, length, taker = parse_offer(message.data)
        counters, nd = self._fs.counters, client.info.nd
        if not isinstance(handle, HostHandle) or not handle.regular or handle.device.proc or self._channel is None or nd == ND_LOCAL:
            raise OSError(errno.EXDEV, "not to be taken by others")
        if not handle.readable:
            raise OSError(errno.EBADF, "not open for reading")
        if taker == self._kernel.node_name:
            raise OSError(errno.EXDEV, "the taker is this node")
        if self._of_client[client] >= OFFERS_OF_CLIENT or self._of_node[nd] >= OFFERS_OF_NODE or len(self) >= OFFERS_MAX:
            counters["offers_full"] += 1
            raise OSError(errno.EAGAIN, "too many offers")
        counters["offers"] += 1
        offer = Offer(self._random(TICKET), client, handle, start, length, taker)
        self._by_ticket[offer.ticket] = offer
        self._of_client[client] += 1
        self._of_node[nd] += 1
        if handle.at_close is None:
            handle.at_close = {}
        handle.at_close[offer] = lambda _: self._end(offer)
        now = self._fs.dispatch.now()
        offer.timer = self._fs.dispatch.call_at(now + LIFETIME, lambda: self._end(offer))
        message.reply(0, offer.ticket)

    def _end(self, offer: Offer) -> None:
        if self._by_ticket.pop(offer.ticket, None) is None:
            return
        if offer.timer is not None:
            offer.timer.cancel()
        if offer.handle.at_close is not None:
            offer.handle.at_close.pop(offer, None)
        client = offer.client
        self._of_client[client] -= 1
        self._of_node[client.info.nd] -= 1
        if not self._of_client[client]:
            del self._of_client[client]
        if not self._of_node[client.info.nd]:
            del self._of_node[client.info.nd]

    # ---- who takes

    def _receive(self, message: Message) -> None:
        try:
            self._take(message)
        except LookingUp as error:
            retry(message, error, self._receive)
        except Exception as error:
            self._fs.manager.failed(message, error)

    def _take(self, message: Message) -> None:
        take = parse_take(message.data)
        offer = self._by_ticket.get(take.ticket)
        info = message.info
        good = (
            offer is not None
            and info.nd != ND_LOCAL
            and info.node == offer.taker
            and offer.scoid in (0, info.scoid)
            and take.length <= offer.left
            and offer.start <= take.offset
            and take.offset + take.length <= offer.end
        )
        if offer is None or not good:
            self._fs.counters["takes_refused"] += 1
            raise PermissionError(errno.EACCES, "no such ticket, or not for that")
        # May wait for an account, so before the ticket is used.
        self._fs.identity(offer.client)
        offer.scoid = info.scoid
        offer.left -= take.length
        self._fs.counters["takes"] += 1
        read_range(self._fs, message, offer.client, offer.handle, take.offset, min(take.length, message.reply_len))
        if not offer.left:
            self._end(offer)

    def _pulse(self, pulse: Pulse) -> None:
        if pulse.code == PULSE_DISCONNECT:
            for offer in [offer for offer in self._by_ticket.values() if offer.scoid == pulse.info.scoid]:
                self._end(offer)
