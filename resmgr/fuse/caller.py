"""What the kernel does not do for a FUSE file and a device's driver would: data of ioctls whose number tells no size, and SIGPIPE.

A restricted FUSE ioctl carries the data that its number tells, so those of TCGETS and the other old terminal commands stay where they are.
The request names the thread that waits in ioctl(2) and the address that it gave; the command's size and direction are ours
(`resmgr.iofunc.terminal`), never the server's. So the data are copied by process_vm_readv and process_vm_writev, as the kernel's
copy_from_user and copy_to_user would: the same thread, the same address, page protections obeyed, EFAULT.

That thread cannot go away meanwhile: a request that was read here is left by its process only when it is answered, not even by SIGKILL.
So nothing is answered while a copy is under way, and a copy is only begun before the answer.

A copy touches pages of the program, which may be pages of a file that this process serves, or of one that never answers. So it runs in a
thread, in a lane for each user. It needs the right to trace the program: root has it, an ordinary user mostly for his own programs.
Without it the command is ENOTTY as if it did not exist, and counted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable

from resmgr.dispatch import Dispatch
from resmgr.iofunc.lanes import Lane, Lanes

USERS_MAX = 256
"""Users with a lane of their own; the lanes of those who wait for nothing are given up beyond."""
_EXITING = 0x4
"""PF_EXITING of the kernel, in the flags of /proc/PID/stat."""
_REFUSED = frozenset((errno.EPERM, errno.ESRCH, errno.ENOSYS, errno.EACCES))

_libc = ctypes.CDLL(None, use_errno=True)


class _Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


_SIGNATURE = (
    ctypes.c_int,
    ctypes.POINTER(_Part),
    ctypes.c_ulong,
    ctypes.POINTER(_Part),
    ctypes.c_ulong,
    ctypes.c_ulong,
)
for _call in (_libc.process_vm_readv, _libc.process_vm_writev):
    _call.restype = ctypes.c_ssize_t
    _call.argtypes = list(_SIGNATURE)


def _copy(write: bool, pid: int, address: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    size = len(buffer)
    near, far = _Part(ctypes.addressof(buffer), size), _Part(address, size)
    call = _libc.process_vm_writev if write else _libc.process_vm_readv
    count: int = call(pid, ctypes.byref(near), 1, ctypes.byref(far), 1, 0)
    if count < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if count != size:
        raise OSError(errno.EFAULT, "the data reach into memory that is not there")


def read_memory(pid: int, address: int, size: int) -> bytes:
    """*size* bytes of the memory of thread *pid*. OSError: EFAULT, EPERM, ESRCH. May wait for pages."""
    buffer = ctypes.create_string_buffer(size)
    _copy(False, pid, address, buffer)
    return buffer.raw


def write_memory(pid: int, address: int, data: bytes) -> None:
    """As `read_memory`."""
    _copy(True, pid, address, ctypes.create_string_buffer(data, len(data)))


class Callers:
    """Copies for programs that wait, for each user a few at a time. Counts `caller_memory_refused` in *counters*."""

    def __init__(self, dispatch: Dispatch, counters: dict[str, int]) -> None:
        self._lanes = Lanes(dispatch)
        self._of_user: dict[int, Lane] = {}
        self._counters = counters

    def read(self, uid: int, pid: int, address: int, size: int, done: Callable[[int, bytes], None]) -> None:
        """Call *done* with 0 and the data, or with an errno."""
        self._run(uid, pid, lambda: read_memory(pid, address, size), done)

    def write(self, uid: int, pid: int, address: int, data: bytes, done: Callable[[int, bytes], None]) -> None:
        """Call *done* with 0 or an errno."""

        def work() -> bytes:
            write_memory(pid, address, data)
            return b""

        self._run(uid, pid, work, done)

    def _run(self, uid: int, pid: int, work: Callable[[], bytes], done: Callable[[int, bytes], None]) -> None:
        def ended(result: bytes | BaseException) -> None:
            if isinstance(result, bytes):
                done(0, result)
                return
            code = result.errno if isinstance(result, OSError) and result.errno else errno.EIO
            if code in _REFUSED:
                self._counters["caller_memory_refused"] += 1
                code = errno.ENOTTY
            done(code, b"")

        if pid <= 0:
            # A program of another pid namespace that ours does not contain.
            ended(ProcessLookupError(errno.ESRCH, "no number for the program here"))
        else:
            self._lane(uid).submit(work, ended)

    def _lane(self, uid: int) -> Lane:
        lane = self._of_user.get(uid)
        if lane is None:
            if len(self._of_user) >= USERS_MAX:
                for idle in [user for user, lane in self._of_user.items() if not lane.running and not lane.waiting]:
                    del self._of_user[idle]
            lane = self._of_user[uid] = Lane(self._lanes, f"memory of the programs of user {uid}", True)
        return lane


def broken_pipe(pid: int) -> None:
    """SIGPIPE to the program whose thread *pid* waits in write(2), before that ends with EPIPE."""
    if pid > 0:
        try:
            os.kill(pid, signal.SIGPIPE)
        except OSError:
            # Not ours to signal: it hears EPIPE.
            pass


def ends(pid: int) -> bool:
    """Whether thread *pid*, which waits for an answer, is ending: what it closes then it does not look at."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            flags = int(file.read().rpartition(b")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return False
    return bool(flags & _EXITING)
