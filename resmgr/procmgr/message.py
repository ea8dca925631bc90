"""Formats of the messages that the process manager answers, on channel (PID_SYSTEM, CHID_PROCMGR). docs/protocol/spawn.md explains them.

QNX starts remote programs with `_PROC_SPAWN` to the process manager of the other node and gives them descriptors that lead back through
Qnet. A Linux program has only Linux descriptors, so here its standard streams are pipes or a terminal of the node it runs on, and the
client reads and writes them by messages on the process handle that SPAWN returned: the manager holds a READ until there is output.

All requests begin with the 16 bytes of `resmgr.iomsg` (type, subtype, flags, handle), network byte order. Types are ours.

Several READs and WRITEs of a stream may be under way, and messages do not keep their order on the way, so each carries a number: 0, 1,
2, ... per stream in the order in which the client means them. The manager serves them in that order, and the client puts the replies
back into it.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage


class Proc(enum.IntEnum):
    """Message types of the process manager."""

    SPAWN = 0x200
    READ = 0x201
    WRITE = 0x202
    SIGNAL = 0x203
    WINSIZE = 0x204
    WAIT = 0x205
    CLOSE = 0x206
    LIST = 0x207
    KILL = 0x208
    FACTS = 0x209
    CARRY = 0x20A


HEADER: Final = struct.Struct("!HHIQ")
"""type, subtype, flags, handle: the common 16 bytes."""

SPAWN_PTY: Final = 1
"""Flag of SPAWN: a terminal for all three streams; STDIN and STDOUT are it, STDERR is not separate."""
SPAWN_DETACHED: Final = 2
"""Flag of SPAWN: the program outlives its client. Streams that were asked for end with the client."""
SPAWN_STDIN: Final = 4
SPAWN_STDOUT: Final = 8
SPAWN_STDERR: Final = 16
"""Flags of SPAWN: this stream is carried. One that is not is /dev/null."""
SPAWN_ROOT: Final = 32
"""Flag of SPAWN: the program sees the client's node's files as its own root (`resmgr.procmgr.callerroot`)."""
SPAWN_BRIEF = 64
"""Flag of SPAWN: the reply waits a moment for the program's end and brings that and its output along (`BRIEF`)."""
SPAWN_FLAGS: Final = 127

SPAWN: Final = struct.Struct("!IHHHHHHHBBBx")
"""umask, rows, columns of the terminal, number of arguments, number of variables, length of the user name, of the directory, of the
terminal's name, nice + 20, class of scheduling, number of limits."""
LIMIT: Final = struct.Struct("!IQ")
"""A soft limit: the number of RLIMIT_* on Linux, the value (RLIM_INFINITY: none)."""
LIMITS: Final = (0, 1, 2, 3, 4, 7, 9)
"""cpu, fsize, data, stack, core, nofile, as: limits of a process. Those of a user are the business of the node where he is."""
UNLIMITED: Final = (1 << 64) - 1
NICE_MIN, NICE_MAX = -20, 19


class Scheduling(enum.IntEnum):
    """Linux' classes of ordinary programs; real-time ones are not offered."""

    ORDINARY = 0
    BATCH = 1
    IDLE = 2


UMASK_DEFAULT: Final = 0xFFFFFFFF
SPAWNED: Final = struct.Struct("!QI")
"""Reply to SPAWN: handle, process id on that node."""
BRIEF: Final = struct.Struct("!QIBBHII")
"""Reply to SPAWN with flag BRIEF: handle (0: it has ended, all is told and nothing is left of it), process id on that node; kind, core and
status as in ENDED (kind 0: it runs); lengths of the output and the error output that follow; with the top bit that stream has ended."""
BRIEF_END: Final = 1 << 31
BRIEF_OUTPUT: Final = 64 * 1024
"""Most bytes of output in that reply."""
STREAM: Final = struct.Struct("!II")
"""READ: number, size. WRITE: number, 0; the bytes follow. CARRY: number of the first READ or WRITE, 0. `subtype` is the stream: 0, 1 or
2."""
WRITE_LAST: Final = 1
"""Flag of WRITE: nothing follows; the program sees end of file after these bytes (which may be none)."""
CLOSE_STREAM: Final = 1
"""Flag of CLOSE: only the stream `subtype`. A program that writes there then gets SIGPIPE."""
SIGNAL: Final = struct.Struct("!I")
WINSIZE: Final = struct.Struct("!HHHH")
"""rows, columns, width and height in pixels."""
ENDED: Final = struct.Struct("!BBH")
"""Reply to WAIT: kind (1 exited, 2 killed, 3 stopped), 1 if it left a core image, exit status or signal."""
WAIT_STOP: Final = 1
"""Flag of WAIT: answered when the program has been stopped, too."""
KILL: Final = struct.Struct("!IIQ")
"""process id, signal, when it began (as LIST says; 0: whichever has that number)."""
LIST: Final = struct.Struct("!I")
"""Processes above this id are asked for; the reply's status is the number of rows."""
ROW: Final = struct.Struct("!IIIBxHIQQQHHI")
"""pid, parent, uid, state (a letter), priority (nice + 20), threads, resident bytes, processor time in µs, beginning (in ticks of that
node since its start), lengths of name, user and command."""

