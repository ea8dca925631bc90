"""mount(2) and umount2(2) for FUSE, in this mount namespace or in another one, without fusermount and without a C library of our own.

A daemon that also serves files must not see its own mounts: touching one would wait for itself. So it calls `private_namespace` when it
starts: its mount namespace becomes a copy to which mounts of the machine still propagate (unless told otherwise), and the descriptor of
the namespace it came from is kept. `Mount` then mounts there, from a thread of its own: a thread that does not share its file system
state (`unshare(CLONE_FS)`) may enter another mount namespace alone, and takes the open /dev/fuse with it. If the new mount propagated
back into the daemon's namespace it is detached there at once, before anything looks at it.

Inside a user namespace (`unshare -Urnm`) everything here works when /dev/fuse can be opened. A mount namespace that belongs to a user
namespace further in can be mounted in, one further out cannot be entered.

Everything blocks shortly and never asks the mounted file system anything, so it may be called from the dispatch that serves the mount.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Collection
from typing import TypeVar

import attrs

from resmgr.fuse.options import FuseOptions, Permissions
from resmgr.ownthread import in_own_thread

T = TypeVar("T")
Device = tuple[int, int]
"""major, minor of a mounted file system."""

DEVICE = "/dev/fuse"
CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
STACKED_MAX = 16
"""Stale mounts removed from one place: more were not left behind by restarts, something is wrong."""


class MountError(OSError):
    """Mounting or unmounting failed; the text is one sentence that says what, why and what to try."""


def open_device() -> int:
    """An open, non-blocking /dev/fuse. `MountError` when it cannot be had."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        hint = {
            errno.ENOENT: "load the kernel module (modprobe fuse), or give the container the device",
            errno.ENODEV: "load the kernel module (modprobe fuse)",
            errno.EACCES: "run as root, or let this user read and write the device (chmod 666 /dev/fuse)",
            errno.EPERM: "the container may not use the device: allow character device 10:229",
        }.get(error.errno or 0, "see the kernel's log")
        raise MountError(error.errno, f"cannot open {DEVICE}: {error.strerror}; {hint}") from None


