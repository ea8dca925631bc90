"""The process manager: channel (PID_SYSTEM, CHID_PROCMGR) of a node. docs/protocol/spawn.md has the messages.

Every request is authorised before anything is done with it. A client of another node needs the verb `spawn`, which nobody has unless the
configuration says so; programs run as the mapped user. A client of this node acts as itself. Each attempt to start or signal something
leaves a line in the log (logger `resmgr.procmgr`), allowed or not, with the client's node and claimed uid and the user it became.

A process belongs to the client connection that started it. When that goes (its program or its node died, it was closed), the process
gets SIGHUP, and after a grace SIGKILL, with its whole process group; a detached one goes on.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator

import attrs

from resmgr.access import MappedUser, Policy, Verb
from resmgr.channel import CHID_PROCMGR, ND_LOCAL, PID_SYSTEM, PULSE_DISCONNECT, ClientInfo, Kernel, Message, Pulse
from resmgr.dispatch import Buffer, Dispatch
from resmgr.errors import BadMessage, ResmgrError, errno_of
from resmgr.procmgr import listing, message, nodefacts
from resmgr.procmgr.attempts import asker, shown, wanted, who
from resmgr.procmgr.audit import PATIENCE, AuditLog, Fact
from resmgr.procmgr.auditthread import AuditThread, NotRecorded, Record, recorded
from resmgr.procmgr.brief import BriefAnswer
from resmgr.procmgr.carried import Carriers
from resmgr.procmgr.launch import Launched, Launcher, Terms, discard
from resmgr.procmgr.message import SPAWN_BRIEF, SPAWN_MAX, SPAWN_PTY, SPAWN_ROOT, Proc, Spawn
from resmgr.procmgr.outliving import Outliving
from resmgr.procmgr.process import Process, State
from resmgr.procmgr.readings import Readings
from resmgr.procmgr.rules import Reach, Refusal, SpawnRules
from resmgr.procmgr.signals import PID_MAX, SIGNAL_MAX, send_to_process
from resmgr.users import LookingUp, retry

log = logging.getLogger("resmgr.procmgr")

PROCESSES_MAX = 512
PROCESSES_PER_NODE_MAX = 256
PROCESSES_PER_CLIENT_MAX = 64
"""Processes held, starting ones and unclosed ended ones included. Stop a client, or one node, from using up processes and descriptors."""
FIRST_PART = message.STREAM_DATA + message.WRITE_UNASKED
CLOSE_PATIENCE = 0.2
"""Seconds that processes have after SIGHUP when the manager closes."""
FACTS_FRESH = 0.5
"""Seconds for which facts are told again: a hundred clients that look for a place at once cost one reading."""

_Owner = tuple[int, int]


@attrs.define(eq=False)
class _Start:
    """A program that is being started by the launcher's thread."""

    owner: _Owner
    request: Message
    spawn: Spawn
    number: int
    """By which the lines of the audit log about it are found."""

    @property
    def local(self) -> bool:
        return self.owner[0] == ND_LOCAL


@attrs.frozen
class ProcessFacts:
    """One spawned process, for status and tests."""

    handle: int
    pid: int
    node: str
    user: str
    command: str
    state: str
    seconds: float


