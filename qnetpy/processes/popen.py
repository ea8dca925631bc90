"""`run` and `Popen`: as in `subprocess`, on a node. Blocking, without Trio; any thread may use them.

    result = run(["uname", "-n"], node="n2", capture_output=True, text=True, check=True)
    with Popen(["sort"], node="n2", stdin=PIPE, stdout=PIPE) as process: ...

Streams are descriptors of this process, which a thread fills and empties (`qnetpy.processes.mover`), so what works with `subprocess` works:
select, passing `stdout` on as another program's `stdin`, a file as `stdout`. What is different: standard input is empty unless it is said
what it is, since what was read for a program elsewhere cannot be given back; signals go to the program's process group; a program ends with
this one (SIGHUP) unless `detached=True`.

Errors. ResmgrError (an OSError): EPERM (not allowed there), EACCES (no usable account), EAGAIN (too many), ENOENT (no such node is up),
EINVAL, EOPNOTSUPP and ENOEXEC (`image="near"` is not possible there), and for `wait`, `poll` and `communicate` EHOSTDOWN: the node went
down, or ENOTCONN: the daemon here did, and nobody knows how the program ended. A program that is not there is exit status 127, one that
cannot be executed 126.
"""

from __future__ import annotations

import io
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Literal, TypeVar, Unpack, overload

from qnetpy.processes.mover import Mover, Output
from qnetpy.processes.request import Command, Options, failure, not_up, request, returncode, socket_path
from resmgr.client import Client
from resmgr.dispatch import Buffer
from resmgr.errors import ResmgrError
from resmgr.procmgr.client import Process, node_descriptor, spawn, start_briefly
from resmgr.procmgr.message import SPAWN_STDERR, SPAWN_STDIN, SPAWN_STDOUT, Spawn

PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT
DEVNULL = subprocess.DEVNULL

T = TypeVar("T")

Stream = int | IO[bytes] | IO[str] | None
PART = 64 * 1024


