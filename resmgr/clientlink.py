"""One socket of a blocking program: to its daemon, or directly to another program (docs/protocol/direct.md). See `resmgr.client`.

Reads datagrams into messages, writes messages as datagrams, and holds what a direct link's other end does not take yet.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resmgr import message as wire
from resmgr.dispatch import Buffer
from resmgr.transport.datagram import DATAGRAM_MAX, LENGTH, LENGTH_SIZE, Assembler, fragments

if TYPE_CHECKING:
    from resmgr.server import Inlet, Message
    from resmgr.transport.descriptors import Keeper

OUTPUT_HIGH = 1 << 20
"""Above this a direct link takes no new sends, and is not read from."""
OUTPUT_MAX = 64 << 20
"""Bytes that wait for a direct link's other end before it is ended. Stops who does not read from filling our memory."""
PATIENCE = 0.02
"""Seconds for which a write waits for the other end to read, before the program goes on and what is left waits in the queue."""
DRAIN_MAX = 1024
"""Datagrams read of a link whose end is told by the daemon. Stops who goes on writing."""
JOIN_MAX = 16384

CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
DONTWAIT = int(socket.MSG_DONTWAIT)
NOW = CLOEXEC | DONTWAIT
ANCILLARY = socket.CMSG_SPACE(wire.DESCRIPTORS_MAX * 4)

FULL = 0.002
"""Seconds after which a program that found the queue of its daemon's socket full tries again."""

Arrived = deque["tuple[Link, memoryview | None, tuple[int, ...]]"]


def join(sock: socket.socket, path: str | bytes, timeout: float) -> None:
    """Connect to a daemon. While more programs wait to be accepted than may, wait, too."""
    until = time.monotonic() + timeout
    while True:
        try:
            sock.connect(path)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(FULL)


