"""HostFs: the channel that serves a directory of the Linux file system to local and remote clients.

A request is answered inline when its file system answers from memory (see `device`), else in a worker thread; both run the same operation
as the client's mapped user (see `identity`). fsync and fallocate always go to a thread. What is new (handles) is registered in dispatch
context.

What a client may see is its export scope (`resmgr.access.Scope`), taken when a handle is made and inherited along walks. A handle follows
its object like any open descriptor: a directory that somebody moves out of an export stays open for the client that has it. A new policy
closes the handles of all remote clients, so what was taken away is gone at once.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Mapping
from time import monotonic

from resmgr.access import SCOPE_NONE, Policy, Scope
from resmgr.channel import ND_LOCAL, PID_SYSTEM, Kernel, Message
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.hostfs.device import Device, Devices
from resmgr.hostfs.identity import Identity, Switch
from resmgr.hostfs.locks import HostLocks
from resmgr.hostfs.mountpoints import MountPoints
from resmgr.hostfs.objects import HostClient, HostHandle, Opened
from resmgr.hostfs.opened import change, pack_statfs, read_directory, read_now, read_waiting
from resmgr.hostfs.operations import Operations
from resmgr.hostfs.special import Special
from resmgr.hostfs.streams import DeviceHandle, DeviceIo
from resmgr.hostfs.syscalls import fallocate, process_umask
from resmgr.iofunc.handle import HANDLES_PER_CLIENT, HANDLES_PER_MANAGER, Handle
from resmgr.iofunc.lanes import Lanes
from resmgr.iofunc.manager import Manager
from resmgr.iomsg import ATTR, ENTRY, OFFSET_APPEND, SET_SIZE, SYNC_DATA_ONLY, Connect, Io, Target
from resmgr.iorequest import (
    HEAD,
    WRITE_HEAD,
    ConnectRequest,
    SetAttr,
    parse_read,
    parse_readdir,
    parse_space,
    parse_write,
)

FIRST_PART = 1024 * 1024 + WRITE_HEAD
"""A write of 1 MiB, the most that a kernel's FUSE client sends, arrives in one piece; the rest of larger ones is pulled."""
READ_MAX = 4 * 1024 * 1024
"""Bytes of one READ reply; a reply's memory is the server's. A larger request gets this much."""
WRITE_MAX = 16 * 1024 * 1024
"""Bytes of one WRITE; a longer one is cut, as a short write."""
PULL = 1024 * 1024
READDIR_MAX = 1024 * 1024
READDIR_COST = 10e-6 / 128
"""Seconds of our own work per byte of entries with attributes."""
CLIENT_EXPIRY = 60.0
"""Seconds after which a client's mapping and exports are computed again (accounts may have changed)."""
OFFSET_MAX = (1 << 63) - 1


Result = bytes | Opened | Special
Operation = Callable[[HostHandle, ConnectRequest], Result]


