"""`run_process` and `open_process`: as Trio has them, on a node.

    result = await run_process(["uname", "-n"], node="n2", capture_stdout=True)
    async with await open_process(["sort"], node="n2", stdin=PIPE, stdout=PIPE) as process: ...

All programs of a Trio run share one connection to this machine's daemon, made by the first of them; `via` uses another: a
`resmgr.aio.Process`, or an `Address` of any kernel (an embedded node). Streams are Trio streams over the messages of
docs/protocol/spawn.md: `send_all` returns when the far pipe has taken its data, `send_eof` closes only input, a reader that stops stops the
program; up to READS * READ_PART bytes are asked for ahead. Signals go to the program's process group.

Errors. `open_process`: ResmgrError as of `qnetpy.processes.popen`. When the node goes down, or the daemon here, `wait` raises ResmgrError
(EHOSTDOWN, ENOTCONN) and streams trio.BrokenResourceError with that as its cause. Cancelling `run_process` runs `deliver_cancel` (SIGTERM;
SIGKILL 5 s later) and waits for the end; cancelling `wait`, `send_all` or `receive_some` only stops waiting: no output is lost.
"""

from __future__ import annotations

import errno
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Protocol, Unpack

import attrs
import trio

from qnetpy.processes.request import Command, Options, failure, not_up, request, returncode, socket_path, words
from resmgr import aio
from resmgr.channel import ND_LOCAL, PID_SYSTEM, Connection, Credentials, Kernel, Nd
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError
from resmgr.ids import CHID_PROCMGR
from resmgr.procmgr import message
from resmgr.procmgr.client import TIMEOUT
from resmgr.procmgr.message import SPAWN_STDERR, SPAWN_STDIN, SPAWN_STDOUT, WRITE_UNASKED, Brief, Ended, Spawn
from resmgr.walk import walk_trio

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
READS = 4
READ_PART = 256 * 1024
WRITES = 8
KILL_DELAY = 5.0
"""Seconds from SIGTERM to SIGKILL after a cancellation."""


class Via(Protocol):
    """Where messages leave from: a `resmgr.aio.Process`, or an `Address`."""

    @property
    def kernel(self) -> Kernel: ...

    @property
    def credentials(self) -> Credentials: ...


@attrs.frozen
class Address:
    """A kernel and who sends on it."""

    kernel: Kernel
    credentials: Credentials


class _Far:
    """The messages of one program. Replies come out of order; who uses them sorts."""

    def __init__(self, connection: Connection, handle: int, node: str) -> None:
        self.connection = connection
        self.handle = handle
        self.node = node
        self.closed = False

    def submit(self, parts: tuple[Buffer, ...], reply_len: int, done: Callable[[int, Buffer], None]) -> None:
        def start() -> None:
            self.connection.submit_descriptors(parts, (), reply_len, lambda status, reply, _: done(status, reply))

        if self.closed:
            done(-errno.EBADF, b"")
        else:
            aio.enter(self.connection.kernel, start)

    def say(self, request: bytes) -> None:
        """Not waited for."""
        self.submit((request,), 0, lambda status, reply: None)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            aio.enter(self.connection.kernel, self.connection.close)

    def broken(self, status: int) -> trio.BrokenResourceError:
        error = trio.BrokenResourceError(str(failure(self.node, -status).strerror))
        error.__cause__ = failure(self.node, -status)
        return error


class Input(trio.abc.HalfCloseableStream):
    """Standard input. Only for sending."""

    def __init__(self, far: _Far) -> None:
        self._far = far
        self._number = 0
        self._under_way = 0
        self._status = 0
        self._ended = False
        self._closed = False
        self._room = trio.Event()
        self._busy = False

    async def send_all(self, data: Buffer) -> None:
        """Until the far pipe has taken it all. trio.BrokenResourceError when the program reads no more, or its node is gone."""
        await trio.lowlevel.checkpoint()
        if self._closed or self._ended:
            raise trio.ClosedResourceError
        if self._busy:
            raise trio.BusyResourceError("another task sends on this stream")
        self._busy = True
        try:
            view = memoryview(data)
            while view and not self._status:
                if self._under_way < WRITES:
                    self._write(bytes(view[:WRITE_UNASKED]), last=False)
                    view = view[WRITE_UNASKED:]
                else:
                    await self._wait()
            while self._under_way and not self._status:
                await self._wait()
        finally:
            self._busy = False
        if self._closed:
            raise trio.ClosedResourceError
        if self._status:
            raise self._far.broken(self._status)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._under_way >= WRITES and not self._status:
            await self._wait()

    async def send_eof(self) -> None:
        """The program sees the end of its input."""
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise trio.ClosedResourceError
        self._end()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise trio.ClosedResourceError("standard input is only for sending")

    async def aclose(self) -> None:
        self._end()
        self._closed = True
        self._room.set()
        await trio.lowlevel.checkpoint()

    def _end(self) -> None:
        if not self._ended and not self._status:
            self._ended = True
            self._write(b"", last=True)

    def _write(self, data: bytes, last: bool) -> None:
        number, self._number = self._number, self._number + 1
        self._under_way += 1
        self._far.submit((message.pack_write(self._far.handle, number, last), data), 0, self._taken)

    def _taken(self, status: int, reply: Buffer) -> None:
        self._under_way -= 1
        if status < 0:
            self._status = self._status or status
        self._room.set()

    async def _wait(self) -> None:
        self._room = trio.Event()
        await self._room.wait()