class Link:
    """See the head of this file. What is read goes to *arrived*, with the link; None there is the link's end."""

    __slots__ = (
        "_assembler", "_descriptors", "_keeper", "_out", "arrived", "direct", "fd", "gone", "held", "inlets", "messages", "number",
        "partial", "place", "queued", "receive", "send", "socket", "who",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, arrived: Arrived, direct: bool) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        self.arrived = arrived
        self.direct = direct
        self.gone = False
        self.send = sock.send
        self.receive = sock.recvmsg
        self.queued = 0
        self.partial = False
        """A message is unfinished: the next datagram goes on with it."""
        self.number = 0
        """Of a direct link: our request as its client, the daemon's number as its server."""
        self.place: tuple[int, int] | None = None
        """As its client: pid and number of the link that we reach by it."""
        self.who: wire.ConnectBlock | None = None
        """As its server: the client, as the daemon says."""
        self.inlets: dict[int, Inlet] = {}
        self.messages: dict[int, Message] = {}
        self.held = 0
        """Bytes of their beginnings."""
        self._assembler = Assembler()
        self._descriptors: tuple[int, ...] = ()
        self._keeper: Keeper | None = None
        self._out: deque[tuple[list[Buffer], int, tuple[int, ...]]] = deque()

    def discard(self, descriptors: tuple[int, ...]) -> None:
        """Close what the other end sent and nobody wants. In a thread: the last close of a file takes as long as who made it says."""
        if not descriptors:
            return
        if self._keeper is None:
            from resmgr.transport.descriptors import Keeper

            self._keeper = Keeper()
        self._keeper.take(descriptors)
        if self.gone:
            self._keeper.end()
            self._keeper = None

    def read(self, flags: int) -> int:
        """One datagram: 1 if there was one, 0 if not (with DONTWAIT), -1 at the end of the link. BadMessage if it does not parse."""
        try:
            datagram, ancillary, _, _ = self.receive(DATAGRAM_MAX, ANCILLARY, flags)
        except BlockingIOError:
            return 0
        except ConnectionResetError:
            return self.read(flags)  # the other end closed with something unread; what it wrote before is still here
        except OSError:
            return -1
        return self.feed(datagram, ancillary)

    def feed(self, datagram: bytes, ancillary: list[tuple[int, int, bytes]]) -> int:
        """What was read: 1, or -1 at the end of the link."""
        if ancillary:
            self._take(ancillary)
        if not datagram:
            return -1
        for message in self._assembler.feed(datagram):
            self.arrived.append((self, message, self._descriptors))
            self._descriptors = ()
        self.partial = not self._assembler.idle
        return 1

    def drain(self) -> None:
        """Read what has arrived, and the end."""
        for _ in range(DRAIN_MAX):
            if self.read(NOW) <= 0:
                break
        self.arrived.append((self, None, ()))

    def datagrams(self, parts: Sequence[Buffer]) -> list[list[Buffer]]:
        """A message as the parts of one or several datagrams."""
        size = 0
        for part in parts:
            size += len(part)
        if size + LENGTH_SIZE <= DATAGRAM_MAX:
            return [[LENGTH.pack(size), *parts]]
        return fragments(parts, size)

    def write(self, datagram: list[Buffer], descriptors: Sequence[int]) -> None:
        """One datagram, now. BlockingIOError if there is no room; OSError if the other end is gone."""
        if descriptors:
            self.socket.sendmsg(datagram, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))], DONTWAIT)
        elif len(datagram) <= 3 and sum(map(len, datagram)) <= JOIN_MAX:
            self.send(b"".join(datagram), DONTWAIT)
        else:
            self.socket.sendmsg(datagram, (), DONTWAIT)

    def write_plain(self, datagram: bytes) -> bool:
        """One datagram, now, of a link on which nothing waits. False if there is no room. An end is seen by who reads."""
        try:
            self.send(datagram, DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def write_or_queue(self, parts: Sequence[Buffer], descriptors: Sequence[int]) -> None:
        """Of a direct link: one message, in order; what the other end does not take within PATIENCE waits for `flush`."""
        until = 0.0
        for datagram in self.datagrams(parts):
            while not self._out:
                try:
                    self.write(datagram, descriptors)
                    break
                except BlockingIOError:
                    now = time.monotonic()
                    until = until or now + PATIENCE
                    if now >= until or not self._writable(until - now):
                        self._queue(datagram, descriptors)
                        break
                except OSError:
                    return  # the end of the link is seen by who reads
            else:
                self._queue(datagram, descriptors)
            descriptors = ()

    def _queue(self, datagram: list[Buffer], descriptors: Sequence[int]) -> None:
        whole = b"".join(datagram)
        self._out.append(([whole], len(whole), tuple(map(os.dup, descriptors))))
        self.queued += len(whole)

    def _writable(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))

    def flush(self, seconds: float = 0.0) -> bool:
        """Write what is queued, waiting up to *seconds* whenever there is no room. Whether nothing is left."""
        while self._out:
            datagram, size, descriptors = self._out[0]
            try:
                self.write(datagram, descriptors)
            except BlockingIOError:
                if not seconds or not self._writable(seconds):
                    return False
                continue
            except OSError:
                self._forget()
                return True
            self._out.popleft()
            self.queued -= size
            for fd in descriptors:
                os.close(fd)
        return True

    def _forget(self) -> None:
        for _, _, descriptors in self._out:
            for fd in descriptors:
                os.close(fd)
        self._out.clear()
        self.queued = 0

    def _take(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
                self.discard(self._descriptors)
                self._descriptors = tuple(received)

    def close(self, farewell: bool = False) -> None:
        """*farewell*: tell a client of ours that the daemon is gone."""
        self.gone = True
        if farewell and not self._out:
            from resmgr.directproto import UNLINK, pack_bare

            try:
                self.write([LENGTH.pack(wire.HEADER.size), pack_bare(UNLINK, errno.ENOTCONN)], ())
            except OSError:
                pass
        self.socket.close()
        self.discard(self._descriptors)
        self._descriptors = ()
        self._forget()
        if self._keeper is not None:
            self._keeper.end()
            self._keeper = None