SPAWN_MAX: Final = 256 * 1024
"""Largest SPAWN message. Linux takes 2 MiB of arguments; a stranger who may spawn shall not make us hold more than this per try."""
ARGUMENTS_MAX: Final = 8192
VARIABLES_MAX: Final = 1024
WRITE_UNASKED: Final = 128 * 1024
"""Bytes of a WRITE that come along with it. A client that sends no more at a time needs no round trip per WRITE; the rest is pulled."""
READ_MAX: Final = 1 << 20
"""Most bytes that one READ returns."""


class Spawn(NamedTuple):
    """What to start. `environment` holds NAME=VALUE. `user` is empty for the mapped user, `directory` for the user's home."""

    arguments: tuple[bytes, ...]
    environment: tuple[bytes, ...] = ()
    flags: int = SPAWN_STDIN | SPAWN_STDOUT | SPAWN_STDERR
    directory: bytes = b""
    user: bytes = b""
    umask: int = UMASK_DEFAULT
    rows: int = 0
    columns: int = 0
    terminal: bytes = b""
    """A terminal of that node (/dev/...) on which the program runs."""
    nice: int = 0
    scheduling: Scheduling = Scheduling.ORDINARY
    limits: tuple[tuple[int, int], ...] = ()
    """Soft limits: of LIMITS, values up to UNLIMITED."""


class Ended(NamedTuple):
    """How a process ended: its exit status, or the signal that killed it (the other is None). Or that it was stopped, if so asked."""

    status: int | None
    signal: int | None
    core: bool = False
    stopped: bool = False

    @property
    def shell_status(self) -> int:
        """As a shell says it: the status, or 128 and the signal."""
        return 128 + self.signal if self.signal is not None else self.status or 0


class Brief(NamedTuple):
    """What the reply to a brief SPAWN tells. `handle` 0: `ended` is there and all output. Else the rest is asked for as of any program."""

    handle: int
    pid: int
    ended: Ended | None
    output: tuple[bytes, bytes]
    """Of streams 1 and 2."""
    over: tuple[bool, bool]
    """Whether nothing more comes on that stream."""


class Row(NamedTuple):
    """One process in a list. `time` is seconds of processor time, `memory` resident bytes, `command` the arguments joined by NUL, `user`
    the name of `uid` there, `began` tells two processes with one number apart."""

    pid: int
    parent: int
    uid: int
    state: str
    nice: int
    threads: int
    memory: int
    time: float
    name: bytes
    command: bytes
    user: bytes = b""
    began: int = 0


def header(kind: Proc, subtype: int = 0, flags: int = 0, handle: int = 0) -> bytes:
    return HEADER.pack(kind, subtype, flags, handle)


def parse_header(view: Buffer) -> tuple[int, int, int, int]:
    """type, subtype, flags, handle."""
    if len(view) < HEADER.size:
        raise BadMessage("request cut short")
    kind, subtype, flags, handle = HEADER.unpack_from(view)
    return kind, subtype, flags, handle


def pack_spawn(spawn: Spawn) -> bytes:
    strings = (*spawn.arguments, *spawn.environment)
    return b"".join(
        (
            header(Proc.SPAWN, flags=spawn.flags),
            SPAWN.pack(
                spawn.umask,
                spawn.rows,
                spawn.columns,
                len(spawn.arguments),
                len(spawn.environment),
                len(spawn.user),
                len(spawn.directory),
                len(spawn.terminal),
                spawn.nice - NICE_MIN,
                spawn.scheduling,
                len(spawn.limits),
            ),
            *(LIMIT.pack(*limit) for limit in spawn.limits),
            struct.pack(f"!{len(strings)}I", *map(len, strings)),
            spawn.user,
            spawn.directory,
            spawn.terminal,
            *strings,
        )
    )


