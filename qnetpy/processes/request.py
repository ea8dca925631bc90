"""What is to be started, as a caller says it in keywords, made into the message that starts it. The same for every face of this package."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from qnetpy.cli import daemon
from qnetpy.cli.output import CommandError
from resmgr.errors import ResmgrError
from resmgr.procmgr.message import (
    LIMITS,
    NICE_MAX,
    NICE_MIN,
    SPAWN_DETACHED,
    SPAWN_PTY,
    SPAWN_ROOT,
    UMASK_DEFAULT,
    UNLIMITED,
    Ended,
    Scheduling,
    Spawn,
)

Word = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Command = Word | Sequence[Word]
PASSED_ON = ("LANG", "LANGUAGE", "COLORTERM")
"""Variables that go along with `image="far"`, besides LC_*, as with `qnet on`."""


class Options(TypedDict, total=False):
    """How a program is started; all may be left out.

    `image`: "far" (the node's own files; the default) or "near" (this machine's program, libraries and paths, through /net). `shell`: the
    command is one text for /bin/sh. `cwd`: default the user's home, with "near" the current directory. `env`: all its variables; default
    the language, with "near" all of here. `user`: an account there; only root may choose. `umask`, `limits` (soft: RLIMIT_* to value):
    default those of here. `priority`: nice value, "batch" or "idle". `tty`: True, or (rows, columns): a terminal is its stdin, stdout and
    stderr; "/dev/...": that terminal of the node. `detached`: it outlives this program.
    """

    image: Literal["far", "near"]
    shell: bool
    cwd: Word | None
    env: Mapping[str, str] | Mapping[bytes, bytes] | None
    user: str
    umask: int
    limits: Mapping[int, int] | None
    priority: int | Literal["batch", "idle"]
    tty: bool | tuple[int, int] | str
    detached: bool


def words(command: Command, shell: bool = False) -> tuple[bytes, ...]:
    """The arguments. ValueError for none, or for several with *shell*."""
    if isinstance(command, str | bytes | os.PathLike):
        text = os.fsencode(command)
        return (b"/bin/sh", b"-c", text) if shell else (text,)
    if shell:
        raise ValueError("with shell=True the command is one text")
    if not command:
        raise ValueError("the command is empty")
    return tuple(os.fsencode(word) for word in command)


def request(command: Command, streams: int, options: Options) -> Spawn:
    """*streams*: the flags SPAWN_STDIN, SPAWN_STDOUT and SPAWN_STDERR for those that are carried. ValueError for what means nothing."""
    near = options.get("image", "far") == "near"
    tty = options.get("tty", False)
    rows, columns = tty if isinstance(tty, tuple) else (0, 0)
    flags = (SPAWN_ROOT if near else 0) | (SPAWN_DETACHED if options.get("detached", False) else 0)
    if tty and not isinstance(tty, str):
        flags |= SPAWN_PTY
    elif not tty:
        flags |= streams
    cwd = os.fsencode(options.get("cwd") or b"")
    umask = options.get("umask", -1)
    priority = options.get("priority", 0)
    if not isinstance(priority, str) and not NICE_MIN <= priority <= NICE_MAX:
        raise ValueError(f"priority {priority} is no nice value, and neither 'batch' nor 'idle'")
    return Spawn(
        words(command, options.get("shell", False)),
        _environment(options.get("env"), near, bool(flags & SPAWN_PTY)),
        flags,
        os.path.abspath(cwd) if near else cwd,
        os.fsencode(options.get("user", "")),
        umask if umask >= 0 else _umask(),
        rows,
        columns,
        os.fsencode(tty) if isinstance(tty, str) else b"",
        0 if isinstance(priority, str) else priority,
        Scheduling[priority.upper()] if isinstance(priority, str) else Scheduling.ORDINARY,
        _limits(options.get("limits")),
    )


def socket_path() -> str:
    """Where this machine's daemon listens. ConnectionRefusedError if that place is not to be trusted."""
    path = daemon.socket_path()
    try:
        daemon.check_place(os.path.dirname(path))
    except CommandError as error:
        raise ConnectionRefusedError(str(error)) from None
    return path


def not_up(error: OSError) -> OSError:
    """Said as what it means, if nobody listens there."""
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return ConnectionRefusedError(errno.ECONNREFUSED, "this node is not up; try: qnet up")
    return error


def returncode(ended: Ended) -> int:
    """As subprocess says it: the exit status, or the signal's number below 0."""
    return -ended.signal if ended.signal is not None else ended.status or 0


def failure(node: str, error: int) -> ResmgrError:
    """The world's failure with what it means for a program on *node*."""
    return ResmgrError(error, f"{node}: {os.strerror(error).lower()}")


def _environment(wanted: Mapping[str, str] | Mapping[bytes, bytes] | None, near: bool, terminal: bool) -> tuple[bytes, ...]:
    found: dict[bytes, bytes]
    if wanted is not None:
        found = {os.fsencode(name): os.fsencode(value) for name, value in wanted.items()}
    else:
        found = {
            name: value for name, value in os.environb.items() if near or name in map(os.fsencode, PASSED_ON) or name.startswith(b"LC_")
        }
        if terminal:
            found[b"TERM"] = os.environb.get(b"TERM", b"dumb")
    return tuple(name + b"=" + value for name, value in found.items())


def _umask() -> int:
    """Read where reading does not change it: other threads make files meanwhile."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return UMASK_DEFAULT


def _limits(wanted: Mapping[int, int] | None) -> tuple[tuple[int, int], ...]:
    soft = dict(wanted) if wanted is not None else {number: resource.getrlimit(number)[0] for number in LIMITS}
    return tuple((number, UNLIMITED if value == resource.RLIM_INFINITY else value) for number, value in soft.items())
