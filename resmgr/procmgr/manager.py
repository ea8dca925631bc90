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
import signal
import time
from collections.abc import Callable, Iterator

import attrs

from resmgr.access import MappedUser, Policy, Verb
from resmgr.channel import CHID_PROCMGR, ND_LOCAL, PID_SYSTEM, PULSE_DISCONNECT, ClientInfo, Kernel, Message, Pulse
from resmgr.dispatch import Buffer, Dispatch
from resmgr.errors import BadMessage, ResmgrError, errno_of
from resmgr.procmgr import listing, message, nodefacts
from resmgr.procmgr.audit import AuditLog, Fact, words
from resmgr.procmgr.brief import BriefAnswer
from resmgr.procmgr.carried import Carriers
from resmgr.procmgr.launch import Launched, Launcher, Terms
from resmgr.procmgr.message import SPAWN_BRIEF, SPAWN_DETACHED, SPAWN_MAX, SPAWN_PTY, SPAWN_ROOT, Proc, Spawn
from resmgr.procmgr.process import Process, State
from resmgr.procmgr.rules import Refusal, SpawnRules

log = logging.getLogger("resmgr.procmgr")

PROCESSES_MAX = 512
PROCESSES_PER_NODE_MAX = 256
PROCESSES_PER_CLIENT_MAX = 64
"""Processes held, starting ones and unclosed ended ones included. Stop a client, or one node, from using up processes and descriptors."""
FIRST_PART = message.STREAM_DATA + message.WRITE_UNASKED
CLOSE_PATIENCE = 0.2
"""Seconds that processes have after SIGHUP when the manager closes."""
SIGNAL_MAX = 64
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
        self.audit = AuditLog(audit, dispatch.wall, dispatch.now)
        self.network = ""
        """Where other nodes' files are mounted, if they are: by who mounts them."""
        self.fingerprint: Callable[[str], str] = lambda node: ""
        """Of the key of a node: by who knows it."""
        self.carriers = Carriers(kernel, dispatch)
        self._dispatch = dispatch
        self._launcher = Launcher(namespace)
        self._open_files = open_files
        self._attempts = 0
        self._processes: dict[int, Process] = {}
        self._owner: dict[int, tuple[_Owner, ClientInfo]] = {}
        self._starting: set[_Start] = set()
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
        self._known: tuple[float, bytes] = (float("-inf"), b"")
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
        leaving = [process for process in self._processes.values() if not process.detached]
        for process in leaving:
            process.close()
        _await_ends(leaving)
        for process in leaving:
            if process.state is not State.FREED:
                process.kill()
        _await_ends(leaving)
        for process in list(self._processes.values()):
            process.reap()
        self.audit.close()

    def _receive(self, request: Message) -> None:
        try:
            kind, subtype, flags, handle = message.parse_header(request.data)
            operation = self._table.get(kind)
            if operation is None:
                request.error(errno.ENOSYS)
            else:
                operation(request, subtype, flags, handle)
        except BadMessage as error:
            self._refuse(request, Refusal.BAD_MESSAGE, errno.EBADMSG, str(error))
        except ResmgrError as error:
            request.error(errno_of(error))

    def _pulse(self, pulse: Pulse) -> None:
        if pulse.code != PULSE_DISCONNECT:
            return
        owner = _owner(pulse.info)
        for handle in [handle for handle, (other, _) in self._owner.items() if other == owner]:
            self._processes[handle].close()

    def _refuse(self, request: Message, refusal: Refusal, code: int, why: str, what: str = "request", **facts: Fact) -> None:
        self.refusals[refusal] += 1
        log.warning("%s refused: %s; %s", what, why or refusal.value, _who(request.info))
        known = self._client(request.info) | facts
        known.pop("node")
        self.audit.refused(request.info.node, what=what, reason=refusal.value, why=why, **known)
        if not request.answered:
            request.error(code)

    def _client(self, info: ClientInfo) -> dict[str, Fact]:
        """What a line of the audit log says of who asks."""
        claimed = info.credentials
        return {
            "node": info.node,
            "fingerprint": self.fingerprint(info.node) if info.node else "",
            "roles": sorted(info.roles),
            "claimed_uid": claimed.uid,
            "claimed_gid": claimed.gid,
            "client_pid": claimed.pid,
        }

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
        if request.answered:
            return
        try:
            if count != request.msglen:
                raise BadMessage("SPAWN cut short")
            self._start(request, data)
        except BadMessage as error:
            self._refuse(request, Refusal.BAD_MESSAGE, errno.EBADMSG, str(error))

    def _start(self, request: Message, data: Buffer) -> None:
        spawn = message.parse_spawn(data)
        what = f"spawn of {_shown(spawn.arguments[0])}"
        # Asked again: pulling the message may have taken a while.
        user = self._user(request, what)
        if user is None:
            return
        if spawn.arguments[0].startswith(b"-") or (spawn.directory and not spawn.directory.startswith(b"/")):
            request.error(errno.EINVAL)
            return
        wanted = _wanted(spawn, user)
        terms = self._terms(request.info, user, spawn)
        if isinstance(terms, Refusal):
            self._refuse(request, terms, errno.EPERM, f"{terms.value}: uid {user.uid}", what, **wanted)
            return
        if spawn.flags & SPAWN_ROOT and request.info.nd != ND_LOCAL and not self.network:
            request.error(errno.EOPNOTSUPP)
            return
        owner = _owner(request.info)
        if self._full(owner):
            self._refuse(request, Refusal.TOO_MANY, errno.EAGAIN, "", what, **wanted)
            return
        self._attempts += 1
        start = _Start(owner, request, spawn, self._attempts)
        try:
            self.audit.write("allowed", id=start.number, **self._client(request.info), **wanted)
        except OSError as error:
            self._refuse(request, Refusal.NO_AUDIT, errno.EIO, f"{self.audit.path}: {error.strerror}", what, **wanted)
            return
        self._starting.add(start)
        self._launcher.launch(
            user, spawn, terms, lambda result: self._dispatch.call_from_thread(functools.partial(self._started, start, user, result))
        )

    def _terms(self, info: ClientInfo, user: MappedUser, spawn: Spawn) -> Terms | Refusal:
        """On what terms the rules let it start."""
        if info.nd == ND_LOCAL:
            # A program of this machine may what its user may here.
            return Refusal.PRIORITY_NOT_ALLOWED if spawn.nice < 0 and user.uid != 0 else Terms(self._open_files)
        rule = self.rules.decide(info, user, spawn)
        if isinstance(rule, Refusal):
            return rule
        tree = f"{self.network}/{info.node}" if spawn.flags & SPAWN_ROOT else ""
        return Terms(self._open_files, rule.commands is not None, tree, self.network)

    def _full(self, owner: _Owner) -> bool:
        owners = [other for other, _ in self._owner.values()] + [start.owner for start in self._starting]
        return (
            len(owners) >= PROCESSES_MAX
            or sum(other == owner for other in owners) >= PROCESSES_PER_CLIENT_MAX
            or (owner[0] != ND_LOCAL and sum(other[0] == owner[0] for other in owners) >= PROCESSES_PER_NODE_MAX)
        )

    def _started(self, start: _Start, user: MappedUser, result: Launched | Exception) -> None:
        self._starting.discard(start)
        request, spawn = start.request, start.spawn
        what = f"spawn of {_shown(spawn.arguments[0])} as uid {user.uid}"
        if isinstance(result, Exception):
            self.refusals[Refusal.NOT_STARTED] += 1
            log.warning("%s failed: %s; %s", what, result, _who(request.info))
            self.audit.told("failed", id=start.number, why=str(result))
            if not request.answered:
                request.error(errno_of(result))
            return
        handle = self._next
        self._next += 1
        process = Process(self._dispatch, handle, result, spawn, self._freed, functools.partial(self._ended, start.number))
        self._processes[handle] = process
        self._owner[handle] = (start.owner, request.info)
        self.spawned += 1
        self.audit.told("started", id=start.number, pid=result.pid, user=os.fsdecode(result.account.name), uid=result.account.user.uid)
        log.info(
            "%s: pid %d, user %s%s, %.1f ms; %s",
            what,
            result.pid,
            os.fsdecode(result.account.name),
            ", terminal" if spawn.flags & SPAWN_PTY else "",
            result.milliseconds,
            _who(request.info),
        )
        wanted = request.client_waits and not self._closed
        if wanted and not request.answered and spawn.flags & SPAWN_BRIEF:
            BriefAnswer(self._dispatch, process, request, lambda: request.client_waits and not self._closed)
            return
        if not request.answered:
            request.reply(0, message.pack_spawned(handle, result.pid))
        if not wanted:
            # Nobody was told of it, so nobody can want it; a detached one neither.
            process.detached = False
            process.close()

    def _ended(self, number: int, process: Process) -> None:
        if process.ended is not None:
            seconds = round(self._dispatch.now() - process.started, 3)
            self.audit.told("ended", id=number, pid=process.pid, status=process.ended.status, signal=process.ended.signal, seconds=seconds)

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

    def _list(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        (after,) = message.parse_fixed(request.data, message.LIST)
        if self._user(request, "process list") is None:
            return

        def done(result: tuple[int, bytes] | BaseException) -> None:
            if request.answered:
                return
            if isinstance(result, BaseException):
                request.error(errno_of(result))
            else:
                request.reply(*result)

        limit = min(request.reply_len, message.READ_MAX)
        self._dispatch.call_blocking(lambda: listing.rows(after, limit), done)

    def _facts(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        if self._user(request, "facts of the node") is None:
            return
        read_at, data = self._known
        if self._dispatch.now() - read_at < FACTS_FRESH:
            request.reply(0, data)
            return

        def done(result: nodefacts.NodeFacts | BaseException) -> None:
            if isinstance(result, BaseException):
                code = errno_of(result)
                if not request.answered:
                    request.error(code)
                return
            self._known = self._dispatch.now(), nodefacts.pack(result)
            if not request.answered:
                request.reply(0, self._known[1])

        self._dispatch.call_blocking(nodefacts.read, done)

    def _kill(self, request: Message, subtype: int, flags: int, handle: int) -> None:
        pid, number, began = message.parse_fixed(request.data, message.KILL)
        what = f"signal {number} to pid {pid}"
        user = self._user(request, what)
        if user is None:
            return
        if not 0 <= number <= SIGNAL_MAX or pid < 1:
            raise ResmgrError(errno.EINVAL)
        facts: dict[str, Fact] = {**self._client(request.info), "uid": user.uid, "pid": pid, "signal": number}
        try:
            self.audit.write("signal", **facts)
            _send_signal(pid, number, user, began)
        except OSError as error:
            self.audit.told("failed", pid=pid, why=error.strerror)
            log.warning("%s as uid %d failed: %s; %s", what, user.uid, error.strerror, _who(request.info))
            raise ResmgrError(errno_of(error)) from None
        log.info("%s as uid %d; %s", what, user.uid, _who(request.info))
        request.reply(0)


def _send_signal(pid: int, number: int, user: MappedUser, began: int) -> None:
    """kill(2) as *user* would be let: to root's eyes anything, else what has its uid as real or saved one. Pinned by a pidfd; ESRCH when
    that process is not the one that *began* then."""
    pidfd = os.pidfd_open(pid)
    try:
        row = listing.read(pid) if began else None
        if began and (row is None or row.began != began):
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        if user.uid != 0:
            with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
                uids = next(line.split()[1:] for line in file if line.startswith("Uid:"))
            if str(user.uid) not in (uids[0], uids[2]):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def _wanted(spawn: Spawn, user: MappedUser) -> dict[str, Fact]:
    """What a line of the audit log says of a start."""
    names = ((SPAWN_PTY, "terminal"), (SPAWN_DETACHED, "detached"), (SPAWN_ROOT, "root of the client's node"))
    return {
        "uid": user.uid,
        "as": os.fsdecode(spawn.user),
        "command": words(spawn.arguments),
        "directory": os.fsdecode(spawn.directory),
        "nice": spawn.nice,
        "how": [name for flag, name in names if spawn.flags & flag] + ([f"on {_shown(spawn.terminal)}"] if spawn.terminal else []),
    }


def _answer(request: Message, code: int) -> None:
    if code:
        request.error(code)
    else:
        request.reply(0)


def _owner(info: ClientInfo) -> _Owner:
    return info.nd, info.scoid


def _who(info: ClientInfo) -> str:
    where = f"node {info.node!r}" if info.nd != ND_LOCAL else "this node"
    return f"client on {where}, its uid {info.credentials.uid}, pid {info.credentials.pid}"


def _shown(name: bytes) -> str:
    """For the log: no line breaks, no terminal codes, not endless."""
    return ascii(os.fsdecode(name[:200]))


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
