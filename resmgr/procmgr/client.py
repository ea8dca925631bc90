"""Starting and steering programs on any node, for blocking programs (`resmgr.client`). Loads nothing that costs time.

    with Client(path) as client:
        process = spawn(client, node_descriptor(client, "n2"), Spawn((b"sort",)))
        process.write(b"b\na\n", lambda status: ..., last=True)
        process.read(1, 65536, lambda status, data: ...)
        process.wait(lambda ended: ...)
        while ...: client.pump(None)

Several reads and writes may be under way. Results are reported in the order of the calls, whatever order they arrive in.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from resmgr.client import Client, Connection, Send
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError
from resmgr.ids import CHID_PATHMGR, CHID_PROCMGR, ND_LOCAL, PID_SYSTEM
from resmgr.procmgr import message, nodefacts
from resmgr.procmgr.message import Ended, Row, Spawn
from resmgr.procmgr.nodefacts import NodeFacts

LOOKUP = message.HEADER.pack(0x100, 1, 0, 0)
"""The connect message LOOKUP from the root of this node, and the beginning of its reply (nd, pid, chid): `resmgr.iomsg` is too heavy to
import for this; a test compares."""
ENTRY_TARGET = struct.Struct("!III")
ENTRY_LEN = 8192
TIMEOUT = 10.0
"""Seconds for an answer that does not depend on the program. A node that is down is told of sooner."""
FACTS_TIMEOUT = 3.0
"""Seconds for all nodes together: as long as it takes until one that does not answer is down."""
PROCESSES_MAX = 1 << 20
"""Rows after which a list is taken as ended: another node can make them up."""

ReadDone = Callable[[int, Buffer], None]
"""Count of bytes (0: end of the stream) or -errno, and the bytes."""


def node_descriptor(client: Client, node: str, timeout: float = TIMEOUT) -> int:
    """The number by which this machine's daemon knows *node*; 0 for this node itself. ResmgrError(ENOENT): nobody of that name is up."""
    if not node or "/" in node or node in (".", ".."):
        raise ResmgrError(errno.EINVAL, f"{node!r} is not a node's name")
    if node == client.node:
        return ND_LOCAL
    connection = client.connect(ND_LOCAL, PID_SYSTEM, CHID_PATHMGR)
    try:
        reply = connection.send(LOOKUP + b"net/" + node.encode(errors="surrogateescape"), reply_len=ENTRY_LEN, timeout=timeout)
    finally:
        connection.close()
    try:
        nd, pid, _ = ENTRY_TARGET.unpack_from(reply.data)
    except struct.error:
        raise ResmgrError(errno.EBADMSG) from None
    if not nd and pid == PID_SYSTEM:
        return ND_LOCAL
    return int(nd)


class _Order:
    """Reports results by their numbers, in order."""

    __slots__ = ("_early", "_next", "number")

    def __init__(self) -> None:
        self.number = 0
        self._next = 0
        self._early: dict[int, Callable[[], None]] = {}

    def take(self) -> int:
        self.number += 1
        return self.number - 1

    def arrived(self, number: int, report: Callable[[], None]) -> None:
        self._early[number] = report
        while self._next in self._early:
            self._next += 1
            self._early.pop(self._next - 1)()


class Process:
    """A program that was started through `connection`, which is its own: it ends with it."""

    def __init__(self, connection: Connection, handle: int, pid: int) -> None:
        self.connection = connection
        self.handle = handle
        self.pid = pid
        """On its node."""
        self._orders = [_Order(), _Order(), _Order()]

    def read(self, stream: int, size: int, done: ReadDone) -> None:
        """Ask for up to *size* bytes of stream 1 or 2; answered when there are some, or none will come any more."""
        order = self._orders[stream]
        number = order.take()

        def arrived(send: Send) -> None:
            data = send.result().data if send.status >= 0 else b""
            order.arrived(number, partial(done, send.status, data))

        self.connection.submit(message.pack_read(self.handle, stream, number, size), reply_len=size, done=arrived)

    def write(self, data: Buffer, done: Callable[[int], None], last: bool = False) -> None:
        """Give *data* to the program's standard input; *last*: nothing follows. *done* gets the count, or -EPIPE when it reads no more."""
        order = self._orders[0]
        number = order.take()
        request = message.pack_write(self.handle, number, last)
        self.connection.submit(request, data, done=lambda send: order.arrived(number, partial(done, send.status)))

    def carry(self, stream: int, fd: int, done: Callable[[int], None]) -> Send:
        """Let the daemon carry this stream, over pipe *fd*, which stays the caller's. *done* gets 0 at the end of the stream, -EPIPE when
        nobody reads it any more, or -ENOTSUP when it is not carried and nothing has happened."""
        number = self._orders[stream].number
        request = message.pack_carry(self.handle, stream, number)
        return self.connection.submit(request, descriptors=(fd,), done=lambda send: done(send.status))

    def wait(self, done: Callable[[Ended | int], None], stops: bool = False) -> None:
        """*done* gets how the program ended, or -errno when that cannot be known any more; with *stops* also that it was stopped."""

        def arrived(send: Send) -> None:
            try:
                done(message.parse_ended(send.result().data) if send.status >= 0 else send.status)
            except BadMessage:
                done(-errno.EBADMSG)

        self.connection.submit(message.pack_wait(self.handle, stops), reply_len=message.ENDED.size, done=arrived)

    def signal(self, number: int) -> None:
        """Send a signal to the program's process group; not waited for."""
        self.connection.submit(message.pack_signal(self.handle, number))

    def winsize(self, rows: int, columns: int, width: int = 0, height: int = 0) -> None:
        """Tell the size of the terminal; not waited for."""
        self.connection.submit(message.pack_winsize(self.handle, rows, columns, width, height))

    def close_stream(self, stream: int) -> None:
        """Read no more from this stream: the program gets SIGPIPE when it writes there."""
        self.connection.submit(message.pack_close(self.handle, stream))

    def close(self) -> None:
        """Free it. If it still runs it is hung up, unless it was started detached."""
        self.connection.close()


