"""Where the clusters of this user live between commands: one directory each, held by a lock that ends with the cluster.

    BASE/NAME/lock      held (flock) by the supervisor and its guardian for as long as the cluster exists
    BASE/NAME/plan      what was started (JSON)
    BASE/NAME/keys/     certificates and keys of the nodes, made by `up`
    BASE/NAME/control   the supervisor's socket
    BASE/NAME/log       what the supervisor had to say

BASE is $QNET_CLUSTERS, or /run/qnet-clusters for root, or a directory of the user's own. A directory whose lock nobody holds belongs to
a cluster that died without its guardian: `sweep` removes it. There is nothing else to clean, because everything else is in namespaces that
end with the supervisor.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator


def base() -> str:
    chosen = os.environ.get("QNET_CLUSTERS")
    if chosen:
        return os.path.abspath(chosen)
    if os.geteuid() == 0:
        return "/run/qnet-clusters"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return os.path.join(runtime, "qnet-clusters")
    return os.path.join(tempfile.gettempdir(), f"qnet-clusters-{os.geteuid()}")


def directory(name: str) -> str:
    return os.path.join(base(), name)


def create(name: str) -> tuple[str, int]:
    """A fresh directory for a cluster and the descriptor that holds its lock. FileExistsError when the cluster is running."""
    root = base()
    path = directory(name)
    while True:
        os.makedirs(root, mode=0o700, exist_ok=True)
        found = os.lstat(root)
        if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
            raise PermissionError(errno.EPERM, "belongs to somebody else", root)
        try:
            with _one_at_a_time(root):
                _sweep()
                os.mkdir(path, 0o700)
                lock = os.open(f"{path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return path, lock
        except FileNotFoundError:
            # The last cluster of another program ended and took the empty base directory away in this moment.
            continue


@contextlib.contextmanager
def _one_at_a_time(root: str) -> Iterator[None]:
    """Keep others from making or sweeping directories meanwhile: a directory without its lock yet would look dead."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def alive(path: str) -> bool:
    """Whether somebody holds the cluster's lock."""
    try:
        lock = os.open(f"{path}/lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def remove(path: str) -> None:
    """Take a dead cluster's directory away, and the base directory with the last one."""
    shutil.rmtree(path, ignore_errors=True)
    _remove_base()


def _remove_base() -> None:
    """Take the base directory away if it is empty."""
    with contextlib.suppress(OSError):
        os.rmdir(base())


def names() -> Iterator[str]:
    """Clusters that have a directory, alive or not."""
    with contextlib.suppress(FileNotFoundError):
        yield from sorted(entry.name for entry in os.scandir(base()) if entry.is_dir(follow_symlinks=False))


def sweep() -> list[str]:
    """Remove what dead clusters left; returns their names."""
    try:
        with _one_at_a_time(base()):
            return _sweep()
    except FileNotFoundError:
        return []
    finally:
        _remove_base()


def _sweep() -> list[str]:
    dead = [name for name in names() if not alive(directory(name))]
    for name in dead:
        shutil.rmtree(directory(name), ignore_errors=True)
    return dead
