"""`NodeExecutor`: a `concurrent.futures.Executor` whose workers are on nodes.

    with NodeExecutor(where="cpus >= 4", image="near") as executor:
        for result in executor.map(function, range(1000), chunksize=10): ...

For each worker a thread here starts a Python there (`Popen`) and gives it one task after the other (`qnetpy.processes.worker`), so a slow
node takes less of the work than a quick one. At most `queue_size` tasks wait: `submit` then blocks, and `map` reads its input as results
are taken.

A worker that dies (a signal, no memory) is `BrokenWorker` for its task and is started again; one whose node goes down is too, and that node
takes no part any more; the others go on. With `retries` its task is given to another node first: only for functions that may run twice.
When no worker is left, what waits and what comes is `concurrent.futures.BrokenExecutor`.

What comes back is bytes that another node made. Unless `trust=True` they are read as plain values (`qnetpy.processes.values`), and
exceptions as built-in ones or `RemoteError`, so that whoever has taken a node over cannot run code here:
docs/decisions/results-of-workers.md.
"""

from __future__ import annotations

import builtins
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from importlib.resources import files
from typing import IO, ParamSpec, TypeVar, Unpack, cast

from qnetpy.processes import worker
from qnetpy.processes.popen import PIPE, Popen
from qnetpy.processes.request import Options
from qnetpy.processes.values import BadValue, decode
from qnetpy.processes.worker import FRAME, Task
from resmgr.errors import ResmgrError

P = ParamSpec("P")
T = TypeVar("T")

QUEUE_PER_WORKER = 16
RESULT_MAX = 256 << 20
"""Bytes of one result. Stops a node from having this program hold more."""
ERROR_MAX = 1 << 20
RESTARTS_MAX = 3
"""Workers that may die one after the other, without a task done, before a place is given up."""
STOP_SECONDS = 5.0
"""For a worker to end when its input does."""