def spawn(client: Client, nd: int, what: Spawn, timeout: float = TIMEOUT) -> Process:
    """Start a program on node *nd*. ResmgrError: EPERM (not granted there), EACCES (no usable account), EAGAIN (too many), EHOSTDOWN."""
    return started(begin(client, nd, what), timeout)


def begin(client: Client, nd: int, what: Spawn) -> Send:
    """Ask for it and go on; `started` waits for the answer."""
    return client.connect(nd, PID_SYSTEM, CHID_PROCMGR).submit(message.pack_spawn(what), reply_len=message.SPAWNED.size)


def started(send: Send, timeout: float = TIMEOUT) -> Process:
    """The program that `begin` asked for. Errors as for `spawn`."""
    try:
        handle, pid = message.parse_spawned(send.wait(timeout).data)
    except BadMessage as error:
        send.connection.close()
        raise ResmgrError(errno.EBADMSG, str(error)) from None
    except BaseException:
        send.connection.close()
        raise
    return Process(send.connection, handle, pid)


class Finished(NamedTuple):
    """How a program ended, and what it said."""

    ended: Ended
    output: bytes
    errors: bytes


class Begun(NamedTuple):
    """A program that was started, and what came of it in its first moment. `process` is None when it has ended and all is here."""

    process: Process | None
    ended: Ended | None
    output: tuple[bytes, bytes]
    """Of streams 1 and 2."""
    over: tuple[bool, bool]
    """Whether nothing more comes on that stream."""
    pid: int = 0
    """On its node."""


def start_briefly(client: Client, nd: int, what: Spawn, timeout: float = TIMEOUT) -> Begun:
    """As `spawn`, but the answer waits a moment for the program's end (`SPAWN_BRIEF`), so that a short program is one round trip. For
    programs without a terminal."""
    send = client.connect(nd, PID_SYSTEM, CHID_PROCMGR).submit(
        message.pack_spawn(what._replace(flags=what.flags | message.SPAWN_BRIEF)), reply_len=message.BRIEF.size + message.BRIEF_OUTPUT
    )
    try:
        told = message.parse_brief(send.wait(timeout).data)
    except BadMessage as error:
        send.connection.close()
        raise ResmgrError(errno.EBADMSG, str(error)) from None
    except ResmgrError as error:
        send.connection.close()
        if error.errno != errno.EBADMSG:
            raise
        # An older node, which knows no such flag: it started nothing.
        process = spawn(client, nd, what, timeout)
        return Begun(process, None, (b"", b""), (False, False), process.pid)
    except BaseException:
        send.connection.close()
        raise
    if not told.handle:
        send.connection.close()
        return Begun(None, told.ended, told.output, told.over, told.pid)
    return Begun(Process(send.connection, told.handle, told.pid), told.ended, told.output, told.over, told.pid)


def run(client: Client, nd: int, what: Spawn, data: Buffer = b"", timeout: float | None = None) -> Finished:
    """Run a program on node *nd*, give it *data* as standard input (if its flags carry that), wait for its end. What it says is held whole.

    Errors as `spawn`; ETIMEDOUT after *timeout* seconds, and the program is hung up.
    """
    until = None if timeout is None else time.monotonic() + timeout
    flags = what.flags if len(data) else what.flags & ~message.SPAWN_STDIN
    begun = start_briefly(client, nd, what._replace(flags=flags), TIMEOUT if timeout is None else min(timeout, TIMEOUT))
    if begun.process is None:
        assert begun.ended is not None
        return Finished(begun.ended, *begun.output)
    try:
        return _Collection(begun, data, flags).run(client, until)
    finally:
        begun.process.close()