class ProcessManager:
    """Create it once per node. `close` ends every process that it still holds, detached ones excepted."""

    def __init__(
        self,
        kernel: Kernel,
        dispatch: Dispatch,
        policy: Policy,
        rules: SpawnRules | None = None,
        *,
        namespace: str | None = None,
        open_files: tuple[int, int] | None = None,
        audit: str = "",
    ) -> None:
        """*namespace*: the mount namespace that programs see, *open_files*: their soft and hard limit, if they are not the daemon's
        (`Launcher`). *audit*: the file of the audit log."""
        self.policy = policy
        self.rules = SpawnRules() if rules is None else rules
        self.refusals: dict[Refusal, int] = dict.fromkeys(Refusal, 0)
        self.spawned = 0
        self.mistakes = 0
        """Requests that failed by a mistake of ours."""
        self._audit_thread = AuditThread()
        self.audit = AuditLog(audit, dispatch.wall, dispatch.now, self._audit_thread.put)
        self.network = ""
        """Where other nodes' files are mounted, if they are: by who mounts them."""
        self.fingerprint: Callable[[str], str] = lambda node: ""
        """Of the key of a node: by who knows it."""
        self.carriers = Carriers(kernel, dispatch)
        self._kernel = kernel
        self._dispatch = dispatch
        self._launcher = Launcher(namespace)
        self._outliving = Outliving(audit and f"{audit}-detached", dispatch, self._audit_thread.put, self._ended_unseen)
        self._open_files = open_files
        self._attempts = 0
        self._processes: dict[int, Process] = {}
        self._owner: dict[int, tuple[_Owner, ClientInfo]] = {}
        self._starting: set[_Start] = set()
        self._results: list[tuple[_Start, MappedUser, Launched | Exception]] = []
        """Of the launcher, on their way to the dispatch."""
        self._over = False
        self._handing_over = threading.Lock()
        self._next = 1
        self._closed = False
        self._table: dict[int, Callable[[Message, int, int, int], None]] = {
            Proc.SPAWN: self._spawn,
            Proc.READ: self._read,
            Proc.WRITE: self._write,
            Proc.SIGNAL: self._signal,
            Proc.WINSIZE: self._winsize,
            Proc.WAIT: self._wait,
            Proc.CLOSE: self._close,
            Proc.LIST: self._list,
            Proc.KILL: self._kill,
            Proc.FACTS: self._facts,
            Proc.CARRY: self._carry,
        }
        self._readings = Readings(dispatch)
        self._known: tuple[float, bytes] = (float("-inf"), b"")
        self._asking: list[Message] = []
        """Those who wait for the reading of facts that is under way."""
        self._channel = kernel.channel(self._receive, on_pulse=self._pulse, pid=PID_SYSTEM, chid=CHID_PROCMGR, first_part=FIRST_PART)

    def facts(self) -> Iterator[ProcessFacts]:
        for process in self._processes.values():
            info = self._owner[process.handle][1]
            command = " ".join(os.fsdecode(argument) for argument in process.command)
            name = os.fsdecode(process.account.name)
            seconds = self._dispatch.now() - process.started
            yield ProcessFacts(process.handle, process.pid, info.node, name, command, process.state.value, seconds)

    def figures(self) -> Iterator[tuple[str, int]]:
        """Counters by name, for statistics."""
        yield "processes", len(self._processes)
        yield "processes_starting", len(self._starting)
        yield "processes_started", self.spawned
        yield "process_manager_mistakes", self.mistakes
        yield "audit_unwritten", self.audit.dropped
        yield from self.carriers.figures()
        for reason, count in self.refusals.items():
            yield f"spawn_refused.{reason.value}", count

    def close(self) -> None:
        """Refuse everything from now on; SIGHUP, then SIGKILL to what still runs. Blocks up to CLOSE_PATIENCE seconds for that."""
        if self._closed:
            return
        self._closed = True
        self._channel.destroy()
        self.carriers.close()
        self._launcher.close(CLOSE_PATIENCE)
        with self._handing_over:
            self._over = True
        self._take()
        self._starting.clear()
        leaving = [process for process in self._processes.values() if not process.detached]
        for process in leaving:
            process.close()
        _await_ends(leaving)
        for process in leaving:
            if process.state is not State.FREED:
                process.end()
        _await_ends(leaving)
        for process in list(self._processes.values()):
            process.reap()
        self._outliving.close()
        if self._audit_thread.close():
            self.audit.close()

    def _receive(self, request: Message) -> None:
        self._handle(request, lambda: self._dispatched(request))

    def _dispatched(self, request: Message) -> None:
        kind, subtype, flags, handle = message.parse_header(request.data)
        operation = self._table.get(kind)
        if operation is None:
            request.error(errno.ENOSYS)
        else:
            operation(request, subtype, flags, handle)

    def _handle(self, request: Message, call: Callable[[], None]) -> None:
        """Whatever *call* raises is an answer to its client and ends nothing else."""
        try:
            call()
        except LookingUp as looking:
            retry(request, looking, lambda request: self._handle(request, call))
        except BadMessage as error:
            self._refuse(request, Refusal.BAD_MESSAGE, errno.EBADMSG, str(error))
        except Exception as error:
            if not isinstance(error, ResmgrError):
                self.mistakes += 1
                log.exception("a mistake in the process manager; only this request has failed: %s", who(request.info))
            if not request.answered:
                request.error(errno_of(error))

    def _pulse(self, pulse: Pulse) -> None:
        if pulse.code != PULSE_DISCONNECT:
            return
        owner = _owner(pulse.info)
        for handle in [handle for handle, (other, _) in self._owner.items() if other == owner]:
            self._processes[handle].close()

    def _refuse(self, request: Message, refusal: Refusal, code: int, why: str, what: str = "request", **facts: Fact) -> None:
        self.refusals[refusal] += 1
        log.warning("%s refused: %s; %s", what, why or refusal.value, who(request.info))
        info = request.info
        name = info.node or f"uid {info.credentials.uid}"
        self.audit.refused(name, {"what": what, "reason": refusal.value, "why": why, **self._client(info), **facts})
        if not request.answered:
            request.error(code)

    def _client(self, info: ClientInfo) -> dict[str, Fact]:
        return asker(info, self.fingerprint(info.node) if info.node else "")

    def _user(self, request: Message, what: str) -> MappedUser | None:
        """The mapped user of a client that may spawn; None when the request was refused."""
        info = request.info
        if self._closed:
            request.error(errno.ESHUTDOWN)
            return None
        if not self.policy.may(info, Verb.SPAWN):
            self._refuse(request, Refusal.NOT_GRANTED, errno.EPERM, "", what)
            return None
        user = self.policy.user(info)
        if isinstance(user, int):
            self._refuse(request, Refusal.NO_USER, user, "", what)
            return None
        return user

    def _spawn(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        if self._user(request, "spawn") is None:
            return
        if request.msglen > SPAWN_MAX:
            request.error(errno.E2BIG)
        elif len(request.data) >= request.msglen:
            self._start(request, request.data)
        else:
            request.read(0, request.msglen, functools.partial(self._arrived, request))

    def _arrived(self, request: Message, count: int, data: Buffer) -> None:
        if not request.answered:
            self._handle(request, lambda: self._whole(request, count, data))

    def _whole(self, request: Message, count: int, data: Buffer) -> None:
        if count != request.msglen:
            raise BadMessage("SPAWN cut short")
        self._start(request, data)

    def _start(self, request: Message, data: Buffer) -> None:
        spawn = message.parse_spawn(data)
        what = f"spawn of {shown(spawn.arguments[0])}"
        # Asked again: pulling the message may have taken a while.
        user = self._user(request, what)
        if user is None:
            return
        if spawn.arguments[0].startswith(b"-") or (spawn.directory and not spawn.directory.startswith(b"/")):
            request.error(errno.EINVAL)
            return
        facts = wanted(spawn, user)
        terms = self._terms(request.info, user, spawn)
        if isinstance(terms, Refusal):
            self._refuse(request, terms, errno.EPERM, f"{terms.value}: uid {user.uid}", what, **facts)
            return
        if spawn.flags & SPAWN_ROOT and request.info.nd != ND_LOCAL and not self.network:
            request.error(errno.EOPNOTSUPP)
            return
        owner = _owner(request.info)
        if self._full(owner):
            self._refuse(request, Refusal.TOO_MANY, errno.EAGAIN, "", what, **facts)
            return
        self._attempts += 1
        start = _Start(owner, request, spawn, self._attempts)
        record = Record()
        self.audit.write("allowed", {"id": start.number, **self._client(request.info), **facts}, record.written, local=start.local)
        self._starting.add(start)
        self._launcher.launch(
            user, spawn, terms, functools.partial(recorded, record, PATIENCE), functools.partial(self._launched, start, user)
        )

    def _terms(self, info: ClientInfo, user: MappedUser, spawn: Spawn) -> Terms | Refusal:
        """On what terms the rules let it start."""
        if info.nd == ND_LOCAL:
            # A program of this machine may what its user may here.
            return (
                Refusal.PRIORITY_NOT_ALLOWED if spawn.nice < 0 and user.uid != 0 else Terms(self._open_files, node=self._kernel.node_name)
            )
        rule = self.rules.decide(info, user, spawn)
        if isinstance(rule, Refusal):
            return rule
        tree = f"{self.network}/{info.node}" if spawn.flags & SPAWN_ROOT else ""
        return Terms(self._open_files, rule.commands is not None, tree, self.network, self._kernel.node_name)

    def _full(self, owner: _Owner) -> bool:
        owners = [other for other, _ in self._owner.values()] + [start.owner for start in self._starting]
        return (
            len(owners) >= PROCESSES_MAX
            or sum(other == owner for other in owners) >= PROCESSES_PER_CLIENT_MAX
            or (owner[0] != ND_LOCAL and sum(other[0] == owner[0] for other in owners) >= PROCESSES_PER_NODE_MAX)
        )

    def _launched(self, start: _Start, user: MappedUser, result: Launched | Exception) -> None:
        """In a thread of the launcher. What was started is never nobody's: it is taken by the dispatch or by `close`, or ended here."""
        with self._handing_over:
            if not self._over:
                self._results.append((start, user, result))
                self._dispatch.call_from_thread(self._take)
                return
        if isinstance(result, Launched):
            discard(result)

    def _take(self) -> None:
        with self._handing_over:
            results, self._results = self._results, []
        for start, user, result in results:
            try:
                self._started(start, user, result)
            except Exception as error:
                self.mistakes += 1
                log.exception("a program that was started cannot be kept; it is ended: %s", who(start.request.info))
                if isinstance(result, Launched):
                    # It may take its time to die.
                    threading.Thread(target=discard, args=(result,), name="procmgr-discard", daemon=True).start()
                if not start.request.answered:
                    start.request.error(errno_of(error))

    def _started(self, start: _Start, user: MappedUser, result: Launched | Exception) -> None:
        self._starting.discard(start)
        request, spawn = start.request, start.spawn
        what = f"spawn of {shown(spawn.arguments[0])} as uid {user.uid}"
        if isinstance(result, NotRecorded):
            self._refuse(request, Refusal.NO_AUDIT, errno.EIO, f"{self.audit.path}: {result.strerror}", what, id=start.number)
            return
        if isinstance(result, Exception):
            self.refusals[Refusal.NOT_STARTED] += 1
            log.warning("%s failed: %s; %s", what, result, who(request.info))
            self.audit.told("failed", {"id": start.number, "why": str(result)}, local=start.local)
            if not request.answered:
                request.error(errno_of(result))
            return
        handle = self._next
        self._next += 1
        process = Process(self._dispatch, handle, result, spawn, self._freed, functools.partial(self._ended, start))
        self._processes[handle] = process
        self._owner[handle] = (start.owner, request.info)
        self.spawned += 1
        facts: dict[str, Fact] = {"pid": result.pid, "user": os.fsdecode(result.account.name), "uid": result.account.user.uid}
        self.audit.told("started", {"id": start.number, **facts}, local=start.local)
        if process.detached:
            self._outliving.add(start.number, result.pid, start.local)
        log.info(
            "%s: pid %d, user %s%s, %.1f ms; %s",
            what,
            result.pid,
            os.fsdecode(result.account.name),
            ", terminal" if spawn.flags & SPAWN_PTY else "",
            result.milliseconds,
            who(request.info),
        )
        waits = request.client_waits and not self._closed
        if waits and not request.answered and spawn.flags & SPAWN_BRIEF:
            BriefAnswer(self._dispatch, process, request, lambda: request.client_waits and not self._closed)
            return
        if not request.answered:
            request.reply(0, message.pack_spawned(handle, result.pid))
        if not waits:
            # Nobody was told of it, so nobody can want it; a detached one neither.
            process.detached = False
            process.close()

    def _ended(self, start: _Start, process: Process) -> None:
        if process.ended is not None:
            seconds = round(self._dispatch.now() - process.started, 3)
            facts: dict[str, Fact] = {"status": process.ended.status, "signal": process.ended.signal, "seconds": seconds}
            self.audit.told("ended", {"id": start.number, "pid": process.pid, **facts}, local=start.local)
            if process.detached:
                self._outliving.remove(process.pid)

    def _ended_unseen(self, facts: dict[str, Fact], local: bool) -> None:
        self.audit.told("ended", facts, local=local)

    def _freed(self, process: Process) -> None:
        del self._processes[process.handle]
        del self._owner[process.handle]

    def _process(self, request: Message, handle: int) -> Process:
        """The client's own process; ResmgrError(EBADF) for a handle that is not its own."""
        owned = self._owner.get(handle)
        if owned is None or owned[0] != _owner(request.info) or self._processes[handle].state is State.LEAVING:
            raise ResmgrError(errno.EBADF)
        return self._processes[handle]

    def _read(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        number, size = message.parse_stream(request.data)
        outlet = self._process(request, handle).outlets.get(subtype)
        if outlet is None:
            raise ResmgrError(errno.EBADF)
        outlet.read(request, number, size)

    def _write(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        number, _ = message.parse_stream(request.data)
        if flags & ~message.WRITE_LAST:
            raise BadMessage("WRITE has unknown flags")
        inlet = self._process(request, handle).inlet
        if inlet is None or subtype != 0:
            raise ResmgrError(errno.EBADF)
        inlet.write(request, number, bool(flags & message.WRITE_LAST))

    def _carry(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        # The program runs here: there is no way to save. From another node it is nonsense.
        request.error(errno.ENOTSUP)

    def _signal(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        (number,) = message.parse_fixed(request.data, message.SIGNAL)
        process = self._process(request, handle)
        _answer(request, errno.EINVAL if not 0 <= number <= SIGNAL_MAX else process.signal(number))

    def _winsize(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        size = message.parse_fixed(request.data, message.WINSIZE)
        _answer(request, self._process(request, handle).winsize(size))

    def _wait(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        if flags & ~message.WAIT_STOP:
            raise BadMessage("WAIT has unknown flags")
        self._process(request, handle).wait(request, bool(flags & message.WAIT_STOP))

    def _close(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        process = self._process(request, handle)
        if not flags:
            process.close()
        elif flags != message.CLOSE_STREAM:
            raise BadMessage("CLOSE has unknown flags")
        elif not process.close_stream(subtype):
            raise ResmgrError(errno.EBADF)
        request.reply(0)

    def _reach(self, request: Message, user: MappedUser, what: str) -> frozenset[int] | Reach | None:
        """Which processes the client may see and signal of those that its user may: all, or these. None when the request was refused."""
        info = request.info
        reach = Reach.ALL if info.nd == ND_LOCAL else self.rules.reach(info, user)
        if isinstance(reach, Refusal):
            self._refuse(request, reach, errno.EPERM, f"{reach.value}: uid {user.uid}", what)
            return None
        if reach is Reach.ALL:
            return reach
        started = [process for process in self._processes.values() if self._owner[process.handle][1].node == info.node]
        return frozenset(process.pid for process in started if process.account.user.uid == user.uid)

    def _list(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        (after,) = message.parse_fixed(request.data, message.LIST)
        user = self._user(request, "process list")
        if user is None:
            return
        reach = self._reach(request, user, "process list")
        if reach is None:
            return
        only = None if isinstance(reach, Reach) else reach
        limit = min(request.reply_len, message.READ_MAX)

        def read() -> listing.Rows:
            # Somebody who has gone, or given up, is not worth a reading.
            return listing.rows_for(user, only, after, limit) if request.client_waits else (0, b"")

        def done(result: listing.Rows | BaseException) -> None:
            if request.answered:
                return
            if isinstance(result, BaseException):
                request.error(errno_of(result))
            else:
                request.reply(*result)

        if not self._readings.submit((request.info.nd, user.uid), read, done):
            self._refuse(request, Refusal.TOO_MANY, errno.EAGAIN, "", "process list")

    def _facts(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        if self._user(request, "facts of the node") is None:
            return
        read_at, data = self._known
        if self._dispatch.now() - read_at < FACTS_FRESH:
            request.reply(0, data)
            return
        self._asking.append(request)
        if len(self._asking) == 1:
            self._dispatch.call_blocking(nodefacts.read, self._facts_read)

    def _facts_read(self, result: nodefacts.NodeFacts | BaseException) -> None:
        asking, self._asking = self._asking, []
        if not isinstance(result, BaseException):
            self._known = self._dispatch.now(), nodefacts.pack(result)
        for request in asking:
            if request.answered:
                continue
            if isinstance(result, BaseException):
                request.error(errno_of(result))
            else:
                request.reply(0, self._known[1])

    def _kill(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        pid, number, began = message.parse_fixed(request.data, message.KILL)
        what = f"signal {number} to pid {pid}"
        user = self._user(request, what)
        if user is None:
            return
        if not 0 <= number <= SIGNAL_MAX or not 1 <= pid <= PID_MAX:
            raise ResmgrError(errno.EINVAL)
        local = request.info.nd == ND_LOCAL
        facts: dict[str, Fact] = {"uid": user.uid, "pid": pid, "signal": number}
        reach = self._reach(request, user, what)
        if reach is None:
            return
        if not isinstance(reach, Reach) and pid not in reach:
            self._refuse(request, Refusal.SIGNAL_NOT_ALLOWED, errno.EPERM, "not started by its node", what, **facts)
            return
        over = False

        def recorded(failure: OSError | None) -> None:
            nonlocal over
            if over or self._closed:
                return
            over = True
            late.cancel()
            if failure is not None:
                self._refuse(request, Refusal.NO_AUDIT, errno.EIO, f"{self.audit.path}: {failure.strerror}", what, **facts)
            else:
                self._handle(request, send)

        def send() -> None:
            try:
                send_to_process(user, pid, number, began)
            except OSError as error:
                self.audit.told("failed", {"pid": pid, "why": error.strerror}, local=local)
                log.warning("%s as uid %d failed: %s; %s", what, user.uid, error.strerror, who(request.info))
                raise ResmgrError(errno_of(error)) from None
            log.info("%s as uid %d; %s", what, user.uid, who(request.info))
            if not request.answered:
                request.reply(0)

        timeout = TimeoutError(errno.ETIMEDOUT, "not written in time")
        late = self._dispatch.call_at(self._dispatch.now() + PATIENCE, lambda: recorded(timeout))
        self.audit.write(
            "signal",
            {**self._client(request.info), **facts},
            lambda failure: self._dispatch.call_from_thread(lambda: recorded(failure)),
            local=local,
        )


def _answer(request: Message, code: int) -> None:
    if code:
        request.error(code)
    else:
        request.reply(0)


def _owner(info: ClientInfo) -> _Owner:
    return info.nd, info.scoid


def _await_ends(processes: list[Process]) -> None:
    """Until all have ended, at most CLOSE_PATIENCE seconds."""
    poller = select.poll()
    running = {process.descriptor for process in processes if process.state is not State.FREED}
    for fd in running:
        poller.register(fd, select.POLLIN)
    end = time.monotonic() + CLOSE_PATIENCE
    while running and (left := end - time.monotonic()) > 0:
        for fd, _ in poller.poll(left * 1e3):
            poller.unregister(fd)
            running.discard(fd)