class Output(trio.abc.ReceiveStream):
    """Standard output or standard error."""

    def __init__(self, far: _Far, stream: int, over: Callable[[], None]) -> None:
        self._far = far
        self._stream = stream
        self._over = over
        self._asked = 0
        self._next = 0
        self._parts: dict[int, memoryview | int] = {}
        """What came, by the number of its READ: bytes, or the status that ends the stream."""
        self._quiet = True
        self._ended = False
        self._closed = False
        self._come = trio.Event()
        self._busy = False

    @property
    def over(self) -> bool:
        """Nothing more is wanted from the far side."""
        return self._ended or self._closed

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What is there, b"" at the end."""
        await trio.lowlevel.checkpoint()
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._busy:
            raise trio.BusyResourceError("another task receives from this stream")
        self._busy = True
        try:
            while True:
                if self._closed:
                    raise trio.ClosedResourceError
                if self._ended:
                    return b""
                self._ask()
                part = self._parts.get(self._next)
                if part is not None:
                    return self._take(part, max_bytes)
                self._come = trio.Event()
                await self._come.wait()
        finally:
            self._busy = False

    def end(self) -> None:
        """Nothing is to come: told by others than the stream itself."""
        self._ended = True

    async def aclose(self) -> None:
        """The program gets SIGPIPE when it writes there again."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        if not self.over:
            self._far.say(message.pack_close(self._far.handle, self._stream))
        self._closed = True
        self._parts.clear()
        self._come.set()
        self._over()

    def _ask(self) -> None:
        while self._asked - self._next < (1 if self._quiet else READS):
            number, self._asked = self._asked, self._asked + 1
            read = message.pack_read(self._far.handle, self._stream, number, READ_PART)
            self._far.submit((read,), READ_PART, partial(self._arrived, number))

    def _arrived(self, number: int, status: int, data: Buffer) -> None:
        if not self._closed:
            # Lent until this returns.
            self._parts[number] = memoryview(bytes(data)) if status > 0 else status
            if number == self._next:
                self._come.set()

    def _take(self, part: memoryview | int, most: int | None) -> bytes:
        if isinstance(part, int):
            if part < 0:
                raise self._far.broken(part)
            self._ended = True
            self._parts.clear()
            self._over()
            return b""
        self._quiet = False
        taken, rest = (part, part[:0]) if most is None else (part[:most], part[most:])
        if rest:
            self._parts[self._next] = rest
        else:
            del self._parts[self._next]
            self._next += 1
            self._ask()
        return bytes(taken)


class Process:
    """A program on a node. `pid` is its number there. It is let go of, and hung up if it runs, by `aclose` or the end of `async with`; by
    itself when it has ended and its output was read to the end.
    """

    def __init__(self, args: Command, far: _Far, pid: int, streams: int, told: Brief | None = None) -> None:
        """*told*: what its start told of it, if that was brief."""
        self.args = args
        self.node = far.node
        self.pid = pid
        self.returncode: int | None = None
        self.stdin = Input(far) if streams & SPAWN_STDIN else None
        self.stdout = Output(far, 1, self._over) if streams & SPAWN_STDOUT else None
        self.stderr = Output(far, 2, self._over) if streams & SPAWN_STDERR else None
        self._far = far
        self._failure = 0
        self._known = trio.Event()
        if told is not None:
            for output, over in zip((self.stdout, self.stderr), told.over, strict=True):
                if output is not None and over:
                    output.end()
        if told is not None and told.ended is not None:
            self.returncode = returncode(told.ended)
            self._ended(0)
        else:
            far.submit((message.pack_wait(far.handle, False),), message.ENDED.size, self._on_end)

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def poll(self) -> int | None:
        """`returncode`."""
        return self.returncode

    async def wait(self) -> int:
        """Until it has ended: exit status, or below 0 the signal. ResmgrError (EHOSTDOWN, ...) if nobody will know."""
        await trio.lowlevel.checkpoint()
        await self._known.wait()
        if self.returncode is None:
            raise failure(self.node, self._failure)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To its process group. Not waited for; nothing if it has ended."""
        if not self._known.is_set():
            self._far.say(message.pack_signal(self._far.handle, number))

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the size of its terminal."""
        self._far.say(message.pack_winsize(self._far.handle, rows, columns))

    async def aclose(self) -> None:
        """Let go of it: its process group gets SIGHUP, and SIGKILL 2 s later, unless it has ended or is detached."""
        self._ended(errno.ECANCELED)
        for output in (self.stdout, self.stderr):
            if output is not None:
                output.close()
        self._far.close()
        await trio.lowlevel.checkpoint()

    def _on_end(self, status: int, reply: Buffer) -> None:
        try:
            ended: Ended | None = message.parse_ended(reply) if status >= 0 else None
        except BadMessage:
            ended, status = None, -errno.EBADMSG
        if ended is not None and not self._known.is_set():
            self.returncode = returncode(ended)
        self._ended(-status)

    def _ended(self, error: int) -> None:
        if not self._known.is_set():
            self._failure = error
            self._known.set()
        self._over()

    def _over(self) -> None:
        if self._known.is_set() and all(output is None or output.over for output in (self.stdout, self.stderr)):
            self._far.close()