def parse_spawn(view: Buffer) -> Spawn:
    """A whole SPAWN message. BadMessage for whatever could not be handed to execve: no arguments, NUL bytes, NAME=VALUE without a name."""
    _, _, flags, _ = parse_header(view)
    if len(view) > SPAWN_MAX:
        raise BadMessage("SPAWN too long")
    if flags & ~SPAWN_FLAGS:
        raise BadMessage("SPAWN has unknown flags")
    try:
        umask, rows, columns, arguments, variables, *lengths, nice, scheduling, limits_count = SPAWN.unpack_from(view, HEADER.size)
    except struct.error:
        raise BadMessage("SPAWN cut short") from None
    if umask > 0o777 and umask != UMASK_DEFAULT:
        raise BadMessage("SPAWN umask is not one")
    if not 0 < arguments <= ARGUMENTS_MAX or variables > VARIABLES_MAX:
        raise BadMessage("SPAWN has no arguments or too many")
    if nice > NICE_MAX - NICE_MIN or scheduling > max(Scheduling):
        raise BadMessage("SPAWN priority is not one")
    at = HEADER.size + SPAWN.size
    limits, at = _limits(view, at, limits_count)
    try:
        lengths += struct.unpack_from(f"!{arguments + variables}I", view, at)
    except struct.error:
        raise BadMessage("SPAWN lengths cut short") from None
    user, directory, terminal, *strings = _strings(bytes(view[at + 4 * (arguments + variables) :]), lengths)
    environment = tuple(strings[arguments:])
    if any(variable.find(b"=") < 1 for variable in environment):
        raise BadMessage("SPAWN variable has no name")
    if not strings[0]:
        raise BadMessage("SPAWN program has no name")
    if terminal and (
        flags & (SPAWN_PTY | SPAWN_STDIN | SPAWN_STDOUT) or not terminal.startswith(b"/dev/") or b".." in terminal.split(b"/")
    ):
        raise BadMessage("SPAWN has streams beside a terminal of its node, or that is none")
    if flags & SPAWN_BRIEF and flags & SPAWN_PTY:
        raise BadMessage("SPAWN is brief and has a terminal")
    how = nice + NICE_MIN, Scheduling(scheduling), limits
    return Spawn(tuple(strings[:arguments]), environment, flags, directory, user, umask, rows, columns, terminal, *how)


