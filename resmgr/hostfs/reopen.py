"""Opening again what a client had open before the link or the daemon went away (docs/protocol/failures.md).

A client of an open regular file, or of a directory, asks IDENTIFY and keeps what it gets, a token: the kernel's own handle of the file
(name_to_handle_at: inode number and generation), which file system it is of, the boot of this machine, and a MAC by a key of this node over
all that and the client's node.
Later it sends REOPEN with the token and the name by which it knows the file. That is an OPEN like any other, by name, as the client's
mapped user and under the export rules of that moment, except that the object must be the token's. If the name leads elsewhere, the kernel
is asked where the handle's file is now, and that name is opened in the same way; so a token never opens what a name would not. To ask takes
a descriptor of the base directory, which is opened as the user, too; a base that is no directory is not opened. Where the root is the base,
the places at which the token's file system is mounted serve, too (`anchors`); without a name only that is asked. With O_PATH a directory is
not opened: the client gets a base handle, for which it needs no right to list it.

ESTALE: no such file any more (also removed while it was open), a token of another node, key or version, or a file that would be open for
writing after this machine was booted: what was written and not synced then may be lost, so it must not look as if nothing had happened.
"""

from __future__ import annotations

import errno
import hmac
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from stat import S_ISREG

from resmgr.channel import Message
from resmgr.handlelist import pack_tokens, parse_identify
from resmgr.hostfs import syscalls
from resmgr.hostfs.anchors import anchors
from resmgr.hostfs.device import blocks
from resmgr.hostfs.made import Opened
from resmgr.hostfs.objects import Busy, HostClient, HostHandle
from resmgr.hostfs.running import Result, Running
from resmgr.iofunc.handle import Handle
from resmgr.iomsg import IDENTIFY_BATCH, PATH_MAX, TOKEN_MAX, WANT_HANDLE, Connect
from resmgr.iorequest import ConnectRequest, check_path

_VERSION = 2
_HEAD = struct.Struct("!B16sQiQ")
"""Version, boot, device (a number of that boot), type of the kernel's handle, file system (`_file_system`); the handle's bytes follow,
then the MAC."""
_BEFORE = 1
"""Version of tokens that say nothing of the file system."""
_HEAD_BEFORE = struct.Struct("!B16sQi")
_MAC = 16
_AWAY = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.EACCES, errno.EISDIR, errno.ENXIO))
"""The name leads to nothing, to something else, or through a directory that is closed to the client: the file may be elsewhere."""
_DELETED = b" (deleted)"