class _Link:
    """A connection to this machine's daemon that lasts as long as both do."""

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.process: aio.Process | None = None
        self.error: OSError | None = None

    async def keep(self) -> None:
        """A system task: whatever goes wrong is told to who waits."""
        try:
            async with aio.open_process(socket_path()) as process:
                self.process = process
                self.ready.set()
                await process.gone.wait()
        except OSError as error:
            self.error = not_up(error)
        finally:
            self.ready.set()


_link: trio.lowlevel.RunVar[_Link | None] = trio.lowlevel.RunVar("qnetpy.processes")
"""The connection that all programs of a Trio run share."""


async def _shared() -> aio.Process:
    link = _link.get(None)
    if link is None or link.error is not None or (link.process is not None and link.process.gone.is_set()):
        link = _Link()
        _link.set(link)
        trio.lowlevel.spawn_system_task(link.keep)
    await link.ready.wait()
    if link.process is None:
        assert link.error is not None
        raise link.error
    return link.process


async def _node_descriptor(via: Via, node: str) -> Nd:
    """ResmgrError: ENOENT (nobody of that name is up), EINVAL."""
    if node in ("", via.kernel.node_name):
        return ND_LOCAL
    if "/" in node or node in (".", ".."):
        raise ResmgrError(errno.EINVAL)
    found, connection = await walk_trio(via.kernel, via.credentials, b"/net/" + node.encode(errors="surrogateescape"))
    aio.enter(via.kernel, connection.close)
    return Nd(found.address[0])


async def open_process(
    command: Command,
    *,
    node: str,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    via: Via | None = None,
    **options: Unpack[Options],
) -> Process:
    """Start a program on *node* ("": this one). *stdin*, *stdout*, *stderr*: PIPE for a stream, else nothing is carried. With a terminal
    (`tty`) stdin and stdout are it, whatever is said.
    """
    streams = _streams(stdin == PIPE, stdout == PIPE, stderr == PIPE)
    what = request(command, streams, options)
    if what.flags & message.SPAWN_PTY:
        streams = SPAWN_STDIN | SPAWN_STDOUT
    started = await _started(node, what, via, brief=False)
    return Process(command, started.far, started.pid, streams)


def _streams(stdin: bool, stdout: bool, stderr: bool) -> int:
    return (SPAWN_STDIN if stdin else 0) | (SPAWN_STDOUT if stdout else 0) | (SPAWN_STDERR if stderr else 0)


@attrs.frozen
class _Started:
    far: _Far
    pid: int
    told: Brief | None
    """None: it was not asked for briefly."""


async def _started(node: str, what: Spawn, via: Via | None, *, brief: bool) -> _Started:
    """Start it; *brief*: wait a moment for its end. One that has ended, and said all, has handle 0, and its connection is closed."""
    where = via if via is not None else await _shared()
    name = node or "this node"
    try:
        nd = await _node_descriptor(where, node)
        connection = where.kernel.connect(nd, PID_SYSTEM, CHID_PROCMGR, where.credentials)
        try:
            if brief:
                told = await _ask_briefly(connection, what)
                if told is not None:
                    far = _Far(connection, told.handle, name)
                    if not told.handle:
                        far.close()
                    return _Started(far, told.pid, told)
            reply = await aio.send(connection, (message.pack_spawn(what),), message.SPAWNED.size)
            handle, pid = message.parse_spawned(reply.data)
        except BaseException:
            aio.enter(where.kernel, connection.close)
            raise
    except BadMessage:
        raise failure(name, errno.EBADMSG) from None
    except ResmgrError as error:
        raise failure(name, error.errno or errno.EIO) from None
    return _Started(_Far(connection, handle, name), pid, None)


