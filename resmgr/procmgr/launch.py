"""Starting a program as somebody: account, environment, descriptors, session, terminal.

Threads look up the account and the way to the program, which may hang (`lookups`), and go on to start it, one after another, so that
nothing of this holds up the dispatch. There are two ways to start one, and a program cannot tell them apart:

- As another user than the daemon: by the fork server (`forking`), which is small, so that a fork is cheap.
- As the daemon's own user, with the client's files as root, or where no fork server can be had: by a fork of this process. In the child,
  only C code of `_posixsubprocess` runs between fork and exec (the daemon has threads): it closes every descriptor, makes a session, sets
  groups, gid, uid and umask for good and executes /bin/sh with a fixed script, already as the user and in the client's environment. The
  script takes the controlling terminal (a session leader that opens a terminal gets it), changes the directory and executes the program.

Either way, whatever depends on paths that the user names (a directory on a dead network mount, a program that is not there) happens in the
user's process, after the daemon has let go of it, and fails as in a remote shell: status 127 for a program that was not found, 126 for one
that could not be executed or a directory that could not be entered, and a line on standard error. A library that the client's environment
preloads can never run with the daemon's rights.

What else it would inherit is dropped by the thread that starts it (`inherit`), which the fork server comes from, or by the script.

The child gets nothing of the daemon's environment. It gets what the client sent, except names that steer the loader or the shell, and
HOME, USER, LOGNAME, SHELL and PATH of the account.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import resource
import signal
import struct
import subprocess
import termios
import threading
import time
import tty
from collections.abc import Callable

import attrs

from resmgr.access import MappedUser
from resmgr.errors import ResmgrError
from resmgr.lookups import Lookups
from resmgr.procmgr import callerroot
from resmgr.procmgr.callerroot import enter_mounts
from resmgr.procmgr.environment import refusal
from resmgr.procmgr.forking import ForkServer
from resmgr.procmgr.inherit import drop_privileges_of_thread, spared_from_oom
from resmgr.procmgr.message import (
    SPAWN_PTY,
    SPAWN_ROOT,
    SPAWN_STDERR,
    SPAWN_STDIN,
    SPAWN_STDOUT,
    UMASK_DEFAULT,
    UNLIMITED,
    Scheduling,
    Spawn,
)
from resmgr.procmgr.rules import changeable

SCRIPT = b"""fail() { echo "$0: $1" >&2; exit "$2"; }
case $1 in *t*) exec 0<>/proc/self/fd/0 1>&0 2>&0;; esac
case $1 in *d*) [ -c "$3" ] || fail "$3 is no terminal" 126; exec 0<>"$3" 1>&0 2>&0;; esac
case $1 in *o*) echo 0 >/proc/self/oom_score_adj;; esac 2>/dev/null
%s
case $1 in
*h*) cd -- "$2" 2>/dev/null || cd /;;
*) cd -- "$2" 2>/dev/null || {
	[ -e "$2" ] || fail "$2: no such file or directory" 126
	[ -d "$2" ] || fail "$2: not a directory" 126
	fail "$2: permission denied" 126
};; esac
case $4 in
*/*)
	[ -e "$4" ] || fail "$4: not found" 127
	{ [ ! -d "$4" ] && [ -x "$4" ]; } || fail "$4: permission denied" 126
	;;
*) command -v -- "$4" >/dev/null || fail "$4: not found" 127;;
esac
unset OLDPWD
shift 4
exec "$@"
"""
"""$1: t takes the terminal, d the device $3 as one, o gives up protection from the out-of-memory killer, h lets a missing home directory
be /. $0: who says what is wrong. $2: the directory. $4: the program's name; then what is executed. The gap is for limits."""
LIMIT_OPTIONS = {0: (b"t", 1), 1: (b"f", 512), 2: (b"d", 1024), 3: (b"s", 1024), 4: (b"c", 512), 7: (b"n", 1), 9: (b"v", 1024)}
"""Of ulimit, and in how many bytes it counts, by the number of the limit."""
PATH_USER = b"/usr/local/bin:/usr/bin:/bin"
PATH_ROOT = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UMASK_USER = 0o022
PIPE_SIZE = 512 * 1024
"""Larger pipes than Linux's 64 KiB: fewer messages for the same bytes. The kernel may refuse; then 64 KiB it is."""
SHADOW = "/etc/shadow"


@attrs.frozen
class Account:
    """The account a program runs under."""

    user: MappedUser
    name: bytes
    home: bytes
    shell: bytes


@attrs.frozen
class Launched:
    """A running program. The descriptors are ours, non-blocking and not inherited; -1 where a stream is not carried."""

    pid: int
    pidfd: int
    account: Account
    stdin: int
    stdout: int
    stderr: int
    milliseconds: float


LaunchDone = Callable[[Launched | Exception], None]


def account(user: MappedUser, wanted: bytes) -> Account:
    """The account of *user*, or the *wanted* one (a name, or a number that is no account's name) if *user* is root or is it. EACCES: no
    such account, locked, expired; EPERM.

    Reads the account database: not for the dispatch thread.
    """
    try:
        record = pwd.getpwuid(user.uid) if not wanted else _named(os.fsdecode(wanted))
    except (KeyError, ValueError, OverflowError):
        raise ResmgrError(errno.EACCES, "no such account on this node") from None
    if record.pw_uid != user.uid:
        if user.uid != 0:
            raise ResmgrError(errno.EPERM, "only root may choose another user")
        user = MappedUser(record.pw_uid, record.pw_gid, tuple(os.getgrouplist(record.pw_name, record.pw_gid)))
    refused = shut(record.pw_name, time.time())
    if refused:
        raise ResmgrError(errno.EACCES, refused)
    names = (os.fsencode(record.pw_name), os.fsencode(record.pw_dir or "/"), os.fsencode(record.pw_shell or "/bin/sh"))
    return Account(user, *names)


def _named(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        if not (name.isascii() and name.isdecimal()):
            raise
    return pwd.getpwuid(int(name))


def shut(name: str, wall: float, shadow: str = SHADOW) -> str:
    """Why the account must not be used, or an empty string. `!` before the password locks (as for OpenSSH), a bare `*` is no password only.

    A daemon that may not read the shadow file is not root and starts programs only as itself; then the kernel has let that user in already.
    """
    try:
        with open(shadow, encoding="utf-8", errors="surrogateescape") as file:
            fields = next((line.rstrip("\n").split(":") for line in file if line.startswith(name + ":")), [])
    except OSError:
        return ""
    if len(fields) > 1 and fields[1].startswith("!"):
        return "the account is locked"
    if len(fields) > 7 and fields[7].isdecimal() and wall / 86400 >= int(fields[7]):
        return "the account has expired"
    return ""


def environment(spawn: Spawn, account: Account) -> dict[bytes, bytes]:
    """What the program gets: see the head of this file."""
    result: dict[bytes, bytes] = {}
    callers_files = bool(spawn.flags & SPAWN_ROOT)
    for variable in spawn.environment:
        name, _, value = variable.partition(b"=")
        if not refusal(name, callers_files):
            result[name] = value
    result[b"USER"] = result[b"LOGNAME"] = account.name
    result.setdefault(b"HOME", account.home)
    result.setdefault(b"SHELL", account.shell)
    result.setdefault(b"PATH", PATH_ROOT if account.user.uid == 0 else PATH_USER)
    return result


def start(spawn: Spawn, account: Account, terms: Terms, server: ForkServer | None = None) -> Launched:
    """Start the program: as another user by *server* if there is one, else by a fork of this process. OSError when it could not even be
    forked (EAGAIN, EMFILE, EPERM: this daemon may not become that user)."""
    begin = time.monotonic()
    mine: list[int] = []
    theirs: list[int] = []
    try:
        if spawn.flags & SPAWN_PTY:
            stdio = _terminal(spawn, account, mine, theirs)
        else:
            stdio = _pipes(spawn, mine, theirs)
        pid = _execute(spawn, account, stdio, terms, server)
        try:
            # The child is not reaped by anybody else, so its number is still its own.
            pidfd = os.pidfd_open(pid)
            if spawn.nice < 0:
                os.setpriority(os.PRIO_PROCESS, pid, spawn.nice)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    except BaseException:
        for fd in (*mine, *theirs):
            os.close(fd)
        raise
    for fd in theirs:
        os.close(fd)
    stdin, stdout, stderr = (*mine, -1, -1, -1)[:3] if spawn.flags & SPAWN_PTY else _carried(spawn, mine)
    return Launched(pid, pidfd, account, stdin, stdout, stderr, (time.monotonic() - begin) * 1e3)


def _carried(spawn: Spawn, mine: list[int]) -> tuple[int, int, int]:
    ours = iter(mine)
    stdin, stdout, stderr = (next(ours) if spawn.flags & flag else -1 for flag in (SPAWN_STDIN, SPAWN_STDOUT, SPAWN_STDERR))
    return stdin, stdout, stderr


def _pipes(spawn: Spawn, mine: list[int], theirs: list[int]) -> tuple[int, int, int]:
    ends: list[int] = []
    for flag in (SPAWN_STDIN, SPAWN_STDOUT, SPAWN_STDERR):
        if not spawn.flags & flag:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            theirs.append(null)
            ends.append(null)
            continue
        reading, writing = os.pipe()
        ours, other = (writing, reading) if flag == SPAWN_STDIN else (reading, writing)
        mine.append(ours)
        theirs.append(other)
        ends.append(other)
        os.set_blocking(ours, False)
        try:
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            pass
    return ends[0], ends[1], ends[2]


def _terminal(spawn: Spawn, account: Account, mine: list[int], theirs: list[int]) -> tuple[int, int, int]:
    master, slave = os.openpty()
    mine.append(master)
    theirs.append(slave)
    os.set_blocking(master, False)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", spawn.rows, spawn.columns, 0, 0))
    settings = termios.tcgetattr(slave)
    settings[tty.IFLAG] |= 0o40000  # IUTF8: erase whole characters
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    if account.user.uid != os.geteuid():
        os.fchown(slave, account.user.uid, -1)
    # Inlet and outlet each own one descriptor of the one terminal; standard error is the terminal too.
    mine.append(os.dup(master))
    return slave, slave, slave


@attrs.frozen
class Terms:
    """How a program is started, besides what its client wants."""

    open_files: tuple[int, int] | None = None
    """Its soft limit if the client says none, for a daemon that raised its own; None: this process's."""
    listed: bool = False
    """A list of commands allowed it, so what its name leads to must not be its user's to change, nor what it makes everybody's."""
    tree: str = ""
    """Where the client's node's files are mounted, for a program that sees them as its root."""
    mount: str = ""
    """The mount point of which that is a part."""
    node: str = ""
    """The name of this node: where it is said why the program cannot be executed there."""

    @property
    def speaker(self) -> bytes:
        """Who says it."""
        return b"qnet: " + os.fsencode(self.node) if self.node else b"qnet"


def _execute(spawn: Spawn, account: Account, stdio: tuple[int, int, int], terms: Terms, server: ForkServer | None) -> int:
    user = account.user
    umask = UMASK_USER if spawn.umask == UMASK_DEFAULT else spawn.umask
    if terms.listed:
        umask |= UMASK_USER
    # As oneself nothing is set: an ordinary user's daemon may not, and without it the cheaper vfork is used. Not where the image of the
    # program comes through this daemon, which vfork holds up.
    same = user.uid == os.geteuid() and user.gid == os.getegid() and not terms.tree
    variables = environment(spawn, account)
    if server is not None and not same and server.ready():
        identity = user.uid, user.gid, tuple(user.groups)
        terminal = bool(spawn.flags & SPAWN_PTY)
        return server.start(spawn, variables, identity, umask, account.home, terminal, terms.open_files, stdio, terms.speaker)
    how = b"t" if spawn.flags & SPAWN_PTY else b"d" if spawn.terminal else b""
    if not spawn.directory:
        how += b"h"
    if spared_from_oom():
        how += b"o"
    script = SCRIPT % _limits(spawn, terms.open_files)
    place = spawn.directory or account.home
    arguments = [
        b"/bin/sh",
        b"-c",
        script,
        terms.speaker,
        how,
        place,
        spawn.terminal,
        spawn.arguments[0],
        *_priority(spawn),
        *spawn.arguments,
    ]
    process = subprocess.Popen(
        arguments,
        stdin=stdio[0],
        stdout=stdio[1],
        stderr=stdio[2],
        env=variables,
        start_new_session=True,
        close_fds=True,
        umask=umask,
        user=None if same else user.uid,
        group=None if same else user.gid,
        extra_groups=None if same else list(user.groups),
    )
    # Reaped through its pidfd, by the manager: this object shall neither wait for it nor complain that nobody did.
    process.returncode = 0
    return process.pid


def _limits(spawn: Spawn, open_files: tuple[int, int] | None) -> bytes:
    """Lines for the shell: soft limits as the client has them, where this daemon's hard ones allow; a limit only ever restricts."""
    wanted = dict(spawn.limits)
    if resource.RLIMIT_NOFILE not in wanted:
        soft = (resource.getrlimit(resource.RLIMIT_NOFILE) if open_files is None else open_files)[0]
        wanted[resource.RLIMIT_NOFILE] = UNLIMITED if soft == resource.RLIM_INFINITY else soft
    lines = []
    for number, value in wanted.items():
        option, unit = LIMIT_OPTIONS[number]
        hard = open_files[1] if number == resource.RLIMIT_NOFILE and open_files is not None else resource.getrlimit(number)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        lines.append(b"ulimit -S -%s %s 2>/dev/null" % (option, b"unlimited" if value == UNLIMITED else b"%d" % (value // unit)))
    if open_files is not None and open_files[1] != resource.RLIM_INFINITY:
        lines.append(b"ulimit -H -n %d 2>/dev/null" % open_files[1])
    return b"\n".join(lines)


def _priority(spawn: Spawn) -> list[bytes]:
    """Programs that lower their own priority and then execute the rest. A higher one is given by us (`_raise`)."""
    words = [] if spawn.nice <= 0 else [b"nice", b"-n", b"%d" % spawn.nice]
    if spawn.scheduling is not Scheduling.ORDINARY:
        words += [b"chrt", b"--batch" if spawn.scheduling is Scheduling.BATCH else b"--idle", b"0"]
    return words


class Launcher:
    """The threads. `launch` may be called from the dispatch; *done* is called in one of them with the result or the error.

    *namespace* names a mount namespace (`/proc/PID/ns/mnt`, or a path kept open as `/proc/self/fd/N`) that programs shall see instead of
    the daemon's: a daemon that hides its own mounts from itself gives its users' namespace here. *open_files*: the soft and hard
    limits of programs, for a daemon that raised its own; None: this process's.
    """

    def __init__(self, namespace: str | None = None) -> None:
        self._namespace = namespace
        self._server = ForkServer()
        self._forking = threading.Lock()
        """Held by the thread that forks, one after another."""
        self._lookups = Lookups("procmgr-lookup", self._enter)
        self._closed = False

    def launch(self, user: MappedUser, spawn: Spawn, terms: Terms, record: Callable[[], None], done: LaunchDone) -> None:
        """Nothing is forked before *record* (called in a thread, may block) has returned; what it raises is the result."""
        job = _Job(user, spawn, terms, record, done)
        self._lookups.submit((user.uid, spawn.user), lambda failure: self._run(job, failure))

    def close(self, patience: float) -> None:
        """No further starts: what waits is never done. Waits up to *patience* seconds for the one that is under way."""
        self._closed = True
        self._lookups.close()
        if self._forking.acquire(timeout=patience):
            self._server.close()
            self._forking.release()

    def _enter(self) -> None:
        try:
            if self._namespace is not None:
                enter_mounts(self._namespace)
        finally:
            # After the namespace, which takes a capability that may be an ambient one.
            drop_privileges_of_thread()

    def _run(self, job: _Job, failure: OSError | None) -> None:
        """In a thread of the look-ups, which goes on to start what it has looked up."""
        try:
            if failure is not None:
                # In the daemon's own namespace the program would see another machine than its user does.
                raise failure
            found = account(job.user, job.spawn.user)
            if job.terms.listed:
                mutable = changeable(job.spawn.arguments[0], found.user)
                if mutable:
                    raise ResmgrError(errno.EPERM, f"{os.fsdecode(mutable)!r} could be changed by the user it would run as")
            job.record()
        except Exception as error:
            job.done(error)
            return
        if job.terms.tree:
            # Looking at another node's files may take a while, and a thread that has another root is good for nothing else.
            threading.Thread(target=_start, args=(job, found, None), name="procmgr-root", daemon=True).start()
            return
        with self._forking:
            if not self._closed:
                _start(job, found, self._server)
            if self._closed:
                self._server.close()


@attrs.frozen
class _Job:
    user: MappedUser
    spawn: Spawn
    terms: Terms
    record: Callable[[], None]
    done: LaunchDone


def _start(job: _Job, found: Account, server: ForkServer | None) -> None:
    """In a thread of the launcher."""
    try:
        launched = _start_there(job, found) if job.terms.tree else start(job.spawn, found, job.terms, server)
    except Exception as error:
        job.done(error)
    else:
        job.done(launched)


def discard(launched: Launched) -> None:
    """End a program that nobody wants any more, whoever's it is. Blocks until it is dead."""
    try:
        os.killpg(launched.pid, signal.SIGKILL)
    except OSError:
        pass
    for fd in (launched.stdin, launched.stdout, launched.stderr):
        if fd >= 0:
            os.close(fd)
    try:
        os.waitid(os.P_PIDFD, launched.pidfd, os.WEXITED)
    except OSError:
        pass
    os.close(launched.pidfd)


def _start_there(job: _Job, found: Account) -> Launched:
    """With the files of the client's node as root. ENOEXEC when its shell cannot be executed here: not exported, or of another machine."""
    callerroot.enter(job.terms.tree, job.terms.mount)
    try:
        return start(job.spawn, found, job.terms)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES):
            raise OSError(errno.ENOEXEC, f"its shell: {error.strerror}", job.terms.tree) from None
        raise