class Popen:
    """A program on *node* ("": this one). *stdin*, *stdout*, *stderr*: PIPE, DEVNULL, a descriptor or a file; STDOUT for *stderr*. None is
    nothing for *stdin*, else what this program has. With a terminal (`tty`) all is `stdout`. *socket*: of the daemon; found if None.
    """

    def __init__(
        self,
        args: Command,
        *,
        node: str,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        socket: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        terminal = bool(options.get("tty", False))
        flags = 0 if stdin in (None, DEVNULL) else SPAWN_STDIN
        if not options.get("detached", False):
            flags |= 0 if stdout == DEVNULL else SPAWN_STDOUT
            flags |= 0 if stderr == DEVNULL or (stderr == STDOUT and stdout == DEVNULL) else SPAWN_STDERR
        client, process = _asked(spawn, node, request(args, flags, options), socket)
        self._set_up(args, node, client, process, stdin, stdout, stderr, flags, terminal)

    def _set_up(
        self,
        args: Command,
        node: str,
        client: Client,
        process: Process,
        stdin: Stream,
        stdout: Stream,
        stderr: Stream,
        flags: int,
        terminal: bool,
        over: tuple[bool, bool] = (False, False),
    ) -> None:
        """*flags*: which streams are carried, *over*: of those of the output, which are at their end."""
        self.args = args
        self.node = node
        self.returncode: int | None = None
        """Below 0: the signal that killed it. None while it runs."""
        self.stdin: io.BufferedWriter | None = None
        self.stdout: io.BufferedReader | None = None
        self.stderr: io.BufferedReader | None = None
        self.pid = process.pid
        """On its node."""
        outputs: dict[int, Output] = {}
        source = -1
        if stdin == PIPE:
            source, end = os.pipe()
            os.set_blocking(source, False)
            self.stdin = os.fdopen(end, "wb")
        elif flags & SPAWN_STDIN and stdin is not None:
            source = os.dup(_descriptor(stdin))
        if flags & SPAWN_STDOUT or terminal:
            self.stdout, outputs[1] = _output(stdout, 1)
        if flags & SPAWN_STDERR and not terminal:
            if stderr == STDOUT:
                same = outputs[1]
                outputs[2] = Output(os.dup(same.fd) if same.ours else same.fd, same.ours)
            else:
                self.stderr, outputs[2] = _output(stderr, 2)
        for number, output in outputs.items():
            output.ended = over[number - 1]
        self._mover = Mover(client, process, source, outputs)
        self._mover.start()

    def __enter__(self) -> Popen:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Close the streams and wait for its end, as subprocess; after Ctrl-C, let go of it."""
        self._close_streams()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self.wait()

    def _close_streams(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                _close(stream)

    def poll(self) -> int | None:
        """`returncode`, without waiting. ResmgrError: nobody will know it."""
        return self._result() if self._mover.known.is_set() else None

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended. subprocess.TimeoutExpired after *timeout* seconds; ResmgrError (EHOSTDOWN, ...) if nobody will know."""
        if not self._mover.known.wait(timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired(_shown(self.args), timeout)
        return self._result()

    def _result(self) -> int:
        ended = self._mover.ended
        if ended is None:
            raise failure(self.node or "this node", self._mover.failure)
        self.returncode = returncode(ended)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To its process group. Not waited for; nothing if it has ended."""
        if self.returncode is None:
            self._mover.signal(number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the size of its terminal."""
        self._mover.winsize(rows, columns)

    def close(self) -> None:
        """Let go of it: its process group gets SIGHUP, and SIGKILL 2 s later, unless it is detached. The streams are closed."""
        self._mover.close()
        self._close_streams()

    def communicate(self, input: Buffer | None = None, timeout: float | None = None) -> tuple[bytes | None, bytes | None]:
        """Give it *input*, take what it says, wait for its end. subprocess.TimeoutExpired with what it said so far; it goes on then."""
        until = None if timeout is None else time.monotonic() + timeout
        said: dict[int, list[bytes]] = {}
        left = memoryview(input or b"")
        with selectors.DefaultSelector() as selector:
            if self.stdin is not None:
                if left:
                    os.set_blocking(self.stdin.fileno(), False)
                    selector.register(self.stdin, selectors.EVENT_WRITE)
                else:
                    _close(self.stdin)
            for number, stream in ((1, self.stdout), (2, self.stderr)):
                if stream is not None:
                    said[number] = []
                    selector.register(stream, selectors.EVENT_READ, number)
            while selector.get_map():
                ready = selector.select(None if until is None else max(0.0, until - time.monotonic()))
                if not ready and until is not None and time.monotonic() >= until:
                    assert timeout is not None
                    output, errors = (b"".join(said[number]) if number in said else None for number in (1, 2))
                    raise subprocess.TimeoutExpired(_shown(self.args), timeout, output, errors)
                for key, _ in ready:
                    if self.stdin is not None and key.fileobj is self.stdin:
                        try:
                            left = left[os.write(key.fd, left[:PART]) :]
                        except BlockingIOError:
                            continue
                        except BrokenPipeError:
                            left = left[:0]
                        if not left:
                            selector.unregister(self.stdin)
                            _close(self.stdin)
                    elif part := os.read(key.fd, PART):
                        said[key.data].append(part)
                    else:
                        selector.unregister(key.fileobj)
        self.wait(None if until is None else max(0.0, until - time.monotonic()))
        for closing in (self.stdout, self.stderr):
            if closing is not None:
                closing.close()
        output, errors = (b"".join(said[number]) if number in said else None for number in (1, 2))
        return output, errors


@overload
def run(
    args: Command,
    *,
    node: str,
    input: Buffer | None = None,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    text: Literal[False] = False,
    socket: str | None = None,
    **options: Unpack[Options],
) -> subprocess.CompletedProcess[bytes]: ...


@overload
def run(
    args: Command,
    *,
    node: str,
    input: str | None = None,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    text: Literal[True],
    socket: str | None = None,
    **options: Unpack[Options],
) -> subprocess.CompletedProcess[str]: ...


def run(
    args: Command,
    *,
    node: str,
    input: Buffer | str | None = None,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    text: bool = False,
    socket: str | None = None,
    **options: Unpack[Options],
) -> subprocess.CompletedProcess[bytes] | subprocess.CompletedProcess[str]:
    """Run a program on *node* and wait for its end, as `subprocess.run`. subprocess.CalledProcessError with *check*;
    subprocess.TimeoutExpired after it was killed. *text*: UTF-8, as it comes. Other errors: see the head of this file.
    """
    if input is not None:
        stdin = PIPE
    if capture_output:
        stdout = stderr = PIPE
    data = input.encode() if isinstance(input, str) else input
    quiet = (PIPE, DEVNULL)
    output: bytes | None
    errors: bytes | None
    if stdin in (None, DEVNULL) and stdout in quiet and stderr in quiet and not options.get("tty") and not options.get("detached"):
        code, output, errors = _run_briefly(args, node, stdout == PIPE, stderr == PIPE, timeout, socket, options)
    else:
        process = Popen(args, node=node, stdin=stdin, stdout=stdout, stderr=stderr, socket=socket, **options)
        code, output, errors = _to_the_end(process, data, timeout)
    result: subprocess.CompletedProcess[bytes] | subprocess.CompletedProcess[str]
    if text:
        texts = [None if part is None else part.decode(errors="surrogateescape") for part in (output, errors)]
        result = subprocess.CompletedProcess(_shown(args), code, *texts)
    else:
        result = subprocess.CompletedProcess(_shown(args), code, output, errors)
    if check:
        result.check_returncode()
    return result


def _to_the_end(process: Popen, data: Buffer | None, timeout: float | None) -> tuple[int, bytes | None, bytes | None]:
    """Exit status, output, errors. Whatever is raised, the program does not go on."""
    try:
        output, errors = process.communicate(data, timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.close()
        raise
    except BaseException:
        process.close()
        raise
    return process.wait(), output, errors


class _Begun(Popen):
    """A program that was started briefly and goes on."""

    def __init__(self, args: Command, node: str, client: Client, process: Process, flags: int, over: tuple[bool, bool]) -> None:
        stdout, stderr = (PIPE if flags & flag else DEVNULL for flag in (SPAWN_STDOUT, SPAWN_STDERR))
        self._set_up(args, node, client, process, None, stdout, stderr, flags, False, over)


def _run_briefly(
    args: Command, node: str, stdout: bool, stderr: bool, timeout: float | None, socket: str | None, options: Options
) -> tuple[int, bytes | None, bytes | None]:
    """`_to_the_end` of a program without input: a short one is one round trip, and needs no thread."""
    begin = time.monotonic()
    flags = (SPAWN_STDOUT if stdout else 0) | (SPAWN_STDERR if stderr else 0)
    client, begun = _asked(start_briefly, node, request(args, flags, options), socket)
    early, asked = begun.output, (stdout, stderr)
    if begun.process is None:
        client.close()
        assert begun.ended is not None
        output, errors = (part if wanted else None for part, wanted in zip(early, asked, strict=True))
        return returncode(begun.ended), output, errors
    process = _Begun(args, node, client, begun.process, flags, begun.over)
    left = None if timeout is None else max(0.0, begin + timeout - time.monotonic())
    try:
        code, *rest = _to_the_end(process, None, left)
    except subprocess.TimeoutExpired as expired:
        assert timeout is not None
        output, errors = (_joined(part, later) for part, later in zip(early, (expired.output, expired.stderr), strict=True))
        raise subprocess.TimeoutExpired(expired.cmd, timeout, output, errors) from None
    output, errors = (_joined(part, later) for part, later in zip(early, rest, strict=True))
    return code, output, errors


def _joined(early: bytes, later: bytes | None) -> bytes | None:
    return None if later is None else early + later


def _asked(start: Callable[[Client, int, Spawn], T], node: str, what: Spawn, socket: str | None) -> tuple[Client, T]:
    """Have *what* started over a connection of its own. Errors as the head of this file says."""
    try:
        client = Client(socket_path() if socket is None else socket)
    except OSError as error:
        raise not_up(error) from None
    try:
        return client, start(client, node_descriptor(client, node or client.node), what)
    except ResmgrError as error:
        client.close()
        raise failure(node or "this node", error.errno or 0) from None
    except BaseException:
        client.close()
        raise


def _descriptor(stream: int | IO[bytes] | IO[str]) -> int:
    return stream if isinstance(stream, int) else stream.fileno()


def _output(stream: Stream, own: int) -> tuple[io.BufferedReader | None, Output]:
    """What the caller reads, and where it goes."""
    if stream == PIPE:
        end, target = os.pipe()
        os.set_blocking(target, False)
        return os.fdopen(end, "rb"), Output(target, ours=True)
    return None, Output(own if stream is None else _descriptor(stream), ours=False)


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        pass


def _shown(args: Command) -> list[str] | str:
    """For an error's text."""
    if isinstance(args, str | bytes | os.PathLike):
        return os.fsdecode(args)
    return [os.fsdecode(word) for word in args]
