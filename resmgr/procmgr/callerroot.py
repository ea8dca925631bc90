"""Mounts that a thread, and programs it starts, see instead of the daemon's: those of the node's users, or another node's files as root.

For `on -n`, a program of the client's node runs here with that node's files as its own. In a mount namespace of its own a small file system
in memory is made, in which stand, by the names they have there, the directories, files and links of the other node's root (bound from
`/net/NODE`, so what that node exports to this one), and this machine's /dev, /proc, /sys and /net. It becomes the root of the thread that
starts the program. Nothing is copied and nothing is left when the program has ended: the namespace goes with its last process.

That thread must not do anything else: what Python would import there is the other node's. It starts the program, already loaded code only,
and ends.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

ENTRIES_MAX = 256
"""Names in the root directory of another node. It could list as many as it likes."""
OURS = ("dev", "proc", "sys")
"""What a program needs of the machine that runs it."""
PLACE = "/tmp"
"""Nothing is written there: the new root is mounted over it, in a namespace of the program's own."""
_CLONE_FS = 0x200
_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 1, 2, 4, 32
_MS_BIND, _MS_REC, _MS_SLAVE = 4096, 16384, 1 << 19


def enter_mounts(namespace: str) -> None:
    """Make the calling thread, and what it starts, see the mounts of *namespace*. Other threads stay where they are."""
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = _libc()
        _check(libc.unshare(_CLONE_FS), namespace)
        _check(libc.setns(fd, _CLONE_NEWNS), namespace)
    finally:
        os.close(fd)


def enter(tree: str, mount: str) -> None:
    """Make *tree* (`/net/NODE`) the root of the calling thread, in a mount namespace of its own that has the mount point *mount*, too.

    OSError: EOPNOTSUPP where this daemon may not make mounts, what the other node says of its root directory, E2BIG.
    """
    if _libc().unshare(_CLONE_FS | _CLONE_NEWNS):
        raise OSError(errno.EOPNOTSUPP, f"this daemon may not make a mount namespace: {os.strerror(ctypes.get_errno())}")
    # What happens to /net outside is to happen inside, but not the other way.
    _mount("none", "/", "", _MS_REC | _MS_SLAVE)
    sources = {name: os.open(f"/{name}", os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY) for name in OURS}
    sources[mount.strip("/")] = os.open(mount, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    caller = os.open(tree, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        names = os.listdir(caller)
        if len(names) > ENTRIES_MAX:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), tree)
        _mount("qnet", PLACE, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m,nr_inodes=1k")
        taken = {name.partition("/")[0] for name in sources}
        for name in names:
            if name not in taken:
                _place(caller, name)
        for name, fd in sources.items():
            place = f"{PLACE}/{name}"
            os.makedirs(place, mode=0o755, exist_ok=True)
            _mount(f"/proc/self/fd/{fd}", place, "", _MS_BIND | _MS_REC)
        _mount("none", PLACE, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
        os.chroot(PLACE)
        os.chdir("/")
    finally:
        for fd in (*sources.values(), caller):
            os.close(fd)


def _place(caller: int, name: str) -> None:
    """One entry of the other node's root directory. What is neither a directory, a file nor a link is left out."""
    place = f"{PLACE}/{name}"
    # By name, which the kernel looks up again when what it knew is stale.
    kind = os.stat(name, dir_fd=caller, follow_symlinks=False).st_mode
    if stat.S_ISLNK(kind):
        os.symlink(os.readlink(name, dir_fd=caller), place)
    elif stat.S_ISDIR(kind) or stat.S_ISREG(kind):
        # Opened as what it is: one that its node turns into a link at this moment would lead to files of this machine.
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=caller)
        try:
            if stat.S_IFMT(os.fstat(fd).st_mode) != stat.S_IFMT(kind):
                return
            if stat.S_ISDIR(kind):
                os.mkdir(place)
            else:
                os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
            _mount(f"/proc/self/fd/{fd}", place, "", _MS_BIND)
        finally:
            os.close(fd)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _check(_libc().mount(*arguments), target)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)
