"""The process that starts programs for a daemon: small and of one thread, so that to fork it is cheap and Python may run before exec.

Run as a script by the daemon's interpreter, without site and without an environment; `forking.ForkServer` is its other end. It reads
requests from a stream socket and answers each. A program becomes a child of the *daemon* (CLONE_PARENT), which alone waits for it, signals
it and reaps it: this process has no children, keeps no state, and can be started again at any time. It ends with its socket.

Request: length u32 (native), the three descriptors with it, then that many bytes of `marshal`: a `Request`. Answer: pid i32 (0: no
child was made), errno i32 (0: it runs; else the child is about to end); both 0 once, when it is ready for requests.
The answer is given when the child is who it shall be and has touched nothing that the user names: directory, terminal and program come
after, so a dead mount holds up only the child. What goes wrong there is said as a shell says it: status 127 for a program that was not
found, 126 for the rest, a line on standard error. docs/protocol/spawn.md: what a program gets.

Imports nothing of ours. What it inherits (namespace, limits, priority, signals) is what programs inherit.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import gc
import marshal
import os
import resource
import signal
import socket
import struct
import sys
import termios

TYPE_CHECKING = False  # a type checker takes it for true; to import `typing` would be a third of what starting this takes
if TYPE_CHECKING:
    from collections.abc import Callable

    Clone = Callable[[], tuple[int, int]]
    Request = tuple[
        tuple[bytes, ...],  # arguments
        dict[bytes, bytes],  # environment
        tuple[int, int, tuple[int, ...]] | None,  # uid, gid, groups; None for this process's own
        int,  # umask
        bytes,  # directory
        bytes,  # where that is empty: the home, which may be missing
        bool,  # descriptor 0 becomes the controlling terminal
        bytes,  # or this device does
        tuple[tuple[int, int, int], ...],  # limits: number, soft one or -1 for none, hard one or -1 for that of this process
        int,  # nice, 0 or above
        int,  # SCHED_*
        bytes,  # who says why it cannot be executed
    ]

LENGTH = struct.Struct("=I")
ANSWER = struct.Struct("=ii")
SHELL = b"/bin/sh"
NOT_FOUND, NOT_STARTED = 127, 126

_CLONE_PARENT = 0x8000
_SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "loongarch64": 220, "ppc64le": 120, "armv7l": 120, "i686": 120}


def serve(sock: socket.socket, clone: Clone) -> None:
    """Until the other end is closed."""
    while True:
        descriptors: list[int] = []
        try:
            request = _receive(sock, descriptors)
            if request is None:
                return
            pid, code = start(clone, marshal.loads(request), descriptors)
        finally:
            for fd in descriptors:
                os.close(fd)
        sock.sendall(ANSWER.pack(pid, code))


def _receive(sock: socket.socket, descriptors: list[int]) -> bytes | None:
    head, ancillary, _, _ = sock.recvmsg(LENGTH.size, socket.CMSG_SPACE(3 * 4), socket.MSG_CMSG_CLOEXEC | socket.MSG_WAITALL)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.extend(array.array("i", data))
    if len(head) < LENGTH.size:
        return None
    (left,) = LENGTH.unpack(head)
    parts = []
    while left:
        part = sock.recv(left)
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def start(clone: Clone, request: Request, stdio: list[int]) -> tuple[int, int]:
    """pid and errno, as answered. Returns when the child has become whom it shall be, or failed to."""
    reading, writing = os.pipe()
    pid, code = clone()
    if pid == 0:
        _child(request, stdio, writing)
    os.close(writing)
    try:
        if pid < 0:
            return 0, code
        said = os.read(reading, 4)
    finally:
        os.close(reading)
    return pid, struct.unpack("=i", said)[0] if said else 0


def _clone() -> Clone:
    """A call that forks with the daemon as the parent: the child's pid, 0 in the child, or -1; and errno."""
    libc = ctypes.PyDLL(None, use_errno=True)
    number = ctypes.c_long(_SYS_CLONE[os.uname().machine])
    flags, none = ctypes.c_ulong(_CLONE_PARENT | signal.SIGCHLD), ctypes.c_ulong(0)
    call = libc.syscall
    call.restype = ctypes.c_long

    def clone() -> tuple[int, int]:
        pid: int = call(number, flags, none, none, none, none)
        return pid, 0 if pid >= 0 else ctypes.get_errno()

    return clone