def _libc_call(name: str, *arguments: object) -> None:
    """Call a function of libc that returns 0; OSError otherwise."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes) -> None:
    import ctypes

    _libc_call("mount", source, target, kind, ctypes.c_ulong(flags), data)


def _unmount(target: bytes, flags: int) -> None:
    _libc_call("umount2", target, flags)


@attrs.frozen
class MountEntry:
    """A line of mountinfo."""

    mount_id: int
    device: Device
    place: bytes
    kind: str
    source: str


def parse_mountinfo(data: bytes) -> list[MountEntry]:
    """Every mount that a mountinfo file lists; lines that do not parse are left out."""
    entries = []
    for line in data.splitlines():
        fields = line.split(b" ")
        try:
            after = fields.index(b"-", 6)
            major, minor = fields[2].split(b":")
            entries.append(
                MountEntry(
                    int(fields[0]),
                    (int(major), int(minor)),
                    _unescape(fields[4]),
                    fields[after + 1].decode(),
                    os.fsdecode(_unescape(fields[after + 2])),
                )
            )
        except (ValueError, IndexError):
            continue
    return entries


def _unescape(field: bytes) -> bytes:
    """Undo the octal escapes of space, tab, newline and backslash."""
    if b"\\" not in field:
        return field
    pieces = field.split(b"\\")
    return pieces[0] + b"".join(bytes((int(piece[:3], 8),)) + piece[3:] for piece in pieces[1:])


def _mounts() -> list[MountEntry]:
    with open("/proc/thread-self/mountinfo", "rb") as file:
        return parse_mountinfo(file.read())


def own_namespace() -> int:
    """A descriptor of the mount namespace of the calling thread; the caller closes it."""
    return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def private_namespace(*, follow: bool = True) -> int:
    """Move this process into a copy of its mount namespace and return a descriptor of the one it came from.

    *follow*: what is mounted there later also appears here; nothing that happens here is seen there. Call it once, early, before other
    threads are started (they would stay behind). `MountError` without the right to do so.
    """
    origin = own_namespace()
    try:
        _libc_call("unshare", CLONE_NEWNS)
        _mount(b"none", b"/", b"", MS_REC | (MS_SLAVE if follow else MS_PRIVATE), b"")
    except OSError as error:
        os.close(origin)
        raise MountError(
            error.errno, f"cannot make a private mount namespace: {error.strerror}; run as root or under unshare -Urnm"
        ) from None
    return origin


def _in_namespace(namespace: int | None, work: Callable[[], T]) -> T:
    """Run *work* in a mount namespace (None: this one), in a thread of its own."""
    if namespace is None:
        return work()

    def run() -> T:
        _libc_call("unshare", CLONE_FS)
        try:
            _libc_call("setns", namespace, CLONE_NEWNS)
        except OSError as error:
            raise MountError(
                error.errno,
                f"cannot enter the mount namespace to mount in: {error.strerror}; it needs CAP_SYS_ADMIN in its user namespace",
            ) from None
        return work()

    return in_own_thread("mount", run)


def clear_stale(mountpoint: str, subtype: str, namespace: int | None = None, left: Collection[Device] = ()) -> int:
    """Remove mounts of ours on *mountpoint* whose server is gone. Returns how many.

    *left*: mounts whose server is known to be gone. They are never looked at, since the kernel may still wait for an answer there (a thread
    of a killed process that the kernel does not let go keeps the connection): they are aborted and detached. Of others it is asked whether
    they are dead ("Transport endpoint is not connected"). `MountError` when one of ours is there and alive, or says nothing.
    """

    def clear() -> int:
        place = os.fsencode(mountpoint)
        count = 0
        while count < STACKED_MAX:
            top = [entry for entry in _mounts() if entry.place == place][-1:]
            if not top or top[0].kind not in (f"fuse.{subtype}", "fuse"):
                return count
            if top[0].device in left:
                _unmount(place, MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW)
                count += 1
                continue
            if top[0].kind == "fuse" and count == 0 and _is_dead(place) is not True:
                return count
            if (dead := _is_dead(place)) is None:
                abort = f"umount -f {mountpoint}, if nobody serves it any more"
                raise MountError(errno.EBUSY, f"{mountpoint} is mounted already and its server says nothing; {abort}")
            if not dead:
                raise MountError(errno.EBUSY, f"{mountpoint} is mounted already and its server answers; unmount it first")
            _unmount(place, MNT_DETACH | UMOUNT_NOFOLLOW)
            count += 1
        return count

    return _in_namespace(namespace, clear)


def abort_mount(place: bytes, device: Device, namespace: int | None = None) -> bool:
    """End the connection of the FUSE file system *device* if that is what is mounted on *place*, and detach it. Never waits for its server.
    Whether it was there."""

    def abort() -> bool:
        top = [entry for entry in _mounts() if entry.place == place][-1:]
        if not top or top[0].device != device or not top[0].kind.startswith("fuse"):
            return False
        _unmount(place, MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW)
        return True

    return _in_namespace(namespace, abort)


def _is_dead(place: bytes) -> bool | None:
    """Whether the FUSE mount at *place* has no server, None: not known. Asked in a thread with little patience: a living server may be a
    hung one."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            os.stat(place)
            answers.append(False)
        except OSError as error:
            answers.append(error.errno in (errno.ENOTCONN, errno.ECONNABORTED))

    asker = threading.Thread(target=ask, name="mount-ask", daemon=True)
    asker.start()
    asker.join(1.0)
    return answers[0] if answers else None


