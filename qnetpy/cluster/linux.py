"""The system calls that the harness needs and Python (3.11) does not offer: namespaces, mounts, death signals. See namespaces(7), mount(2).

Every call raises OSError with a text that names what was refused. Only single-threaded processes may change their user, mount or PID
namespace, so nothing in this package starts a thread.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
NAMES = {
    CLONE_NEWUSER: "user",
    CLONE_NEWNS: "mnt",
    CLONE_NEWNET: "net",
    CLONE_NEWUTS: "uts",
    CLONE_NEWIPC: "ipc",
    CLONE_NEWPID: "pid",
}
"""Names under /proc/PID/ns, in the order in which a process has to join them: user first, since it gives the rights for the others."""

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SHARED = 0x100000
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
SIGKILL = 9
"""As in `signal`, which imports enum: too much for a program that is started for each command on a node."""
SYS_MOUNT_SETATTR = 442
"""The same number on every architecture, as for all system calls since Linux 5.1."""
AT_FDCWD = -100
AT_RECURSIVE = 0x8000
MOUNT_ATTR_RDONLY = 0x1


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code).lower()}")


def unshare(flags: int) -> None:
    """New namespaces for this process; a new PID namespace is for its next child."""
    names = ", ".join(name for flag, name in NAMES.items() if flags & flag)
    _check(_libc().unshare(flags), f"new namespaces ({names})")


def setns(fd: int, kind: int) -> None:
    """Join the namespace behind *fd*; a PID namespace is for the next child."""
    _check(_libc().setns(fd, kind), f"join {NAMES.get(kind, '')} namespace")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    _check(
        _libc().mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode() or None),
        f"mount {kind or source} on {target}",
    )


def bind(source: str, target: str) -> None:
    """Show *source*, with everything mounted below it, at *target* too."""
    mount(source, target, "", MS_BIND | MS_REC)


def read_only(target: str) -> None:
    """Make the mount at *target* and all below read-only. Linux 5.12."""
    attributes = _MountAttr(attr_set=MOUNT_ATTR_RDONLY)
    result = _libc().syscall(
        ctypes.c_long(SYS_MOUNT_SETATTR),
        ctypes.c_int(AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(AT_RECURSIVE),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(result, f"make {target} read-only")


def change_root(root: str) -> None:
    """Make the mount at *root* the root of this mount namespace and let go of the old one."""
    os.chdir(root)
    # The old root is stacked on the new one and can be detached without a directory to put it in: pivot_root(2), "pivot_root(., .)".
    _check(_libc().pivot_root(b".", b"."), f"pivot_root to {root}")
    _check(_libc().umount2(b".", MNT_DETACH), "detach the old root")
    os.chdir("/")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends. Lost at exec of a program with other rights."""
    _check(_libc().prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(SIGKILL), 0, 0, 0), "prctl PDEATHSIG")


def namespace_fds(pid: int, proc: str = "/proc", user: bool = True) -> list[tuple[int, int]]:
    """Open the namespaces of a process: (flag, descriptor) in joining order. The caller closes them."""
    opened = []
    for flag, name in NAMES.items():
        if flag != CLONE_NEWUSER or user:
            opened.append((flag, os.open(f"{proc}/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)))
    return opened