class RemoteError(Exception):
    """A function failed there with an exception that is not built in. `kind` is its class as MODULE.NAME; not trusted, only text."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}" if text else kind)
        self.kind = kind


class RemoteTraceback(Exception):
    """The cause of every exception that comes from a worker; its text is the traceback there."""

    def __init__(self, node: str, text: str) -> None:
        super().__init__(f"on {node}\n\n{text}")


class BrokenWorker(BrokenExecutor):
    """The worker died under its task, or its node went down; nobody knows how far it came."""


class _Item:
    __slots__ = ("avoid", "data", "future", "retries", "single", "started")

    def __init__(self, data: bytes, single: bool, retries: int) -> None:
        self.data = data
        self.single = single
        self.future: Future[object] = Future()
        self.retries = retries
        self.avoid: set[str] = set()
        """Nodes on which it has failed."""
        self.started = False


class _Worker:
    """One Python on a node. Everything blocks. BrokenWorker when it is gone."""

    def __init__(self, node: str, command: Sequence[str], settings: bytes, trust: bool, socket: str | None, options: Options) -> None:
        self.node = node
        self._trust = trust
        self._process = Popen([*command, "-c", worker.BOOTSTRAP], node=node, stdin=PIPE, stdout=PIPE, socket=socket, **options)
        try:
            texts = [files("qnetpy.processes").joinpath(f"{name}.py").read_bytes() for name in ("values", "worker")]
            kind, data = self._ask(b"".join(b"%d\n%s" % (len(text), text) for text in texts), worker.SETTINGS, settings)
            if kind != worker.READY:
                raise self._error(data)
        except BaseException:
            self._process.close()
            raise

    def call(self, task: bytes) -> list[object]:
        kind, data = self._ask(b"", worker.TASK, task)
        if kind != worker.RESULT:
            raise self._error(data)
        results = pickle.loads(data) if self._trust else self._plain(data)
        if not isinstance(results, list):
            raise self._broken("answers what is no answer")
        return results

    def stop(self) -> None:
        try:
            self._stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(STOP_SECONDS)
        except (ResmgrError, subprocess.TimeoutExpired):
            pass  # it goes now, whatever it is doing
        self._process.close()

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _ask(self, before: bytes, kind: int, data: bytes) -> tuple[int, bytes]:
        try:
            self._stdin.write(before + FRAME.pack(len(data), kind))
            self._stdin.write(data)
            self._stdin.flush()
        except OSError:
            raise self._gone() from None
        length, answer = FRAME.unpack(self._read(FRAME.size))
        if length > (RESULT_MAX if answer == worker.RESULT else ERROR_MAX):
            raise self._broken(f"answers with {length} bytes, more than the {RESULT_MAX} of a result")
        return answer, self._read(length)

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise self._gone()
        return data

    def _gone(self) -> BrokenWorker:
        try:
            code = self._process.wait(STOP_SECONDS)
        except ResmgrError as error:
            return BrokenWorker(f"the worker on {error.strerror}")
        except subprocess.TimeoutExpired:
            return self._broken("closed its output")
        if code >= 0:
            return self._broken(f"ended with status {code}")
        known = -code in signal.valid_signals()
        return self._broken(f"was killed by {signal.Signals(-code).name if known else f'signal {-code}'}")

    def _broken(self, how: str) -> BrokenWorker:
        return BrokenWorker(f"the worker on {self.node} {how}")

    def _plain(self, data: bytes) -> object:
        try:
            return decode(data)
        except BadValue as error:
            raise self._broken(f"answers what is no plain value: {error}") from None

    def _error(self, data: bytes) -> BaseException:
        match self._plain(data):
            case (str(module), str(name), args, str(text), str(trace), bytes(whole)):
                error: BaseException | None = pickle.loads(whole) if whole and self._trust else None
                if not isinstance(error, BaseException):
                    error = _builtin(module, name, args) or RemoteError(f"{module}.{name}", text)
                error.__cause__ = RemoteTraceback(self.node, trace)
                return error
        raise self._broken("answers what is no answer")


def _builtin(module: str, name: str, args: object) -> Exception | None:
    kind = getattr(builtins, name, None) if module == "builtins" else None
    if isinstance(kind, type) and issubclass(kind, Exception) and isinstance(args, tuple):
        try:
            return kind(*args)
        except Exception:
            return None
    return None


class NodeExecutor(Executor):
    """*nodes*: by name; or *where*, a condition as of `qnet on --where`; or all that are up. *workers_per_node*: None for one for each
    processor.

    *trust*: believe pickles that come from there, with which whoever controls one of these nodes runs code here. *retries*: how often a
    task is given to another node after its worker died. *initializer* is called in each worker before any task. *python*: there; default
    this one with image="near", else python3. *options*: how workers are started (`Options`). ResmgrError and ValueError when no node can be
    chosen.
    """

    def __init__(
        self,
        nodes: Sequence[str] | None = None,
        *,
        where: str | None = None,
        workers_per_node: int | None = 1,
        trust: bool = False,
        retries: int = 0,
        queue_size: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[object, ...] = (),
        python: Sequence[str] = (),
        socket: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        places = _places(nodes, where, workers_per_node)
        near = options.get("image", "far") == "near"
        self._command = tuple(python) or ((sys.executable,) if near else ("python3",))
        self._settings = pickle.dumps(
            {
                "path": [os.path.abspath(entry) for entry in sys.path] if near else [],
                "near": near,
                "main": _main(),
                "trust": trust,
                "initializer": _pickled((initializer, [(initargs, {})])) if initializer is not None else None,
            },
            5,
        )
        self._trust = trust
        self._retries = retries
        self._socket = socket
        self._options = options
        self._items: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._shut = False
        self._broken = ""
        """Why no worker is left."""
        self._alive = [node for node, count in places for _ in range(count)]
        self.queue_size = queue_size if queue_size is not None else QUEUE_PER_WORKER * len(self._alive)
        self._threads = [
            threading.Thread(target=self._serve, args=(node,), name=f"qnet-worker-{node}", daemon=True) for node in list(self._alive)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As of `Executor`; blocks while `queue_size` tasks wait. TypeError when *fn* or what it is given cannot be sent."""
        return cast("Future[T]", self._put(_pickled((fn, [(args, kwargs)])), single=True))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[object],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Results in order. *chunksize* calls are one task; *buffersize* tasks are begun ahead of the reader (default: `queue_size`)."""
        if chunksize < 1 or (buffersize is not None and buffersize < 1):
            raise ValueError("chunksize and buffersize must be at least 1")
        until = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables, strict=False)
        ahead = buffersize if buffersize is not None else max(1, self.queue_size)
        futures: deque[Future[object]] = deque()

        def begin() -> bool:
            chunk: list[tuple[tuple[object, ...], dict[str, object]]] = [(args, {}) for args in itertools.islice(calls, chunksize)]
            if chunk:
                futures.append(self._put(_pickled((fn, chunk)), single=False))
            return bool(chunk)

        while len(futures) < ahead and begin():
            pass

        def results() -> Iterator[T]:
            try:
                while futures:
                    left = None if until is None else until - time.monotonic()
                    several = cast("list[T]", futures[0].result(left))
                    futures.popleft()
                    begin()
                    yield from several
            finally:
                for future in futures:
                    future.cancel()

        return results()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._changed:
            self._shut = True
            if cancel_futures:
                for item in self._items:
                    item.future.cancel()
                self._items.clear()
            self._changed.notify_all()
        if wait:
            for thread in self._threads:
                thread.join()

    def _put(self, data: bytes, single: bool) -> Future[object]:
        item = _Item(data, single, self._retries)
        with self._changed:
            while len(self._items) >= self.queue_size and not self._shut and not self._broken:
                self._changed.wait()
            if self._broken:
                raise BrokenExecutor(self._broken)
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._items.append(item)
            self._changed.notify_all()
        return item.future

    def _take(self, node: str) -> _Item | None:
        """The next one for a worker of *node*; None: no more will come."""
        with self._changed:
            while True:
                others = set(self._alive) - {node}
                for item in self._items:
                    if node not in item.avoid or not others - item.avoid:
                        self._items.remove(item)
                        self._changed.notify_all()
                        return item
                if self._shut and not self._items:
                    return None
                self._changed.wait()

    def _serve(self, node: str) -> None:
        """A thread: one worker after the other on *node*."""
        why, deaths = "", 0
        while deaths < RESTARTS_MAX:
            try:
                there = _Worker(node, self._command, self._settings, self._trust, self._socket, self._options)
            except Exception as error:
                why = f"{node}: no worker: {error}"
                break
            try:
                done, lost = self._use(there)
                if lost is None:
                    self._leave(node, "")
                    return
                why, deaths = str(lost), 1 if done else deaths + 1
            finally:
                there.stop()
        self._leave(node, why)

    def _use(self, there: _Worker) -> tuple[int, BrokenWorker | None]:
        """Give it tasks until there are none, or it is lost."""
        done = 0
        while (item := self._take(there.node)) is not None:
            if not item.started and not item.future.set_running_or_notify_cancel():
                continue
            item.started = True
            try:
                results = there.call(item.data)
                item.future.set_result(results[0] if item.single else results)
                done += 1
            except BrokenWorker as lost:
                self._failed(item, there.node, lost)
                return done, lost
            except BaseException as error:
                item.future.set_exception(error)
                done += 1
            del item
        return done, None

    def _failed(self, item: _Item, node: str, lost: BrokenWorker) -> None:
        if item.retries > 0:
            item.retries -= 1
            item.avoid.add(node)
            with self._changed:
                self._items.appendleft(item)
                self._changed.notify_all()
        else:
            item.future.set_exception(lost)

    def _leave(self, node: str, why: str) -> None:
        with self._changed:
            self._alive.remove(node)
            if not self._alive and why:
                self._broken = why
                for item in self._items:
                    if item.started or item.future.set_running_or_notify_cancel():
                        item.future.set_exception(BrokenExecutor(why))
                self._items.clear()
            self._changed.notify_all()


def _pickled(task: Task) -> bytes:
    function = task[0]
    if getattr(function, "__module__", "") == "__main__" and _main() == ("", ""):
        raise TypeError(f"{function!r} was typed in: a worker can only import what is in a file")
    try:
        return pickle.dumps(task, 5)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"cannot be sent to a worker: {error}; a function must be one that can be imported by its name") from None


def _main() -> tuple[str, str]:
    """Of the running program: the module's name if it was started with -m, else its file."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name), ""
    file = getattr(main, "__file__", None)
    return "", os.path.abspath(file) if file else ""


def _places(nodes: Sequence[str] | None, where: str | None, each: int | None) -> list[tuple[str, int]]:
    """Nodes, and how many workers on each."""
    from qnetpy.cli import daemon, selection
    from qnetpy.cli.output import CommandError
    from resmgr.procmgr.nodefacts import NodeFacts

    if nodes is not None and where is not None:
        raise ValueError("nodes are named, or chosen by a condition, not both")
    if each is not None and each < 1:
        raise ValueError("workers_per_node must be at least 1")
    if nodes is not None and each is not None:
        if not nodes:
            raise ValueError("no nodes")
        return [(node, each) for node in nodes]
    try:
        with daemon.connect() as client:
            if where is not None:
                found = selection.fitting(client, where, None)
            else:
                places = selection.up(None) if nodes is None else selection.named(client, list(nodes))
                found = selection.reports(client, places)
    except CommandError as error:
        raise ValueError(str(error)) from None
    return [(report.place.name, each if each is not None else report.facts.cpus) for report in found if isinstance(report.facts, NodeFacts)]
