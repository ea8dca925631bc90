"""The lock of an instance: one io-pkt per run directory. The lock dies with the process, whatever kills it.

The directory is opened once, and everything in it is reached through that descriptor: nobody can put another in its place meanwhile, nor
a link in place of a file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from stack.core.errors import ModuleError
from stack.rights import User
from stack.rundir import distrusted

LOCK = "lock"
REMOVED_TIMES = 50
"""How often the folder may be removed under us before we give up."""
LOCK_SECONDS = 0.25
"""How long the lock is waited for: a command that looks whether we run holds it for microseconds."""


@contextmanager
def locked(run_dir: str, name: str, user: User | None = None) -> Iterator[None]:
    """Make the folder and hold its lock; a folder that was made is removed at the end, if nothing is kept in it. ModuleError in one
    sentence when that cannot be, or when the folder is not to be trusted.

    *user*: who will work in the folder; it is made his, but a folder that was there stays whose it was.
    """
    folder = -1
    made = False
    try:
        try:
            for left in range(REMOVED_TIMES, -1, -1):
                try:
                    made, folder = _open_folder(run_dir, user)
                    fd = _open_and_lock(folder)
                    break
                except FileNotFoundError:
                    # Another manager ended, and removed the folder that it had made after we had opened it.
                    if not left:
                        raise
                    if folder >= 0:
                        os.close(folder)
                        folder = -1
        except BlockingIOError:
            holder = _holder(folder)
            raise ModuleError(errno.EBUSY, f"{name} is running already, as process {holder}; -i N starts another instance") from None
        except ModuleError:
            raise
        except OSError as error:
            why = "the lock in it is a link" if error.errno == errno.ELOOP else error.strerror
            raise ModuleError(error.errno or errno.EIO, f"cannot use the run directory {run_dir}: {why}; see --run-dir") from error
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
            yield
        finally:
            try:
                os.unlink(LOCK, dir_fd=folder)
            except (FileNotFoundError, PermissionError):
                pass  # somebody tidied up, or the folder is not the user's that we have become: whoever holds no lock is not running
            os.close(fd)
            if made:
                with suppress(OSError):  # something is kept in it, or the folder above is not the user's that we have become
                    os.rmdir(run_dir)
    finally:
        if folder >= 0:
            os.close(folder)


def _open_folder(run_dir: str, user: User | None) -> tuple[bool, int]:
    """Whether it was made just now, and a descriptor."""
    made = False
    above = os.path.dirname(os.path.abspath(run_dir))
    if not os.path.exists(above):
        os.makedirs(above, exist_ok=True)
    try:
        os.mkdir(run_dir, 0o755)
    except FileExistsError:
        pass
    else:
        made = True
        if user is not None:
            os.chown(run_dir, user.uid, user.gid)
    folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # What is trusted stays in its place: so what we have opened is it, or was put there before.
        why = distrusted(run_dir, () if user is None else (user.uid,))
        if not why and not os.path.samestat(os.fstat(folder), os.stat(run_dir)):
            raise FileNotFoundError(errno.ENOENT, "it was another a moment ago", run_dir)
        if why:
            raise ModuleError(errno.EPERM, f"the run directory {run_dir} {why}; see --run-dir")
    except BaseException:
        os.close(folder)
        raise
    return made, folder


def _holder(folder: int) -> str:
    try:
        fd = os.open(LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return "unknown"  # it has just ended
    with open(fd, encoding="ascii", errors="replace") as file:
        return file.read(20).strip() or "unknown"


def _open_and_lock(folder: int) -> int:
    """The locked file. BlockingIOError when somebody else holds it.

    It is the owner's alone: whoever can open a file can lock it, and other users must not keep the manager from starting.
    """
    patience = time.monotonic() + LOCK_SECONDS
    while True:
        fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=folder)
        try:
            os.fchmod(fd, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it before us removes the file: perhaps between our open and our lock.
            try:
                if os.path.samestat(os.fstat(fd), os.stat(LOCK, dir_fd=folder, follow_symlinks=False)):
                    return fd
            except FileNotFoundError:
                pass
        except BlockingIOError:
            if time.monotonic() > patience:
                os.close(fd)
                raise
            time.sleep(LOCK_SECONDS / 50)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