class _Collection:
    """Gathers what a program says until it has ended."""

    def __init__(self, begun: Begun, data: Buffer, flags: int) -> None:
        assert begun.process is not None
        self._process = begun.process
        self._ended = begun.ended
        self._parts: list[list[bytes]] = [[part] for part in begun.output]
        carried = (flags & message.SPAWN_STDOUT, flags & message.SPAWN_STDERR)
        self._open = {number for number in (1, 2) if carried[number - 1] and not begun.over[number - 1]}
        self._failure = 0
        self._input = memoryview(data)
        self._offset = 0

    def run(self, client: Client, until: float | None) -> Finished:
        if self._ended is None:
            self._process.wait(self._on_end)
        for stream in self._open:
            self._ask(stream)
        if len(self._input):
            self._write(0)
        while self._ended is None or self._open:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise ResmgrError(errno.ETIMEDOUT)
            client.pump(left)
            if self._failure:
                raise ResmgrError(self._failure)
        return Finished(self._ended, b"".join(self._parts[0]), b"".join(self._parts[1]))

    def _on_end(self, ended: Ended | int) -> None:
        if isinstance(ended, Ended):
            self._ended = ended
        else:
            self._failure = -ended

    def _ask(self, stream: int) -> None:
        self._process.read(stream, message.READ_MAX, lambda status, data: self._said(stream, status, data))

    def _said(self, stream: int, status: int, data: Buffer) -> None:
        if status > 0:
            self._parts[stream - 1].append(bytes(data))
            self._ask(stream)
        else:
            self._open.discard(stream)
            self._failure = self._failure or -status

    def _write(self, status: int) -> None:
        if status < 0 or self._offset > len(self._input):
            return
        part = self._input[self._offset : self._offset + message.WRITE_UNASKED]
        self._offset += message.WRITE_UNASKED
        self._process.write(part, self._write, self._offset >= len(self._input))
        if self._offset >= len(self._input):
            self._offset = len(self._input) + 1


def processes(client: Client, nd: int, timeout: float = TIMEOUT) -> list[Row]:
    """Every process of node *nd*, by number. ResmgrError as for `spawn`."""
    (found,) = processes_of(client, [nd], timeout)
    if isinstance(found, ResmgrError):
        raise found
    return found


def processes_of(client: Client, nds: Sequence[int], timeout: float = TIMEOUT) -> list[list[Row] | ResmgrError]:
    """Of each of these nodes every process, asked at once; an error where one does not say it, or is silent for *timeout* seconds."""
    lists = [_Processes(client.connect(nd, PID_SYSTEM, CHID_PROCMGR)) for nd in nds]
    for one in lists:
        one.ask(timeout)
    while waiting := [one for one in lists if one.send is not None]:
        now = time.monotonic()
        for one in waiting:
            one.go_on(timeout, now)
        until = min((one.until for one in lists if one.send is not None), default=now)
        if until > now:
            client.pump(until - now)
    return [one.rows if one.error is None else one.error for one in lists]


class _Processes:
    """One node's list, page after page."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.rows: list[Row] = []
        self.error: ResmgrError | None = None
        self.send: Send | None = None
        """The page that is waited for; None when all is here, or it failed."""
        self.until = 0.0

    def ask(self, timeout: float) -> None:
        self.until = time.monotonic() + timeout
        self.send = self._connection.submit(message.pack_list(self.rows[-1].pid if self.rows else 0), reply_len=message.READ_MAX)

    def go_on(self, timeout: float, now: float) -> None:
        assert self.send is not None
        rows = self.rows
        try:
            if not self.send.finished:
                if now < self.until:
                    return
                raise ResmgrError(errno.ETIMEDOUT)
            found = message.parse_rows(self.send.result().data)
            if found and (not rows or found[0].pid > rows[-1].pid) and len(rows) <= PROCESSES_MAX:
                rows += found
                self.ask(timeout)
                return
        except BadMessage as error:
            self.error = ResmgrError(errno.EBADMSG, str(error))
        except ResmgrError as error:
            self.error = error
        self.send = None
        self._connection.close()


def kill(client: Client, nd: int, pid: int, signal: int, began: int = 0, timeout: float = TIMEOUT) -> None:
    """Signal one process of node *nd*; with *began* of its `Row`, only that very one. ResmgrError: ESRCH, EPERM, ..."""
    connection = client.connect(nd, PID_SYSTEM, CHID_PROCMGR)
    try:
        connection.send(message.pack_kill(pid, signal, began), timeout=timeout)
    finally:
        connection.close()


def node_facts(client: Client, nds: Sequence[int], timeout: float = FACTS_TIMEOUT) -> list[NodeFacts | ResmgrError]:
    """What each of these nodes says of itself, all asked at once; an error where one does not say it (in time)."""
    sends = [client.connect(nd, PID_SYSTEM, CHID_PROCMGR).submit(message.pack_facts(), reply_len=nodefacts.FACTS_MAX) for nd in nds]
    until = time.monotonic() + timeout
    found: list[NodeFacts | ResmgrError] = []
    for send in sends:
        try:
            found.append(nodefacts.parse(send.wait(max(0.0, until - time.monotonic())).data))
        except BadMessage as error:
            found.append(ResmgrError(errno.EBADMSG, str(error)))
        except ResmgrError as error:
            found.append(error)
        send.connection.close()
    return found