class Mount:
    """One FUSE mount: `attach` makes it, `detach` removes it. `fd` is the open /dev/fuse to give to a `Session`, which then owns it.

    *namespace* is a descriptor of the mount namespace to mount in (None: the caller's); it stays the caller's and must stay open until
    `detach`.
    """

    def __init__(self, mountpoint: str, options: FuseOptions, namespace: int | None = None) -> None:
        self.mountpoint = os.path.abspath(mountpoint)
        self.options = options
        self.mounted = False
        self.device: Device | None = None
        self.read_ahead_set = False
        """Whether the read-ahead of this mount could be raised; needs root of the machine."""
        self.namespace = namespace

    def attach(self, left: Collection[Device] = ()) -> int:
        """Mount; the mountpoint must be an existing directory. Returns the descriptor. `MountError` says what failed. *left*: as of
        `clear_stale`."""
        cleared = clear_stale(self.mountpoint, self.options.subtype, self.namespace, left)
        fd = open_device()
        try:
            self.device = _in_namespace(self.namespace, lambda: self._attach(fd))
        except OSError as error:
            os.close(fd)
            if isinstance(error, MountError):
                raise
            raise MountError(error.errno, self._why(error, cleared)) from None
        self.mounted = True
        if self.namespace is not None:
            self.detach_here()
        self._set_read_ahead()
        return fd

    def adopt(self, device: Device) -> None:
        """Another process of ours has mounted it; whoever calls has its descriptor."""
        self.device = device
        self.mounted = True
        if self.namespace is not None:
            self.detach_here()

    def _attach(self, fd: int) -> Device | None:
        options = self.options
        data = f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},max_read={options.max_write}"
        if options.permissions is Permissions.KERNEL_AND_SERVER:
            data += ",default_permissions"
        if options.allow_other:
            data += ",allow_other"
        place = os.fsencode(self.mountpoint)
        if not os.path.isdir(place):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        # nodev and nosuid: what another machine says of its files must not give rights here.
        flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if options.read_only else 0) | (0 if options.executable else MS_NOEXEC)
        _mount(os.fsencode(options.source), place, f"fuse.{options.subtype}".encode(), flags, data.encode())
        top = [entry for entry in _mounts() if entry.place == os.path.realpath(os.path.dirname(place)) + b"/" + os.path.basename(place)]
        top = top or [entry for entry in _mounts() if entry.place == place]
        return top[-1].device if top else None

    def _why(self, error: OSError, cleared: int) -> str:
        reason = {
            errno.EPERM: "run as root, or in a user and mount namespace of your own (unshare -Urnm)",
            errno.EINVAL: "the kernel does not take these options, or /dev/fuse was opened in another user namespace",
            errno.ENODEV: "the kernel has no FUSE: modprobe fuse",
            errno.ENOTDIR: "it must be an existing directory",
            errno.ENOENT: "it must be an existing directory",
            errno.ENOTCONN: "a dead mount is in the way: umount -l it",
        }.get(error.errno or 0, "see the kernel's log")
        removed = f" (after removing {cleared} dead mounts)" if cleared else ""
        return f"cannot mount on {self.mountpoint}: {error.strerror}; {reason}{removed}"

    def detach_here(self) -> int:
        """Remove this mount, and copies of it, from the caller's namespace, where they must not be seen. How many there were.

        OSError for one that cannot be removed (it is covered by another mount).
        """
        copies = [entry.place for entry in _mounts() if entry.device == self.device and entry.kind == f"fuse.{self.options.subtype}"]
        for place in reversed(copies):
            _unmount(place, MNT_DETACH | UMOUNT_NOFOLLOW)
        return len(copies)

    def _set_read_ahead(self) -> None:
        if self.device is None:
            return
        try:
            with open(f"/sys/class/bdi/{self.device[0]}:{self.device[1]}/read_ahead_kb", "w", encoding="ascii") as file:
                file.write(str(self.options.max_readahead // 1024))
            self.read_ahead_set = True
        except OSError:
            # In a user namespace, or without /sys: the kernel's 128 KiB stay.
            self.read_ahead_set = False

    def detach(self, *, lazy: bool = True, abort: bool = False) -> None:
        """Unmount. *lazy*: also while files are open; they go on working as long as the session serves. *abort*: it serves no more, and
        whatever waits in the kernel ends, threads of ours included. Idempotent; a mount that is gone is fine.

        `MountError` (EBUSY) without *lazy* while it is in use. Not lazy, the kernel waits for the server's answer to DESTROY: then the
        session must be served meanwhile, by another thread, or be closed.
        """
        if not self.mounted:
            return
        place = os.fsencode(self.mountpoint)

        def remove() -> None:
            mounts = _mounts()
            if self.device is None or any(entry.device == self.device and entry.kind.startswith("fuse") for entry in mounts):
                top = [entry.device for entry in mounts if entry.place == place][-1:]
                flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
                try:
                    _unmount(place, flags | (MNT_FORCE if abort and top == [self.device] else 0))
                except PermissionError:
                    # Who may unmount may not always abort: in a user namespace that the mount is not of.
                    if not abort:
                        raise
                    _unmount(place, flags)

        try:
            _in_namespace(self.namespace, remove)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise MountError(error.errno, f"cannot unmount {self.mountpoint}: {error.strerror}") from None
        self.mounted = False