async def _ask_briefly(connection: Connection, what: Spawn) -> Brief | None:
    """None: an older node, which does not know that and started nothing. A cancellation waits for the answer: the program may run already,
    and how it is ended then is not for its node to say. ETIMEDOUT after TIMEOUT."""
    brief = message.pack_spawn(what._replace(flags=what.flags | message.SPAWN_BRIEF))
    await trio.lowlevel.checkpoint_if_cancelled()
    with trio.CancelScope(shield=True):
        try:
            room = message.BRIEF.size + message.BRIEF_OUTPUT
            reply = await aio.send(connection, (brief,), room, deadline=connection.kernel.dispatch.now() + TIMEOUT)
        except ResmgrError as error:
            if error.errno == errno.EBADMSG:
                return None
            raise
    return message.parse_brief(reply.data)


async def _deliver_cancel(process: Process) -> None:
    process.terminate()
    await trio.sleep(KILL_DELAY)
    process.kill()


async def _cancel(process: Process, deliver: Callable[[Process], Awaitable[object]]) -> None:
    """Until it has ended, or nobody will know."""

    async def run() -> None:
        await deliver(process)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            await process.wait()
        except ResmgrError:
            pass
        nursery.cancel_scope.cancel()


async def run_process(
    command: Command,
    *,
    node: str,
    stdin: Buffer = b"",
    capture_stdout: bool = False,
    capture_stderr: bool = False,
    check: bool = True,
    deliver_cancel: Callable[[Process], Awaitable[object]] | None = None,
    via: Via | None = None,
    **options: Unpack[Options],
) -> subprocess.CompletedProcess[bytes]:
    """Run a program on *node* to its end, as `trio.run_process`. What is not captured is not carried: its output goes to /dev/null.
    subprocess.CalledProcessError with *check* when its status is not 0. *deliver_cancel*: what to do with it when this is cancelled.
    """
    streams = _streams(bool(len(stdin)), capture_stdout, capture_stderr)
    what = request(command, streams, options)
    if what.flags & message.SPAWN_PTY:
        streams = SPAWN_STDIN | SPAWN_STDOUT
    # What waits for input does not end before it has it.
    brief = not what.flags & (SPAWN_STDIN | message.SPAWN_PTY | message.SPAWN_DETACHED)
    started = await _started(node, what, via, brief=brief)
    early = (b"", b"") if started.told is None else started.told.output
    if started.told is not None and not started.told.handle:
        assert started.told.ended is not None
        said = dict(zip((1, 2), early, strict=True))
        return _completed(command, options, returncode(started.told.ended), said, capture_stdout, capture_stderr, check)
    process = Process(command, started.far, started.pid, streams, started.told)
    said = {}
    lost: ResmgrError | None = None

    async def collect(number: int, stream: Output) -> None:
        parts: list[Buffer] = [early[number - 1]]
        try:
            async for part in stream:
                parts.append(part)
        except trio.BrokenResourceError:
            return  # of a node that is gone wait tells
        said[number] = b"".join(parts)

    async def feed(stream: Input) -> None:
        try:
            await stream.send_all(stdin)
        except trio.BrokenResourceError:
            return  # it reads no more, which is its own business
        await stream.aclose()

    async with process, trio.open_nursery() as nursery:
        if process.stdin is not None:
            nursery.start_soon(feed, process.stdin)
        for number, stream in ((1, process.stdout), (2, process.stderr)):
            if stream is not None:
                nursery.start_soon(collect, number, stream)
        try:
            await process.wait()
        except ResmgrError as error:
            lost = error
            nursery.cancel_scope.cancel()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await _cancel(process, deliver_cancel or _deliver_cancel)
            raise
    if lost is not None:
        raise lost
    assert process.returncode is not None
    return _completed(command, options, process.returncode, said, capture_stdout, capture_stderr, check)


def _completed(
    command: Command, options: Options, status: int, said: Mapping[int, bytes], stdout: bool, stderr: bool, check: bool
) -> subprocess.CompletedProcess[bytes]:
    captured = (said.get(1) if stdout else None, said.get(2) if stderr else None)
    shown = [word.decode(errors="surrogateescape") for word in words(command, options.get("shell", False))]
    if check and status:
        raise subprocess.CalledProcessError(status, shown, *captured)
    return subprocess.CompletedProcess(shown, status, *captured)