class HostFs:
    """Serves directory *root*; *prefix* is where the pathname space shows it, and what export paths are relative to.

    The caller raises RLIMIT_NOFILE and should set the process's umask to 0 (then default ACLs work as at home); another umask is made good
    for, file by file. `counters` are named events; `switch.problem` says which identities cannot be served here.
    """

    def __init__(
        self,
        kernel: Kernel,
        policy: Policy,
        *,
        root: bytes | str = b"/",
        prefix: bytes = b"/",
        pid: int = PID_SYSTEM,
        chid: int | None = None,
        handles_per_client: int | None = None,
    ) -> None:
        self.switch = Switch()
        self._policy = policy
        self._prefix = prefix
        self._dispatch = kernel.dispatch
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.lanes = Lanes(kernel.dispatch)
        self._devices = Devices(os.fstat(fd).st_dev, self.lanes)
        self._root = HostHandle(fd, SCOPE_NONE, self._devices.root, True)
        self._mounts = MountPoints()
        self._looked = -1.0
        # A handle is a descriptor; a quarter of them is left to the rest of the process. Nodes and users have their shares (HandleTable).
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        handles_max = min(HANDLES_PER_MANAGER, soft * 3 // 4) if soft > 0 else HANDLES_PER_MANAGER
        if handles_per_client is None:
            handles_per_client = min(HANDLES_PER_CLIENT, handles_max)
        self._locks = HostLocks(kernel.dispatch)
        self._special = DeviceIo(kernel.dispatch, self.lanes, self._devices, self.switch, self._identity, self._finish)
        self.manager = Manager(
            kernel,
            name="hostfs",
            make_client=HostClient,
            connect={
                Connect.LOOKUP: self._lookup,
                Connect.OPEN: self._open,
                Connect.UNLINK: self._unlink,
                Connect.RMDIR: self._rmdir,
                Connect.RENAME: self._rename,
                Connect.MKDIR: self._mkdir,
                Connect.MKNOD: self._mknod,
                Connect.LINK: self._link,
                Connect.SYMLINK: self._symlink,
                Connect.READLINK: self._readlink,
                Connect.SETATTR: self._setattr_path,
                Connect.ACCESS: self._access,
                Connect.STATFS: self._statfs_path,
            },
            io={
                Io.READ: self._read,
                Io.WRITE: self._write,
                Io.STAT: self._stat,
                Io.READDIR: self._readdir,
                Io.SETATTR: self._setattr,
                Io.STATFS: self._statfs,
                Io.SYNC: self._sync,
                Io.SPACE: self._space,
                Io.LOCK: self._locks.answer,
                Io.NOTIFY: self._special.notify,
                Io.DEVCTL: self._special.devctl,
            },
            pid=pid,
            chid=chid,
            first_part=FIRST_PART,
            handles_per_client=handles_per_client,
            handles_max=handles_max,
        )
        self.channel = self.manager.channel
        self.target = Target(0, pid, self.channel.chid)
        self._ops = Operations(self._devices, (0, pid, self.channel.chid), process_umask())
        self.counters = self.manager.counters
        self.counters.update({"threaded": 0, "read_blocked": 0, "identity_refused": 0, "user_refused": 0})
        self._locks.count_in(self.counters)
        self._special.serve(self.manager, self._ops)

    def set_policy(self, policy: Policy) -> None:
        """Use *policy* from now on. Handles of remote clients are closed (EBADF): they were given under the old one."""
        self._policy = policy
        for client in self.manager.table.clients.values():
            client.expires = 0.0
            if client.info.nd != 0:
                for handle in list(client.handles):
                    self.manager.table.close(handle)
        self._special.forget_remote()

    def destroy(self) -> None:
        """Close the channel, every handle and the root."""
        self.manager.destroy()
        self._locks.close()
        self._special.close()
        self._root.close()
        self._mounts.close()

    # ---- who and what

    def _refresh(self, client: HostClient) -> Identity:
        """Ask the policy again. Raises EPERM for a client that is nobody here."""
        user = self._policy.user(client.info)
        if isinstance(user, int):
            self.counters["user_refused"] += 1
            raise OSError(user, "no user mapping lets this client in")
        try:
            identity = self.switch.identity(user)
        except PermissionError:
            self.counters["identity_refused"] = self.switch.refused
            raise
        scope: Scope = self._policy.scope(client.info, self._prefix)
        client.identity = identity
        client.root = HostHandle(self._root.fd, scope, self._devices.root, True)
        client.expires = self._dispatch.now() + CLIENT_EXPIRY
        return identity

    def _identity(self, client: HostClient) -> Identity:
        identity = client.identity
        if identity is None or client.expires <= self._dispatch.now():
            return self._refresh(client)
        return identity

    # ---- running operations

    def _run(
        self,
        message: Message,
        client: HostClient,
        base: Handle | None,
        request: ConnectRequest,
        operation: Operation,
        second: Handle | None = None,
    ) -> None:
        """Carry out a connect operation and answer. *second* is a further handle that the operation uses."""
        identity = self._identity(client)
        place = base or client.root
        assert isinstance(place, HostHandle)
        device = place.device
        now = self._dispatch.now()
        waits = device if device.blocking_until > now else self._crosses(request, now)
        if waits is None and isinstance(second, HostHandle) and second.device.blocking_until > now:
            waits = second.device
        if waits is not None:
            self.counters["threaded"] += 1
            self.manager.background(
                message,
                client,
                (self._root, base or self._root, second or self._root),
                lambda: self.switch.run(identity, operation, place, request),
                lambda result: self._finish(message, client, result),
                _discard,
                waits.lane,
            )
            return
        start = monotonic()
        try:
            result = self.switch.run(identity, operation, place, request)
        finally:
            device.took(monotonic() - start, now)
        if isinstance(result, bytes):
            message.reply(0, result)
        else:
            self._finish(message, client, result)

    def _at_risk(self, now: float) -> Mapping[bytes, int]:
        """Names of mount points that must not be touched inline; asked for once a turn."""
        if now != self._looked:
            self._looked = now
            self._ops.at_risk = self._mounts.look()
        return self._ops.at_risk

    def _crosses(self, request: ConnectRequest, now: float) -> Device | None:
        """The file system that may not answer and that the way seems to lead into."""
        names = self._at_risk(now)
        if names:
            for name in (*request.path.split(b"/"), *request.path2.split(b"/")):
                if name in names:
                    return self._devices.get(names[name])
        return None

    def _finish(self, message: Message, client: HostClient, result: Result) -> None:
        if isinstance(result, bytes):
            message.reply(0, result)
            return
        if isinstance(result, Special):
            self._special.open(message, client, result)
            return
        try:
            self.manager.check_room(client)
        except OSError:
            result.discard()
            raise
        node = 0 if result.node is None else self.manager.add(message, client, result.node)
        ocb = 0 if result.ocb is None else self.manager.add(message, client, result.ocb)
        if result.ocb is not None and result.ocb.directory:
            node = ocb
        message.reply(0, self._ops.entry(result.attr, node, ocb, result.data))

    def _io(
        self,
        message: Message,
        client: HostClient,
        handle: HostHandle,
        work: Callable[[], bytes],
        inline: bool = True,
        expected: float = 0.0,
    ) -> None:
        """Carry out an I/O operation as the client and answer with its bytes."""
        identity = self._identity(client)
        device = handle.device
        now = self._dispatch.now()
        if not inline or device.blocking_until > now:
            self.counters["threaded"] += 1
            self.manager.background(
                message, client, (handle,), lambda: self.switch.run(identity, work), lambda data: message.reply(0, data), lane=device.lane
            )
            return
        start = monotonic()
        try:
            data = self.switch.run(identity, work)
        finally:
            device.took(monotonic() - start, now, expected)
        message.reply(0, data)

    # ---- connect messages

    def _lookup(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        self._run(message, client, base, request, self._ops.lookup)

    def _open(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        self.manager.check_room(client)
        room = message.reply_len - ENTRY.size - ATTR.size
        if request.prefetch > room:
            request.prefetch = max(0, room)
        self._run(message, client, base, request, self._ops.open)

    def _mkdir(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        self.manager.check_room(client)
        self._run(message, client, base, request, self._ops.mkdir)

    def _unlink(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        self._run(message, client, base, request, self._ops.unlink)

    def _rmdir(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        self._run(message, client, base, request, self._ops.rmdir)

    def _mknod(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        self._run(message, client, base, request, self._ops.mknod)

    def _symlink(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        self._run(message, client, base, request, self._ops.symlink)

    def _readlink(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        self._run(message, client, base, request, self._ops.readlink)

    def _setattr_path(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        self._run(message, client, base, request, self._ops.setattr)

    def _access(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        self._run(message, client, base, request, self._ops.access)

    def _statfs_path(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        self._run(message, client, base, request, self._ops.statfs)

    def _rename(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        base2 = self._second(message, client, request)
        self._run(message, client, base, request, lambda place, asked: self._ops.rename(place, asked, base2), base2)

    def _link(self, message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        base2 = self._second(message, client, request)
        self._run(message, client, base, request, lambda place, asked: self._ops.link(place, asked, base2), base2)

    def _second(self, message: Message, client: HostClient, request: ConnectRequest) -> HostHandle:
        self._identity(client)
        if not request.handle2:
            assert client.root is not None
            return client.root
        handle = self.manager.table.find(client, request.handle2, message.channel is self.channel)
        if not isinstance(handle, HostHandle):
            raise OSError(errno.EBADF, "second base handle")
        return handle

    # ---- I/O messages

    def _read(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        if isinstance(handle, DeviceHandle):
            self._special.read(message, client, handle, flags)
            return
        offset, size = parse_read(message.data)
        assert isinstance(handle, HostHandle)
        if not handle.readable or handle.directory:
            raise OSError(errno.EISDIR if handle.directory else errno.EBADF, "not open for reading")
        size = min(size, message.reply_len, READ_MAX)
        if offset + size > OFFSET_MAX:
            raise OSError(errno.EINVAL, "offset")
        device = handle.device
        now = self._dispatch.now()
        if device.blocking_until <= now:
            if device.nowait:
                try:
                    data = read_now(handle.fd, size, offset)
                except OSError as error:
                    if error.errno != errno.EOPNOTSUPP:
                        raise
                    device.nowait = False
                else:
                    if data is not None:
                        message.reply(len(data), data)
                        return
                    self.counters["read_blocked"] += 1
            if not device.nowait and device.memory:
                # As the client: entries of /proc check who reads, not only who opened.
                identity = self._identity(client)
                start = monotonic()
                found = self.switch.run(identity, read_waiting, handle.fd, size, offset)
                device.took(monotonic() - start, now)
                message.reply(len(found), found)
                return
        identity = self._identity(client)
        self.counters["threaded"] += 1
        self.manager.background(
            message,
            client,
            (handle,),
            lambda: self.switch.run(identity, read_waiting, handle.fd, size, offset),
            lambda late: message.reply(len(late), late),
            lane=device.lane,
        )

    def _write(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        if isinstance(handle, DeviceHandle):
            self._special.write(message, client, handle, flags)
            return
        offset, size = parse_write(message.data)
        assert isinstance(handle, HostHandle)
        if not handle.writable:
            raise OSError(errno.EBADF, "not open for writing")
        if size > message.msglen - WRITE_HEAD:
            raise BadMessage("write has less data than it says")
        size = min(size, WRITE_MAX)
        append = handle.append or offset == OFFSET_APPEND
        if append:
            offset = 0
        if offset + size > OFFSET_MAX:
            raise OSError(errno.EFBIG, "offset")
        first = memoryview(message.data)[WRITE_HEAD : WRITE_HEAD + size]
        _Write(self, message, client, handle, offset, size, append).more(first)

    def _stat(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        assert isinstance(handle, HostHandle)
        if handle.device.blocking_until > self._dispatch.now():
            self._io(message, client, handle, lambda: self._ops.attr(os.fstat(handle.fd)))
        else:
            message.reply(0, self._ops.attr(os.fstat(handle.fd)))

    def _readdir(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        cookie, size = parse_readdir(message.data)
        assert isinstance(handle, HostHandle)
        size = min(size, message.reply_len, READDIR_MAX)
        self._at_risk(self._dispatch.now())
        self._io(message, client, handle, lambda: read_directory(self._ops, handle, cookie, size, flags), expected=size * READDIR_COST)

    def _setattr(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        assert isinstance(handle, HostHandle)
        wanted = SetAttr.parse(message.data, HEAD)
        self._io(
            message,
            client,
            handle,
            lambda: change(self._ops, handle.fd, handle.scope, wanted, handle.writable),
            inline=not wanted.valid & SET_SIZE or wanted.size == 0,
        )

    def _statfs(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        assert isinstance(handle, HostHandle)
        self._io(message, client, handle, lambda: pack_statfs(handle.fd))

    def _sync(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        assert isinstance(handle, HostHandle)
        call = os.fdatasync if flags & SYNC_DATA_ONLY else os.fsync

        def work() -> bytes:
            call(handle.fd)
            return b""

        self._io(message, client, handle, work, inline=False)

    def _space(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        mode, offset, length = parse_space(message.data)
        assert isinstance(handle, HostHandle)
        if not handle.writable:
            raise OSError(errno.EBADF, "not open for writing")
        if offset > OFFSET_MAX or length > OFFSET_MAX or mode > 0x7FFFFFFF:
            raise OSError(errno.EINVAL, "range")

        def work() -> bytes:
            fallocate(handle.fd, mode, offset, length)
            return b""

        self._io(message, client, handle, work, inline=False)


def _discard(result: Result) -> None:
    if not isinstance(result, bytes):
        result.discard()


class _Write:
    """A WRITE under way: each part is written as it arrives; what is beyond the first part is pulled. An append is gathered first.

    Runs as the client, because a write by anybody but root takes away set-uid bits, and for quotas and reserves.
    """

    __slots__ = (
        "_append",
        "_client",
        "_count",
        "_expected",
        "_fs",
        "_gathered",
        "_handle",
        "_identity",
        "_message",
        "_offset",
        "_pulling",
        "_size",
    )

    def __init__(self, fs: HostFs, message: Message, client: HostClient, handle: HostHandle, offset: int, size: int, append: bool) -> None:
        self._fs = fs
        self._message = message
        self._client = client
        self._handle = handle
        self._identity = fs._identity(client)
        self._offset = offset
        self._size = size
        self._count = 0
        self._append = append
        self._expected = 0
        self._gathered = bytearray()
        self._pulling = False

    def more(self, part: Buffer) -> None:
        """The next bytes are here."""
        if self._append and (self._gathered or len(part) < self._size):
            self._gathered += part
            if len(self._gathered) < self._size:
                self._pull(len(self._gathered))
                return
            part = self._gathered
        self._expected = len(part)
        fs = self._fs
        device = self._handle.device
        now = fs._dispatch.now()
        if device.blocking_until > now:
            fs.counters["threaded"] += 1
            # A client of this kernel that gives up may use its buffer again while the thread writes; what came from elsewhere is ours.
            data = bytes(part) if self._message.info.nd == ND_LOCAL else part
            fs.manager.background(
                self._message,
                self._client,
                (self._handle,),
                lambda: fs.switch.run(self._identity, self._put, data),
                self._written,
                lane=device.lane,
            )
            return
        start = monotonic()
        try:
            count = fs.switch.run(self._identity, self._put, part)
        finally:
            device.took(monotonic() - start, now)
        self._written(count)

    def _put(self, part: Buffer) -> int:
        """Write all of *part*; the bytes that went, fewer than all only if some went before the error. Any thread."""
        fd = self._handle.fd
        offset = self._offset + self._count
        count = 0
        view = memoryview(part)
        while count < len(part):
            try:
                if self._append:
                    count += os.pwritev(fd, (view[count:],), 0, os.RWF_APPEND)
                else:
                    count += os.pwrite(fd, view[count:] if count else view, offset + count)
            except OSError:
                if count or self._count:
                    break
                raise
        return count

    def _written(self, count: int) -> None:
        self._count += count
        if self._count >= self._size or count < self._expected:
            self._message.reply(self._count)
        else:
            self._pull(self._count)

    def _pull(self, at: int) -> None:
        self._pulling = True
        self._message.read(WRITE_HEAD + at, min(PULL, self._size - at), self._pulled)
        self._pulling = False

    def _pulled(self, count: int, part: Buffer) -> None:
        if self._pulling:
            # Answered from inside the call: not deeper and deeper.
            self._fs._dispatch.call_soon(lambda: self._next(count, part))
        else:
            self._next(count, part)

    def _next(self, count: int, part: Buffer) -> None:
        message = self._message
        if message.answered:
            return
        try:
            if count <= 0 or self._client.gone or self._handle.closed:
                if self._count:
                    message.reply(self._count)
                else:
                    message.error(-count if count < 0 else errno.EBADMSG if count == 0 else errno.EBADF)
            else:
                left = self._size - (len(self._gathered) or self._count)
                self.more(part if len(part) <= left else memoryview(part)[:left])
        except Exception as error:
            self._fs.manager.failed(message, error)