def _child(request: Request, stdio: list[int], told: int) -> None:
    """Never returns."""
    status, speaker = NOT_STARTED, request[-1]
    try:
        arguments, environment, identity, umask, directory, home, terminal, device, limits, nice, policy, _ = request
        try:
            os.setsid()
            # Away from 0, 1 and 2, which are open, so nothing is overwritten that is still needed.
            for number, fd in enumerate(stdio):
                os.dup2(fd, number)
            if terminal:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            if identity is not None:
                uid, gid, groups = identity
                os.setgroups(groups)
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
            os.umask(umask)
        except (OSError, ValueError, OverflowError) as error:
            # Python itself refuses numbers that the kernel would.
            os.write(told, struct.pack("=i", getattr(error, "errno", None) or errno.EINVAL))
            os._exit(NOT_STARTED)
        os.closerange(3, told)
        os.closerange(told + 1, 1 << 30)
        os.close(told)
        if device:
            _device(device)
        environment[b"PWD"] = _enter(directory, home)
        if nice > 0:
            os.nice(nice)
        if policy:
            os.sched_setscheduler(0, policy, os.sched_param(0))
        _limit(limits)
        status = _execute(arguments, environment, speaker)
    except OSError as error:
        _say(speaker, error.filename or b"", error.strerror or str(error))
    finally:
        os._exit(status)


def _device(path: bytes) -> None:
    """All three streams are this terminal of this machine. Opened as the user, by the leader of a session, who gets it as its own."""
    fd = os.open(path, os.O_RDWR)
    if not os.isatty(fd):
        raise OSError(errno.ENOTTY, "is no terminal", path)
    for number in range(3):
        os.dup2(fd, number)
    if fd > 2:
        os.close(fd)


def _enter(directory: bytes, home: bytes) -> bytes:
    if directory:
        os.chdir(directory)
        return directory
    try:
        os.chdir(home)
        return home
    except OSError:
        os.chdir("/")
        return b"/"


def _limit(limits: tuple[tuple[int, int, int], ...]) -> None:
    """Soft limits, as far as the hard ones allow. The last thing before exec: what is left of this must do without what they take away."""
    for number, soft, most in limits:
        hard = resource.getrlimit(number)[1] if most < 0 else most
        if hard != resource.RLIM_INFINITY and not 0 <= soft <= hard:
            soft = hard
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError, OverflowError):
            pass


def _execute(arguments: tuple[bytes, ...], environment: dict[bytes, bytes], speaker: bytes) -> int:
    """The status to end with when the program could not be executed; says why."""
    name = arguments[0]
    folders = environment.get(b"PATH", b"").split(b":")
    status, why = NOT_FOUND, "not found"
    for path in [name] if b"/" in name else [os.path.join(folder or b".", name) for folder in folders]:
        try:
            os.execve(path, arguments, environment)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                # A script without a first line that names its interpreter: a shell reads it itself.
                os.execve(SHELL, (SHELL, path, *arguments[1:]), environment)
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                status, why = NOT_STARTED, error.strerror or str(error)
    _say(speaker, name, why)
    return status


def _say(speaker: bytes, name: bytes | str, why: str) -> None:
    try:
        os.write(2, speaker + b": " + (os.fsencode(name) + b": " if name else b"") + os.fsencode(why[:1].lower() + why[1:]) + b"\n")
    except OSError:
        pass


def main() -> None:
    """`forkserver.py DESCRIPTOR`"""
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
            if int(file.read()) < 0:
                file.seek(0)
                file.write("0")
    except OSError:
        pass
    gc.disable()
    gc.freeze()
    sock = socket.socket(fileno=int(sys.argv[1]))
    clone = _clone()
    sock.sendall(ANSWER.pack(0, 0))
    serve(sock, clone)
    os._exit(0)


if __name__ == "__main__":
    main()