def _limits(view: Buffer, at: int, count: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """The limits that begin at *at*, and where they end."""
    end = at + count * LIMIT.size
    if end > len(view):
        raise BadMessage("SPAWN limits cut short")
    limits = tuple(LIMIT.iter_unpack(view[at:end]))
    if len({number for number, _ in limits} & set(LIMITS)) != count:
        raise BadMessage("SPAWN limits are none or twice there")
    return limits, end


def _strings(data: bytes, lengths: list[int]) -> list[bytes]:
    if sum(lengths) != len(data):
        raise BadMessage("SPAWN has another length than it says")
    if b"\0" in data:
        raise BadMessage("SPAWN string holds a NUL")
    strings: list[bytes] = []
    at = 0
    for length in lengths:
        strings.append(data[at : at + length])
        at += length
    return strings


def pack_spawned(handle: int, pid: int) -> bytes:
    return SPAWNED.pack(handle, pid)


def parse_spawned(view: Buffer) -> tuple[int, int]:
    """handle, process id."""
    if len(view) != SPAWNED.size:
        raise BadMessage("reply to SPAWN has a wrong length")
    handle, pid = SPAWNED.unpack_from(view)
    return handle, pid


def pack_brief(brief: Brief) -> bytes:
    sizes = (len(data) | (BRIEF_END if over else 0) for data, over in zip(brief.output, brief.over, strict=True))
    kind, core, status = ENDED.unpack(pack_ended(brief.ended)) if brief.ended is not None else (0, 0, 0)
    return b"".join((BRIEF.pack(brief.handle, brief.pid, kind, core, status, *sizes), *brief.output))


def parse_brief(view: Buffer) -> Brief:
    """Reply to a SPAWN with flag BRIEF."""
    try:
        handle, pid, kind, core, status, *sizes = BRIEF.unpack_from(view)
    except struct.error:
        raise BadMessage("reply to SPAWN cut short") from None
    ended = parse_ended(ENDED.pack(kind, core, status)) if kind else None
    first, second = (size & ~BRIEF_END for size in sizes)
    over = bool(sizes[0] & BRIEF_END), bool(sizes[1] & BRIEF_END)
    data = bytes(view[BRIEF.size :])
    if first + second != len(data) or (ended is not None and ended.stopped) or (not handle and (ended is None or not all(over))):
        raise BadMessage("reply to SPAWN contradicts itself")
    return Brief(handle, pid, ended, (data[:first], data[first:]), over)


def pack_read(handle: int, stream: int, number: int, size: int) -> bytes:
    return header(Proc.READ, stream, 0, handle) + STREAM.pack(number, size)


def pack_write(handle: int, number: int, last: bool) -> bytes:
    """What goes before the bytes of a WRITE to standard input."""
    return header(Proc.WRITE, 0, WRITE_LAST if last else 0, handle) + STREAM.pack(number, 0)


def pack_carry(handle: int, stream: int, number: int) -> bytes:
    """For the daemon of this node (`resmgr.procmgr.carried`); one descriptor goes with it."""
    return header(Proc.CARRY, stream, 0, handle) + STREAM.pack(number, 0)


def parse_stream(view: Buffer) -> tuple[int, int]:
    """number, size of a READ, WRITE or CARRY. The bytes of a WRITE follow and may not have arrived."""
    if len(view) < HEADER.size + STREAM.size:
        raise BadMessage("READ or WRITE cut short")
    number, size = STREAM.unpack_from(view, HEADER.size)
    return number, size


STREAM_DATA: Final = HEADER.size + STREAM.size
"""Where the bytes of a WRITE begin."""


def pack_signal(handle: int, signal: int) -> bytes:
    return header(Proc.SIGNAL, 0, 0, handle) + SIGNAL.pack(signal)


def pack_winsize(handle: int, rows: int, columns: int, width: int = 0, height: int = 0) -> bytes:
    return header(Proc.WINSIZE, 0, 0, handle) + WINSIZE.pack(rows, columns, width, height)


def pack_wait(handle: int, stops: bool = False) -> bytes:
    return header(Proc.WAIT, 0, WAIT_STOP if stops else 0, handle)


def pack_close(handle: int, stream: int | None = None) -> bytes:
    """Free the handle; with *stream*, only end that stream."""
    return header(Proc.CLOSE, 0, 0, handle) if stream is None else header(Proc.CLOSE, stream, CLOSE_STREAM, handle)


def pack_list(after: int) -> bytes:
    return header(Proc.LIST) + LIST.pack(after)


def pack_kill(pid: int, signal: int, began: int = 0) -> bytes:
    return header(Proc.KILL) + KILL.pack(pid, signal, began)


def pack_facts() -> bytes:
    """What `resmgr.procmgr.nodefacts` answers."""
    return header(Proc.FACTS)


def parse_fixed(view: Buffer, layout: struct.Struct) -> tuple[int, ...]:
    """The fixed part of SIGNAL, WINSIZE, LIST or KILL, which have nothing behind it."""
    if len(view) != HEADER.size + layout.size:
        raise BadMessage("request has a wrong length")
    return layout.unpack_from(view, HEADER.size)


def pack_ended(ended: Ended) -> bytes:
    if ended.stopped:
        return ENDED.pack(3, 0, ended.signal or 0)
    if ended.signal is not None:
        return ENDED.pack(2, ended.core, ended.signal)
    return ENDED.pack(1, 0, ended.status or 0)


def parse_ended(view: Buffer) -> Ended:
    if len(view) != ENDED.size:
        raise BadMessage("reply to WAIT has a wrong length")
    kind, core, code = ENDED.unpack_from(view)
    if kind == 1 and not core and code <= 255:
        return Ended(code, None)
    if kind == 2 and core <= 1 and 0 < code < 128:
        return Ended(None, code, core == 1)
    if kind == 3 and not core and 0 < code < 128:
        return Ended(None, code, stopped=True)
    raise BadMessage("reply to WAIT contradicts itself")


def pack_row(row: Row) -> bytes:
    return b"".join(
        (
            ROW.pack(
                row.pid,
                row.parent,
                row.uid,
                ord(row.state),
                row.nice + 20,
                row.threads,
                row.memory,
                int(row.time * 1e6),
                row.began,
                len(row.name),
                len(row.user),
                len(row.command),
            ),
            row.name,
            row.user,
            row.command,
        )
    )


def parse_rows(view: Buffer) -> list[Row]:
    """The rows of a reply to LIST, by process id."""
    rows: list[Row] = []
    at = 0
    while at < len(view):
        try:
            pid, parent, uid, state, nice, threads, memory, time, began, *lengths = ROW.unpack_from(view, at)
        except struct.error:
            raise BadMessage("row cut short") from None
        at += ROW.size
        end = at + sum(lengths)
        if end > len(view):
            raise BadMessage("row's names cut short")
        if not 0x20 < state < 0x7F or nice > 39:
            raise BadMessage("row's state is no letter or its priority none")
        name_end, user_end = at + lengths[0], at + lengths[0] + lengths[1]
        names = bytes(view[at:name_end]), bytes(view[user_end:end]), bytes(view[name_end:user_end])
        rows.append(Row(pid, parent, uid, chr(state), nice - 20, threads, memory, time / 1e6, *names, began))
        at = end
    return rows
