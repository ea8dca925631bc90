"""The door: TCP connections of machines that want to join, on the dispatch. It is open only while an invitation is.

One `Exchange` per connection. Bounded: connections in all and per source, bytes and time of each (the exchange's), work in threads at a
time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
from collections import Counter, deque
from collections.abc import Callable

import attrs

from qnetpy.enrol.invitation import group
from qnetpy.enrol.inviter import Exchange, Step
from qnetpy.enrol.pake import Keys
from resmgr.dispatch import Dispatch, Timer

CONNECTIONS_MAX = 32
"""Half-finished enrolments. Stops a flood of connections; each holds 4 KiB for ten seconds at most."""
CONNECTIONS_PER_SOURCE = 4
JOBS_MAX = 2
"""Key exchanges computed at a time; others wait. Leaves the other worker threads to the files."""
ACCEPTS_PER_TURN = 16
ACCEPT_PAUSE = 0.1
"""Seconds until connections are accepted again after that failed."""
BACKLOG = 16
READ_MAX = 4096
LINGER = 1.0
"""Seconds for which a finished connection stays, so that its last words reach a joiner that still sends."""


@attrs.define(eq=False)
class _Connection:
    sock: socket.socket
    source: str
    """What counts as one (`qnetpy.enrol.invitation.group`)."""
    exchange: Exchange
    pending: bytearray = attrs.Factory(bytearray)
    closing: Timer | None = None
    working: bool = False


class Listener:
    """See the head of this file. *make*: an exchange for a source. `close` ends every connection."""

    def __init__(self, dispatch: Dispatch, port: int, make: Callable[[str], Exchange], counters: Counter[str]) -> None:
        """OSError when the port cannot be had."""
        self._dispatch = dispatch
        self._make = make
        self._counters = counters
        self._connections: dict[_Connection, None] = {}
        self._jobs: deque[_Connection] = deque()
        self._working = 0
        self._timer: Timer | None = None
        self._resume: Timer | None = None
        self._socket = _listen(port)
        self.port: int = self._socket.getsockname()[1]
        dispatch.attach_fd(self._socket.fileno(), self._accept)

    @property
    def busy(self) -> bool:
        """Somebody is in the middle of joining."""
        return any(not connection.exchange.ended for connection in self._connections)

    def close(self) -> None:
        self._dispatch.detach_fd(self._socket.fileno())
        self._socket.close()
        for timer in (self._timer, self._resume):
            if timer is not None:
                timer.cancel()
        for connection in list(self._connections):
            self._drop(connection)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError:
                # The joiner went away before we looked, or there is no descriptor left for strangers: then it would be tried in a circle.
                self._counters["accept_failed"] += 1
                self._dispatch.want_read(self._socket.fileno(), False)
                self._resume = self._dispatch.call_at(self._dispatch.now() + ACCEPT_PAUSE, self._accept_again)
                return
            source = str(address[0]).removeprefix("::ffff:")
            if not self._make_room(group(source)):
                sock.close()
                continue
            sock.setblocking(False)
            connection = _Connection(sock, group(source), self._make(source))
            self._connections[connection] = None
            self._dispatch.attach_fd(sock.fileno(), functools.partial(self._readable, connection))
            self._arm()

    def _make_room(self, source: str) -> bool:
        """Whether one more of *source* may come. Where there is no room, the oldest goes that has not said anything or is done, else the
        oldest that has not shown a code: an honest one is so for as long as a packet travels."""
        own = [connection for connection in self._connections if connection.source == source]
        if len(own) >= CONNECTIONS_PER_SOURCE:
            self._counters["connections_source"] += 1
        elif len(self._connections) >= CONNECTIONS_MAX:
            self._counters["connections_full"] += 1
            own = list(self._connections)
        else:
            return True
        for steps in ((Step.HELLO, Step.ENDED), (Step.CONFIRM,)):
            for connection in own:
                if connection.exchange.step in steps:
                    self._drop(connection)
                    return True
        return False

    def _accept_again(self) -> None:
        self._dispatch.want_read(self._socket.fileno(), True)

    def _readable(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(READ_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            connection.exchange.closed()
            self._drop(connection)
            return
        if connection.closing is not None:
            return
        connection.exchange.receive(data, self._dispatch.now())
        self._go_on(connection)

    def _go_on(self, connection: _Connection) -> None:
        """After anything happened to its exchange: compute, send, end."""
        exchange = connection.exchange
        if exchange.job is not None and not connection.working:
            connection.working = True
            self._jobs.append(connection)
            self._work()
        connection.pending += b"".join(exchange.out)
        exchange.out.clear()
        self._write(connection)

    def _work(self) -> None:
        while self._jobs and self._working < JOBS_MAX:
            connection = self._jobs.popleft()
            job, connection.exchange.job = connection.exchange.job, None
            if job is None or connection not in self._connections:
                continue
            self._working += 1
            self._dispatch.call_blocking(job, functools.partial(self._computed, connection))

    def _computed(self, connection: _Connection, result: tuple[bytes, Keys] | BaseException) -> None:
        self._working -= 1
        if connection in self._connections:
            connection.exchange.computed(result)
            self._go_on(connection)
        self._work()

    def _write(self, connection: _Connection) -> None:
        if connection not in self._connections:
            return
        fd = connection.sock.fileno()
        try:
            if connection.pending:
                del connection.pending[: connection.sock.send(connection.pending)]
        except BlockingIOError:
            pass
        except OSError:
            connection.exchange.closed()
            self._drop(connection)
            return
        self._dispatch.want_write(fd, functools.partial(self._write, connection) if connection.pending else None)
        if connection.exchange.ended and not connection.pending and connection.closing is None:
            with contextlib.suppress(OSError):  # it is gone already; the descriptor will say so
                connection.sock.shutdown(socket.SHUT_WR)
            connection.closing = self._dispatch.call_at(self._dispatch.now() + LINGER, functools.partial(self._drop, connection))

    def _drop(self, connection: _Connection) -> None:
        if connection not in self._connections:
            return
        del self._connections[connection]
        connection.exchange.closed()
        if connection.closing is not None:
            connection.closing.cancel()
        self._dispatch.detach_fd(connection.sock.fileno())
        connection.sock.close()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = min((connection.exchange.expires for connection in self._connections if connection.closing is None), default=None)
        if when is not None:
            self._timer = self._dispatch.call_at(when, self._timeout)

    def _timeout(self) -> None:
        self._timer = None
        now = self._dispatch.now()
        for connection in list(self._connections):
            connection.exchange.timeout(now)
            if connection.exchange.ended and connection.closing is None:
                self._drop(connection)
        self._arm()


def _listen(port: int) -> socket.socket:
    """A listening socket for IPv6 and IPv4, or for IPv4 where the kernel has no IPv6."""
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return _bound(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC), "0.0.0.0", port)
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        return _bound(sock, "::", port)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        # IPv6 is there and switched off on every interface.
        return _bound(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC), "0.0.0.0", port)


def _bound(sock: socket.socket, host: str, port: int) -> socket.socket:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