def boot_id() -> bytes:
    """Of this machine's kernel; zeros where it does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return bytes.fromhex(file.read(36).decode().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


class Reopening:
    """IDENTIFY and REOPEN of one `HostFs`. *key*: 32 bytes; a token is good as long as it stays the same."""

    def __init__(self, fs: Running, key: bytes, boot: bytes) -> None:
        self.key = key
        self._finds: bool | None = None
        """Whether this process may open by the kernel's handles; None: not tried yet."""
        self._fs = fs
        self._boot = boot

    # ---- tokens

    def _seal(self, content: bytes, node: str) -> bytes:
        return content + hmac.digest(self.key, node.encode() + b"\0" + content, "sha256")[:_MAC]

    def _unseal(self, token: bytes, node: str) -> tuple[bytes, int, int, int, bytes]:
        """Boot, device, file system, type and bytes of the kernel's handle."""
        content = token[:-_MAC]
        if len(content) < _HEAD_BEFORE.size or not hmac.compare_digest(self._seal(content, node), token):
            self._fs.counters["reopen_forged"] += 1
            raise OSError(errno.ESTALE, "not a token of this node for that one")
        version, boot, device, kind = _HEAD_BEFORE.unpack_from(content)
        if version == _BEFORE:
            return boot, device, 0, kind, content[_HEAD_BEFORE.size :]
        if version != _VERSION or len(content) < _HEAD.size:
            raise OSError(errno.ESTALE, "token of another version")
        return boot, device, _HEAD.unpack_from(content)[4], kind, content[_HEAD.size :]

    def _token(self, handle: HostHandle, device: int, node: str) -> bytes:
        kind, data = syscalls.name_to_handle(handle.fd)
        system = 0 if blocks(handle.device.kind) else _file_system(handle.fd)
        return self._seal(_HEAD.pack(_VERSION, self._boot, device, kind, system) + data, node)

    # ---- messages

    def identify(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        """The token of an open regular file or of a directory, open or as a base; EOPNOTSUPP where the file system has no handles."""
        node = message.info.node
        if flags & IDENTIFY_BATCH:
            find = self._fs.manager.table.find
            handles = [find(client, number, True) for number in parse_identify(message.data)]
            message.reply(0, pack_tokens([b"" if one is None else self._of_directory(one, node) for one in handles]))
            return
        if not isinstance(handle, HostHandle):
            raise OSError(errno.EOPNOTSUPP, "nothing that can be opened again")
        if handle.directory:
            token = self._of_directory(handle, node)
            if not token:
                raise OSError(errno.EOPNOTSUPP, "its file system knows no handles")
            message.reply(0, token)
            return
        if not (handle.readable or handle.writable):
            raise OSError(errno.EOPNOTSUPP, "nothing that is open")

        def work() -> bytes:
            status = os.fstat(handle.fd)
            if not S_ISREG(status.st_mode):
                raise OSError(errno.EOPNOTSUPP, "not a regular file")
            return self._token(handle, status.st_dev, node)

        self._fs.io(message, client, handle, work)

    def _of_directory(self, handle: Handle, node: str) -> bytes:
        """Nothing here asks a disk or another machine. None if it would be of no use: then its client keeps the base handle."""
        if not isinstance(handle, HostHandle) or not handle.directory or not self._may_find():
            return b""
        try:
            token = self._token(handle, handle.device.number, node)
        except OSError:
            return b""
        return token if len(token) <= TOKEN_MAX else b""

    def _may_find(self) -> bool:
        if self._finds is None:
            try:
                anchor = _open_directory(self._fs.root.fd)
                try:
                    syscalls.open_by_handle(anchor, 1, bytes(8))
                finally:
                    os.close(anchor)
            except OSError as error:
                # Anything else is about a handle that is none.
                self._finds = error.errno not in (errno.EPERM, errno.EACCES)
            else:
                self._finds = True
        return self._finds

    def reopen(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        """OPEN of what the token in `path2` says. Always in a thread: it is rare, and may have to ask a disk."""
        fs = self._fs
        fs.manager.check_room(client)
        boot, device, system, kind, data = self._unseal(request.path2, message.info.node)
        flags = request.flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC)
        if boot != self._boot and flags & os.O_ACCMODE != os.O_RDONLY:
            fs.counters["reopen_other_boot"] += 1
            raise OSError(errno.ESTALE, "the machine was booted since")
        identity = fs.identity(client)
        place = fs.place(client, base)
        root = client.root
        ops = fs.ops_of(client)
        assert root is not None

        def is_same(fd: int) -> bool:
            try:
                if syscalls.name_to_handle(fd) != (kind, data):
                    return False
                # Numbers of devices are dealt out anew, and roots of file systems have the same handle on many.
                return (boot != self._boot or os.fstat(fd).st_dev == device) and (not system or _file_system(fd) == system)
            except OSError:
                return False

        def open_same(where: HostHandle, path: bytes) -> Opened:
            if flags & os.O_PATH:
                return base_same(where, path)
            opened = ops.open(where, ConnectRequest(Connect.OPEN, flags, 0, path))
            if isinstance(opened, Opened) and opened.ocb is not None and is_same(opened.ocb.fd):
                opened.ocb.reopened = True
                return opened
            opened.discard()
            raise OSError(errno.ESTALE, "the name leads to another file")

        def base_same(where: HostHandle, path: bytes) -> Opened:
            opened = ops.lookup(where, ConnectRequest(Connect.LOOKUP, WANT_HANDLE, 0, path))
            if isinstance(opened, Opened):
                if opened.node is not None and opened.node.directory and is_same(opened.node.fd):
                    return opened
                opened.discard()
            raise OSError(errno.ESTALE, "the name leads to another file")

        def work() -> Result:
            try:
                if base is None and not request.path:
                    raise OSError(errno.ESTALE, "only the token says what it is")
                return fs.switch.run(identity, open_same, place, request.path)
            except BlockingIOError as met:
                return Busy(met)
            except OSError as error:
                if error.errno not in _AWAY:
                    raise
            if not place.directory:
                # Opening what it is could do something: a FIFO's writers wait for that, a device may act.
                raise OSError(errno.ESTALE, "the base is not a directory")
            try:
                path = self._whereabouts(anchored(), kind, data, top)
                return fs.switch.run(identity, open_same, root, path)
            except BlockingIOError as met:
                return Busy(met)
            except OSError as error:
                raise OSError(errno.ESTALE if error.errno in _AWAY else error.errno, "cannot be opened where it is now") from None

        top = os.readlink(b"/proc/self/fd/%d" % fs.root.fd).rstrip(b"/") + b"/"

        def anchored() -> Iterator[tuple[int, bytes]]:
            # Roots of file systems have the same handle on many.
            elsewhere = base is None and device != fs.root.device.number
            if elsewhere:
                yield from anchors(device, top)
            with suppress(OSError):
                anchor = fs.switch.run(identity, _open_directory, place.fd)
                try:
                    yield anchor, top
                finally:
                    os.close(anchor)
            if base is None and not elsewhere:
                yield from anchors(device, top)

        lane = place.device.lane if base is not None else fs.devices.get(device).lane
        fs.manager.background(
            message,
            client,
            (fs.root, base or fs.root),
            work,
            lambda result: fs.finish(message, client, result),
            _discard,
            lane,
        )

    @staticmethod
    def _whereabouts(anchored: Iterator[tuple[int, bytes]], kind: int, data: bytes, top: bytes) -> bytes:
        """The path, from the served root *top*, of the file that the kernel's handle means, as it is seen from one of *anchored*."""
        for anchor, point in anchored:
            try:
                fd = syscalls.open_by_handle(anchor, kind, data)
            except OSError:
                continue
            try:
                status = os.fstat(fd)
                path = os.readlink(b"/proc/self/fd/%d" % fd)
            finally:
                os.close(fd)
            # It may be the place itself.
            beneath = path + b"/"
            seen = beneath.startswith(point) and beneath.startswith(top) and len(path) <= PATH_MAX
            if status.st_nlink and seen and not path.endswith(_DELETED):
                return check_path(path[len(top) :])
        raise OSError(errno.ESTALE, "no such file any more, or it has no name here")


def _file_system(fd: int) -> int:
    """Which one *fd* is of, over boots, as the kernel tells (f_fsid); 0: it does not. Asks the server of one that has any."""
    return os.fstatvfs(fd).f_fsid & 0xFFFFFFFFFFFFFFFF


def _open_directory(fd: int) -> int:
    """A descriptor that open_by_handle_at takes, of the directory that *fd*, an O_PATH descriptor, is."""
    return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=fd)


def _discard(result: Result) -> None:
    if not isinstance(result, bytes):
        result.discard()
