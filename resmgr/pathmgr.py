"""The path manager: the server behind (PID_SYSTEM, CHID_PATHMGR), which knows who serves which name of this node.

A client sends its connect messages here first, relative to base handle 0, the root of this node's pathname space. QNX's path manager
answers which servers to ask, and the client asks them; that is one round trip more than another node can afford. So when the server of
the name is in this kernel, the message is *handed on* to it by a plain call, with the path cut to what lies below its prefix, and the
server's own reply goes to the client: it names the server (`Entry.target`) for whatever follows. A server in another process or on
another node is told to the client as a redirect.

A directory above an attached prefix (`/`, `/dev` while something is at `/dev/name/local`) belongs to the path manager: its listing is the
attached names and what the server below has there; a name that is attached hides the server's. Its attributes are those of the server's
directory, or made up where the server has none.

Several servers at one prefix are tried in order until one does not say ENOENT; one in another process is asked whether it has the name,
before the client is sent there. Only the directory at the prefix itself is listed as their
union; what is below belongs to the first server that has it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from hashlib import blake2b
from stat import S_IFDIR
from typing import Final

import attrs

from resmgr.channel import (
    CHID_PATHMGR,
    ND_LOCAL,
    PID_SYSTEM,
    PULSE_DISCONNECT,
    Channel,
    ClientInfo,
    Connection,
    Kernel,
    Message,
    Pending,
    Pulse,
)
from resmgr.errors import BadMessage
from resmgr.handlelist import pack_close
from resmgr.iofunc.handle import Handle
from resmgr.iofunc.handletable import HANDLE_BITS
from resmgr.iofunc.manager import Manager
from resmgr.iomsg import (
    ATTR,
    DIRENT,
    PATH_MAX,
    READDIR_ATTRS,
    REQUEST,
    STATUS_REDIRECT,
    Attr,
    Connect,
    DirEntry,
    Entry,
    Io,
    StatFs,
    Target,
    pack_dirent,
    parse_dirents,
)
from resmgr.iorequest import ConnectRequest, pack_readdir, parse_readdir
from resmgr.mergeddir import OWN, MergedDirectory, Part, PathClient, Way, ask, let_go
from resmgr.pathspace import Attach, Attached, PathSpace

_MADE_MODE: Final = S_IFDIR | 0o755
_NO_FILES = StatFs(0, 0, 0, 0, 0, 4096, 255, 4096).pack()
_ENTRY_REPLY: Final = 256 + PATH_MAX
SHOWN_MAX: Final = 65536
"""Names of one listing that are remembered so that no other server of the union tells them again."""
_MAKING: Final = frozenset((Connect.MKDIR, Connect.MKNOD, Connect.SYMLINK))


def _makes(request: ConnectRequest) -> bool:
    """Whether it may make the name: then the first server has it."""
    return request.subtype in _MAKING or (request.subtype == Connect.OPEN and bool(request.flags & os.O_CREAT))


def _union(servers: list[tuple[Attached, bytes]]) -> bool:
    """Whether several serve this name as a directory."""
    return len(servers) > 1 and any(not rest for _, rest in servers) and not any(one.flags & Attach.EXACT for one, _ in servers)


def _leave(kernel: Kernel, way: Way) -> None:
    """What was opened on the way, or asked, is over."""
    if isinstance(way, Connection):
        kernel.own_dispatch.call_soon(way.close)


class PathManager:
    """Owns the pathname space of a node. `attach` and `detach` are its interface to managers; clients talk to its channel.

    `transit` says which clients of other nodes may pass through this node's TRANSIT prefixes (`/net`) to third nodes; for others these
    do not exist. What they are told is a redirect that their own node checks (docs/protocol/iomsg.md).
    """

    def __init__(self, kernel: Kernel) -> None:
        self.space = PathSpace()
        self.transit: Callable[[ClientInfo], bool] = lambda info: False
        self.admit: Callable[[ClientInfo, int, int], ClientInfo | int] = lambda info, pid, chid: errno.EACCES
        """Who a client of another node is for a manager in a process; an errno: it must not reach it."""
        self._kernel = kernel
        self._left: dict[Channel, None] = {}
        """Servers that are attached no more and may still serve what they lent."""
        forward = dict.fromkeys(Connect, self._forward)
        forward[Connect.LOOKUP] = self._look
        forward[Connect.OPEN] = self._look
        self.manager = Manager(
            kernel,
            name="pathmgr",
            make_client=PathClient,
            connect=forward,
            io={
                Io.STAT: self._stat,
                Io.READDIR: self._readdir,
                Io.STATFS: self._statfs,
                Io.SYNC: self._sync,
            },
            pid=PID_SYSTEM,
            chid=CHID_PATHMGR,
            foreign=True,
        )
        self.channel = self.manager.channel
        self.channel.on_pulse = self._pulse
        self.target = Target(0, PID_SYSTEM, CHID_PATHMGR)
        self.counters = self.manager.counters
        self.counters.update({"handed_on": 0, "redirected": 0, "nobody": 0})

    def attach(self, path: bytes, target: Target, flags: Attach = Attach.DEFAULT) -> Attached:
        """*target* serves *path* from now on. An absolute path or one without the leading slash."""
        return self.space.attach(path, target, flags)

    def detach(self, attached: Attached) -> bool:
        channel = self._here(attached.target)
        if channel is not None:
            # What it has lent is still there.
            self._left = self._still_there()
            self._left[channel] = None
        return self.space.detach(attached)

    def _still_there(self) -> dict[Channel, None]:
        return {left: None for left in self._left if self._kernel.find_channel(left.pid, left.chid) is left}

    def destroy(self) -> None:
        self.manager.destroy()

    # ---- finding the server

    def _hidden(self, info: ClientInfo) -> Attach:
        if info.nd == ND_LOCAL:
            return Attach.DEFAULT
        return Attach.LOCAL if self.transit(info) else Attach.LOCAL | Attach.TRANSIT

    def _full(self, base: Handle | None, path: bytes) -> bytes:
        if base is None:
            return path
        assert isinstance(base, MergedDirectory)
        if not base.path or not path:
            return base.path or path
        full = base.path + b"/" + path
        if len(full) > PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, "path too long")
        return full

    def _own(self, request: ConnectRequest, base: Handle | None) -> bytes:
        """The full path of a request with one name; EBADF if its handle is not ours."""
        if request.handle and base is None:
            raise OSError(errno.EBADF, "base handle")
        return self._full(base, request.path)

    def _here(self, target: Target) -> Channel | None:
        return self._kernel.find_channel(target.pid, target.chid) if target.nd == ND_LOCAL else None

    def _hand_on(self, message: Message, channel: Channel, request: ConnectRequest) -> None:
        """The server answers the client itself. The message stays this channel's, which is how the server knows that the handle is lent."""
        self.counters["handed_on"] += 1
        message.data = request.pack()
        channel.handler(message)

    def _redirect(self, message: Message, target: Target, rest: bytes) -> None:
        self.counters["redirected"] += 1
        message.reply(STATUS_REDIRECT, Entry(target, 0, 0, None, rest=rest).pack())

    def _forward(self, message: Message, client: PathClient, request: ConnectRequest, base: Handle | None) -> None:
        """Any connect message: give it to whoever serves the name."""
        hidden = self._hidden(message.info)
        kind = request.subtype
        if kind in (Connect.RENAME, Connect.LINK):
            path = request.path if request.handle and base is None else self._full(base, request.path)
            self._two_names(message, client, request, path, hidden)
            return
        path = self._own(request, base)
        covered = self.space.below(path) is not None
        if covered:
            if kind in (Connect.MKDIR, Connect.MKNOD, Connect.SYMLINK):
                raise FileExistsError(errno.EEXIST, "a directory of the path manager")
            if kind in (Connect.UNLINK, Connect.RMDIR, Connect.REMOVE):
                raise OSError(errno.EBUSY, "something is attached below")
        servers = self.space.resolve(path, hidden)
        if covered:
            shown = self.space.below(path, hidden) is not None
            self._attempt(message, servers, request, 0, lambda: self._made_answer(message, kind if shown else 0))
            return
        self._give(message, request, servers)

    @staticmethod
    def _made_answer(message: Message, kind: int) -> None:
        """The answer about a directory that no server has."""
        if kind == 0:
            message.error(errno.ENOENT)
        elif kind == Connect.ACCESS:
            message.reply(0)
        elif kind == Connect.STATFS:
            message.reply(0, _NO_FILES)
        else:
            message.error(errno.EINVAL if kind == Connect.READLINK else errno.EPERM)

    def _give(self, message: Message, request: ConnectRequest, servers: list[tuple[Attached, bytes]]) -> None:
        if not servers:
            self.counters["nobody"] += 1
            raise FileNotFoundError(errno.ENOENT, "nobody serves this name")
        if len(servers) > 1:
            self._attempt(message, servers, request, 0, lambda: message.error(errno.ENOENT))
            return
        attached, rest = servers[0]
        channel = self._here(attached.target)
        if channel is None:
            self._redirect(message, attached.target, rest)
            return
        if request.handle == 0 and request.path == rest:
            # A server of the root: the message can stay as it is.
            self.counters["handed_on"] += 1
            channel.handler(message)
            return
        request.handle = 0
        request.path = rest
        self._hand_on(message, channel, request)

    def _attempt(
        self,
        message: Message,
        servers: list[tuple[Attached, bytes]],
        request: ConnectRequest,
        index: int,
        nobody: Callable[[], None],
    ) -> None:
        """Ask the servers of a union one after another until one does not say ENOENT; *nobody* answers when all do."""
        while index < len(servers):
            attached, rest = servers[index]
            channel = self._here(attached.target)
            index += 1
            following = index
            if channel is None:
                if following < len(servers) and attached.target.nd == ND_LOCAL and not _makes(request):
                    self._probe(message, attached.target, rest, lambda: self._attempt(message, servers, request, following, nobody))  # noqa: B023
                else:
                    self._redirect(message, attached.target, rest)
                return
            request.handle = 0
            request.path = rest

            def done(status: int, reply: bytes) -> None:
                if status == -errno.ENOENT:
                    self._go_on(message, lambda: self._attempt(message, servers, request, following, nobody))  # noqa: B023
                elif status < 0:
                    message.error(-status)
                else:
                    message.reply(status, reply)

            self._guard(message, ask(self._kernel, channel, message.info, request.pack(), message.reply_len, done))
            return
        nobody()

    def _go_on(self, message: Message, call: Callable[[], None]) -> None:
        """Later: *call* may raise what a handler may."""
        try:
            call()
        except Exception as error:
            self.manager.failed(message, error)

    def _way(self, info: ClientInfo, target: Target) -> Way | None:
        """How to ask a server in a client's name; None: it is on another node, or in a process and not for this client."""
        channel = self._here(target)
        if channel is not None or target.nd != ND_LOCAL:
            return channel
        who: ClientInfo | int = info if info.nd == ND_LOCAL else self.admit(info, target.pid, target.chid)
        if isinstance(who, int):
            return None
        connection = self._kernel.connect(ND_LOCAL, target.pid, target.chid, who.credentials)
        connection.info = attrs.evolve(who, scoid=connection.coid)
        return connection

    def _probe(self, message: Message, target: Target, rest: bytes, otherwise: Callable[[], None]) -> None:
        """Send the client to a server in another process if that has the name, else do *otherwise*."""
        way = self._way(message.info, target)
        if way is None:
            otherwise()
            return

        def done(status: int, reply: bytes) -> None:
            _leave(self._kernel, way)
            if message.answered:
                return
            if status == -errno.ENOENT:
                self._go_on(message, otherwise)
            elif status == -errno.EINTR:
                message.error(errno.EINTR)
            else:
                self._go_on(message, lambda: self._redirect(message, target, rest))

        asked = ConnectRequest(Connect.LOOKUP, 0, 0, rest)
        self._guard(message, ask(self._kernel, way, message.info, asked.pack(), _ENTRY_REPLY, done))

    @staticmethod
    def _guard(message: Message, asked: Pending | None) -> None:
        """An unblock of the client reaches the server that works for it."""
        if asked is not None and not message.answered:
            message.on_unblock = asked.unblock

    def _two_names(self, message: Message, client: PathClient, request: ConnectRequest, path: bytes, hidden: Attach) -> None:
        """RENAME and LINK: both names must be the same server's. A base handle that is not ours is that server's own and stays as it is."""
        first: tuple[Target, int, bytes] | None = None
        second: tuple[Target, int, bytes] | None = None
        for own, handle, name in ((True, request.handle, path), (False, request.handle2, request.path2)):
            chid = handle >> HANDLE_BITS
            if handle and chid != CHID_PATHMGR:
                found = (Target(0, PID_SYSTEM, chid), handle, name)
            else:
                if not own and handle:
                    base = self.manager.table.find(client, handle, True)
                    if base is None:
                        raise OSError(errno.EBADF, "second base handle")
                    name = self._full(base, name)
                if self.space.below(name) is not None:
                    raise OSError(errno.EBUSY, "something is attached below")
                servers = self.space.resolve(name, hidden)
                if not servers:
                    raise FileNotFoundError(errno.ENOENT, "nobody serves this name")
                attached, rest = servers[0]
                found = (attached.target, 0, rest)
            if own:
                first = found
            else:
                second = found
        assert first is not None
        assert second is not None
        channel = self._here(first[0])
        if not first[0].same(second[0]) or channel is None:
            raise OSError(errno.EXDEV, "names of two servers")
        request.handle, request.path = first[1:]
        request.handle2, request.path2 = second[1:]
        self._hand_on(message, channel, request)

    # ---- merged directories

    def _look(self, message: Message, client: PathClient, request: ConnectRequest, base: Handle | None) -> None:
        """LOOKUP and OPEN: as any other message, unless the name is a directory of ours."""
        hidden = self._hidden(message.info)
        path = self._own(request, base)
        servers = self.space.resolve(path, hidden)
        covered = self.space.below(path)
        opening = request.subtype == Connect.OPEN
        changes = opening and request.flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC)
        if covered is None and (changes or not _union(servers)):
            self._give(message, request, servers)
            return
        names = self.space.below(path, hidden) or []
        if opening:
            if request.flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL:
                raise FileExistsError(errno.EEXIST, "exists")
            if request.flags & os.O_ACCMODE != os.O_RDONLY or request.flags & os.O_TRUNC:
                raise IsADirectoryError(errno.EISDIR, "is a directory")
        self.manager.check_room(client)
        subtype = Connect.OPEN if opening else Connect.LOOKUP
        flags = os.O_RDONLY | os.O_DIRECTORY if opening else 0
        found: list[tuple[Part, Attr]] = []
        refused: list[int] = []
        left = list(servers)

        def following() -> None:
            if not left:
                finish()
                return
            attached, rest = left.pop(0)
            way = self._way(message.info, attached.target)
            if way is None:
                following()
                return
            asked = ConnectRequest(subtype, flags, 0, rest)

            def done(status: int, reply: bytes) -> None:
                if status == 0:
                    entry = Entry.parse(reply)
                    number = entry.ocb if opening else entry.handle
                    if entry.attr is not None and number:
                        found.append((Part(way, number), entry.attr))
                    elif not found and not covered:
                        # No directory: then it is what the first that has the name says it is.
                        _leave(self._kernel, way)
                        self._give(message, request, servers)
                        return
                elif status == -errno.ENOTDIR and not found and not covered:
                    _leave(self._kernel, way)
                    self._give(message, request, servers)
                    return
                elif status < 0 and -status not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    refused.append(-status)
                if status:
                    _leave(self._kernel, way)
                following()

            self._guard(message, ask(self._kernel, way, message.info, asked.pack(), _ENTRY_REPLY, done))

        def finish() -> None:
            parts = [part for part, _ in found]
            if not found and not refused and not names:
                refused.append(errno.ENOENT)
            if message.answered or client.gone or (refused and not found):
                for part in parts:
                    let_go(self._kernel, part, message.info)
                if not message.answered:
                    message.error(refused[0] if refused else errno.EBADF)
                return
            attr = found[0][1] if found else self._made(path)
            handle = MergedDirectory(
                self._kernel, message.info, path, names, self.space.attached_below(path).union(names), attr, parts, opening
            )
            number = self.manager.add(message, client, handle)
            entry = Entry(self.target, 0 if opening else number, number if opening else 0, attr)
            message.reply(0, entry.pack())

        following()

    def _made(self, path: bytes) -> Attr:
        """Attributes of a directory that no server has: it exists because something is attached below."""
        when = int(self._kernel.dispatch.wall()) * 1_000_000_000
        ino = int.from_bytes(blake2b(path, digest_size=8).digest(), "big") >> 1 or 1
        return Attr(ino, _MADE_MODE, 2, 0, 0, 0, 0, 0, 4096, when, when, when, 0)

    # ---- I/O messages on merged directories

    def _stat(self, message: Message, client: PathClient, handle: Handle, flags: int) -> None:
        assert isinstance(handle, MergedDirectory)
        if not handle.parts:
            message.reply(0, handle.attr.pack())
            return
        self._pass(message, handle, REQUEST.pack(Io.STAT, 0, 0, handle.parts[0].number))

    def _statfs(self, message: Message, client: PathClient, handle: Handle, flags: int) -> None:
        assert isinstance(handle, MergedDirectory)
        if not handle.parts:
            message.reply(0, _NO_FILES)
            return
        self._pass(message, handle, REQUEST.pack(Io.STATFS, 0, 0, handle.parts[0].number))

    def _sync(self, message: Message, client: PathClient, handle: Handle, flags: int) -> None:
        message.reply(0)

    def _pass(self, message: Message, handle: MergedDirectory, data: bytes) -> None:
        def done(status: int, reply: bytes) -> None:
            if status < 0:
                message.error(-status)
            else:
                message.reply(status, reply)

        self._guard(message, ask(self._kernel, handle.parts[0].way, handle.info, data, message.reply_len, done))

    def _readdir(self, message: Message, client: PathClient, handle: Handle, flags: int) -> None:
        """Own names first (cookies 1, 2, ...), then each server's entries, without those that an own name hides."""
        assert isinstance(handle, MergedDirectory)
        if not handle.opened:
            raise OSError(errno.EBADF, "not open")
        cookie, size = parse_readdir(message.data)
        size = min(size, message.reply_len)
        whose, theirs = handle.place(cookie)
        self._continue(message, handle, whose, theirs, size, flags)

    def _continue(self, message: Message, handle: MergedDirectory, whose: int, theirs: int, size: int, flags: int) -> None:
        if whose == 0:
            out = self._own_entries(handle, theirs, size, flags)
            if out or not handle.parts:
                message.reply(0, b"".join(out))
                return
            whose, theirs = 1, 0
        part = handle.parts[whose - 1]

        def done(status: int, reply: bytes) -> None:
            if status < 0:
                message.error(-status)
                return
            try:
                entries = parse_dirents(reply, bool(flags & READDIR_ATTRS))
            except BadMessage as error:
                self.manager.failed(message, error)
                return
            if not entries:
                if whose < len(handle.parts):
                    self._continue(message, handle, whose + 1, 0, size, flags)
                else:
                    message.reply(0)
                return
            last = entries[-1].cookie
            shown: list[bytes] = []
            for entry in entries:
                if entry.name in handle.covered or (whose > 1 and self._seen(handle, whose, entry.name)):
                    continue
                if isinstance(part.way, Connection) and len(handle.shown) < SHOWN_MAX:
                    handle.shown.add(entry.name)
                entry.cookie = handle.cookie(whose, entry.cookie)
                shown.append(pack_dirent(entry))
            if shown:
                message.reply(0, b"".join(shown))
            else:
                self._continue(message, handle, whose, last, size, flags)

        data = pack_readdir(part.number, theirs, size, flags & READDIR_ATTRS)
        self._guard(message, ask(self._kernel, part.way, handle.info, data, size, done))

    def _seen(self, handle: MergedDirectory, whose: int, name: bytes) -> bool:
        """Whether an earlier server of a union has *name*, as far as it answers at once."""
        if name in handle.shown:
            return True
        path = handle.path + b"/" + name if handle.path else name
        answers: list[int] = []
        for attached, rest in self.space.resolve(path, self._hidden(handle.info))[: whose - 1]:
            channel = self._here(attached.target)
            if channel is None:
                continue

            def done(status: int, reply: bytes, channel: Channel = channel) -> None:
                answers.append(status)
                if status == 0:
                    entry = Entry.parse(reply)
                    if entry.handle:
                        ask(self._kernel, channel, handle.info, pack_close(entry.handle), 0, lambda status, reply: None)

            ask(self._kernel, channel, handle.info, ConnectRequest(Connect.LOOKUP, 0, 0, rest).pack(), _ENTRY_REPLY, done)
        return 0 in answers

    def _own_entries(self, handle: MergedDirectory, first: int, size: int, flags: int) -> list[bytes]:
        out: list[bytes] = []
        attrs = flags & READDIR_ATTRS
        fixed = DIRENT.size + (ATTR.size if attrs else 0)
        for index in range(first, len(handle.names)):
            name = handle.names[index]
            size -= fixed + len(name)
            if size < 0:
                if not out:
                    raise OSError(errno.EINVAL, "no room for one entry")
                break
            path = handle.path + b"/" + name if handle.path else name
            attr = self._made(path)
            exact = any(attached.flags & Attach.EXACT for attached, _ in self.space.resolve(path))
            # What it is, its server knows: no attributes that a client could take for true.
            blank = Attr(attr.ino, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) if attrs else None
            out.append(pack_dirent(DirEntry(name, attr.ino, OWN | index + 1, 0 if exact else S_IFDIR, blank)))
        return out

    # ---- life

    def _pulse(self, pulse: Pulse) -> None:
        """A client's connection is gone: its merged directories, and the handles that servers lent to it, go too."""
        if pulse.code != PULSE_DISCONNECT:
            return
        self.counters["reaped"] += self.manager.table.reap(pulse.info.scoid)
        told: set[Channel] = set()
        self._left = self._still_there()
        for channel in (*(self._here(attached.target) for attached in self.space.attachments()), *self._left):
            if channel is not None and channel not in told and channel.on_pulse is not None:
                told.add(channel)
                channel.on_pulse(pulse)
