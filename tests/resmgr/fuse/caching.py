"""A kernel that caches, for machines in virtual time: what Linux keeps of names, attributes, listings and pages, and when it drops it.

Operations are generators that yield requests and get answers, so that any number of programs run beside each other. Links between a machine
and the server delay each message for itself (so they overtake each other), hold them while they are cut, and fail them when they are down.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable, Generator, Sequence

import attrs

from resmgr.channel import ND_LOCAL, PID_SYSTEM, Connection, Credentials, Kernel
from resmgr.dispatch import Buffer, Dispatch
from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.machine import Machine
from resmgr.fuse.options import FuseOptions
from resmgr.iomsg import Target
from resmgr.testing.fuserig import PID, Answer

Asking = Generator[tuple[int, int, bytes], Answer, object]
SUSPECT = 1.0
DOWN = 3.0
Done = Callable[[int, Buffer], None]


class Link:
    """Carries messages both ways. *delay*: the most that one takes."""

    def __init__(self, dispatch: Dispatch, rng: random.Random, delay: float) -> None:
        self.dispatch = dispatch
        self.cut_at: float | None = None
        self.down = False
        self.connections: list[LateConnection] = []
        self.on_silence: Callable[[bool], None] = lambda silent: None
        self._rng = rng
        self._delay = delay
        self._held: list[Callable[[], None]] = []
        self._cuts = 0

    def carry(self, call: Callable[[], None]) -> None:
        self.dispatch.call_at(self.dispatch.now() + self._rng.uniform(0.0001, self._delay), lambda: self._arrive(call))

    def _arrive(self, call: Callable[[], None]) -> None:
        if self.cut_at is None:
            call()
        else:
            self._held.append(call)

    def cut(self) -> None:
        """Nothing goes through from now on; suspect after a second, down after three."""
        self._cuts += 1
        this = self._cuts
        now = self.cut_at = self.dispatch.now()

        def still(then: Callable[[], None]) -> Callable[[], None]:
            return lambda: then() if self._cuts == this and self.cut_at is not None else None

        self.dispatch.call_at(now + SUSPECT, still(lambda: self.on_silence(True)))
        self.dispatch.call_at(now + DOWN, still(self._go_down))

    def _go_down(self) -> None:
        self.down = True
        self._held.clear()
        connections, self.connections = self.connections, []
        for connection in connections:
            connection.die()

    def heal(self) -> None:
        if self.cut_at is None:
            return
        self.cut_at = None
        self.down = False
        self._cuts += 1
        self.on_silence(False)
        held, self._held = self._held, []
        for call in held:
            self.carry(call)


class _Pending:
    def __init__(self) -> None:
        self.unblocked = False

    def unblock(self) -> None:
        self.unblocked = True


class LateConnection:
    """What a machine uses of a `Connection`, over a link."""

    def __init__(self, link: Link, inner: Connection) -> None:
        self.link = link
        self.inner = inner
        self.closed = False
        self.on_death: Callable[[object], None] | None = None
        self.nd, self.pid, self.chid = inner.nd, inner.pid, inner.chid
        self.credentials = inner.credentials
        self._waiting: dict[int, Done] = {}
        self._next = 0
        link.connections.append(self)

    def submit(self, parts: Sequence[Buffer], reply_len: int, done: Done) -> _Pending | None:
        if self.closed or self.link.down:
            self.link.dispatch.call_soon(lambda: done(-errno.EHOSTDOWN, b""))
            return _Pending()
        number = self._next
        self._next += 1
        self._waiting[number] = done
        message = tuple(bytes(part) for part in parts)

        def back(status: int, reply: Buffer) -> None:
            data = bytes(reply)
            self.link.carry(lambda: self._answer(number, status, data))

        self.link.carry(lambda: None if self.inner.closed else _ignore(self.inner.submit(message, reply_len, back)))
        return _Pending()

    def _answer(self, number: int, status: int, reply: Buffer) -> None:
        done = self._waiting.pop(number, None)
        if done is not None:
            done(status, reply)

    def die(self) -> None:
        """The node is down, as this side sees it, and the other side, too."""
        if self.closed:
            return
        self.closed = True
        self.inner.close()
        waiting, self._waiting = self._waiting, {}
        for done in waiting.values():
            done(-errno.EHOSTDOWN, b"")
        if self.on_death is not None:
            self.on_death(self)

    def close(self) -> None:
        self.on_death = None
        self.closed = True
        self.inner.close()


def _ignore(value: object) -> None:
    pass


class LateResolver:
    """Connections over a link."""

    def __init__(self, kernel: Kernel, link: Link) -> None:
        self.kernel = kernel
        self.link = link

    def connection(self, target: Target, via: Connection | None, uid: int, gid: int) -> Connection:
        inner = self.kernel.connect(ND_LOCAL, target.pid, target.chid, Credentials(uid, gid, (), PID_SYSTEM))
        late = LateConnection(self.link, inner)

        def died(gone: Connection) -> None:
            # The server has ended: told as late as everything.
            self.link.carry(late.die)

        inner.on_death = died
        return late  # type: ignore[return-value]  # all that a machine uses of one


@attrs.define
class Cached:
    """Attributes, and how often they were said to be invalid."""

    fields: tuple[int, ...] = ()
    until: float = 0.0
    version: int = 0
    pages: bytes | None = None
    listing: list[bytes] | None = None
    listed_at: int = 0
    """mtime of the directory when its listing was read."""


class CachingKernel:
    """One client machine: its kernel's caches over `Machine`."""

    def __init__(self, kernel: Kernel, link: Link, root: Target, options: FuseOptions) -> None:
        self.dispatch = kernel.dispatch
        self.link = link
        self.machine = Machine(kernel.dispatch, LateResolver(kernel, link), root, options, b"/net")
        self.machine.on_output = self._collect
        link.on_silence = lambda silent: self.machine.leases.silent(0, silent)
        self.names: dict[tuple[int, bytes], tuple[int, float]] = {}
        self.nodes: dict[int, Cached] = {}
        self.asked = 0
        self._unique = 2
        self._waiting: dict[int, Callable[[Answer], None]] = {}

    # ---- requests

    def _collect(self) -> None:
        output, self.machine.output = list(self.machine.output), self.machine.output
        self.machine.output.clear()
        for item in output:
            answer = Answer(item)
            if answer.unique:
                self._waiting.pop(answer.unique)(answer)
            else:
                self._note(answer)

    def _note(self, note: Answer) -> None:
        if note.error == formats.NOTIFY_INVAL_INODE:
            nodeid, offset, _ = struct.unpack_from("=Qqq", note.body)
            node = self.node(nodeid)
            node.until = 0.0
            node.version += 1
            if offset >= 0:
                node.pages = None
        elif note.error == formats.NOTIFY_INVAL_ENTRY:
            parent, length, _ = struct.unpack_from("=QII", note.body)
            self.names.pop((parent, note.body[16 : 16 + length]), None)
        elif note.error == formats.NOTIFY_STORE:
            nodeid, _, size, _ = struct.unpack_from("=QQII", note.body)
            self.node(nodeid).pages = note.body[24 : 24 + size]

    def run(self, operation: Asking, done: Callable[[object], None]) -> None:
        """Carry out an operation; *done* gets what it returns, or the OSError that it raised."""

        def step(answer: Answer | None) -> None:
            try:
                opcode, node, body = next(operation) if answer is None else operation.send(answer)
            except StopIteration as end:
                done(end.value)
                return
            except OSError as error:
                done(error)
                return
            self.asked += 1
            unique = self._unique
            self._unique += 2
            self._waiting[unique] = step
            raw = formats.IN_HEADER.pack(40 + len(body), opcode, unique, node, 0, 0, PID, 0, 0) + body
            self.machine.receive(memoryview(bytearray(raw)), self.dispatch.now())
            self._collect()

        step(None)

    # ---- what is cached

    def node(self, nodeid: int) -> Cached:
        return self.nodes.setdefault(nodeid, Cached())

    def _learn(self, nodeid: int, fields: tuple[int, ...], valid: float, version: int) -> None:
        node = self.node(nodeid)
        if node.version != version:
            # Said to be invalid while the answer was on its way (attr_version).
            return
        if node.fields and (node.fields[1], node.fields[4], node.fields[7]) != (fields[1], fields[4], fields[7]):
            # Another size or mtime (AUTO_INVAL_DATA).
            node.pages = None
        node.fields = fields
        node.until = self.dispatch.now() + valid

    def _enter(self, parent: int, name: bytes, body: bytes, version: int | None) -> int:
        nodeid, _, entry_s, attr_s, entry_ns, attr_ns = struct.unpack_from("=QQQQII", body)
        self.names[parent, name] = (nodeid, self.dispatch.now() + entry_s + entry_ns / 1e9)
        if nodeid:
            self._learn(
                nodeid, formats.ENTRY_OUT.parse(body)[6:], attr_s + attr_ns / 1e9, self.node(nodeid).version if version is None else version
            )
        return int(nodeid)

    # ---- operations

    def _lookup(self, parent: int, name: bytes) -> Asking:
        known = self.names.get((parent, name))
        if known is not None and known[1] > self.dispatch.now():
            return known[0]
        version = None if known is None or not known[0] else self.node(known[0]).version
        answer = yield Opcode.LOOKUP, parent, name + b"\0"
        if answer.error:
            self.names.pop((parent, name), None)
            raise OSError(-answer.error, "lookup")
        nodeid = struct.unpack_from("=Q", answer.body)[0]
        return self._enter(parent, name, answer.body, version if known is not None and nodeid == known[0] else None)

    def _attributes(self, nodeid: int) -> Asking:
        node = self.node(nodeid)
        if node.until > self.dispatch.now():
            return node.fields
        version = node.version
        answer = yield Opcode.GETATTR, nodeid, bytes(16)
        if answer.error:
            raise OSError(-answer.error, "getattr")
        seconds, nanoseconds = struct.unpack_from("=QI", answer.body)
        self._learn(nodeid, answer.attr, seconds + nanoseconds / 1e9, version)
        return answer.attr

    def _retried(self, operation: Callable[[], Asking], parent: int, *names: bytes) -> Asking:
        """As the kernel does: after ESTALE once more, without believing the names."""
        try:
            return (yield from operation())
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        for name in names:
            self.names.pop((parent, name), None)
        return (yield from operation())

    def stat(self, directory: bytes, name: bytes) -> Asking:
        """(size, mtime seconds, nanoseconds), or None if it does not exist."""

        def look() -> Asking:
            parent = yield from self._lookup(1, directory)
            assert isinstance(parent, int)
            nodeid = yield from self._lookup(parent, name)
            assert isinstance(nodeid, int)
            if not nodeid:
                return None
            fields = yield from self._attributes(nodeid)
            assert isinstance(fields, tuple)
            return fields[1]

        return self._in(directory, name, look)

    def _in(self, directory: bytes, name: bytes, look: Callable[[], Asking]) -> Asking:
        try:
            return (yield from look())
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        self.names.clear()
        return (yield from look())

    def read(self, directory: bytes, name: bytes) -> Asking:
        """All of a file, or None if it does not exist."""

        def look() -> Asking:
            parent = yield from self._lookup(1, directory)
            assert isinstance(parent, int)
            nodeid = yield from self._lookup(parent, name)
            assert isinstance(nodeid, int)
            if not nodeid:
                return None
            answer = yield Opcode.OPEN, nodeid, formats.OPEN_IN.pack(os.O_RDONLY, 0)
            if answer.error:
                raise OSError(-answer.error, "open")
            fh, flags = answer.fh, answer.open_flags
            node = self.node(nodeid)
            if not flags & formats.FOPEN_KEEP_CACHE:
                node.pages = None
            try:
                fields = yield from self._attributes(nodeid)
                assert isinstance(fields, tuple)
                direct = flags & formats.FOPEN_DIRECT_IO
                if node.pages is None or direct or len(node.pages) < fields[1]:
                    answer = yield Opcode.READ, nodeid, formats.READ_IN.pack(fh, 0, 65536, 0, 0, 0)
                    if answer.error:
                        raise OSError(-answer.error, "read")
                    data = answer.body
                    if not direct:
                        node.pages = data
                else:
                    data = node.pages[: fields[1]]
            except OSError:
                yield Opcode.RELEASE, nodeid, formats.RELEASE_IN.pack(fh, 0, 0, 0)
                raise
            yield Opcode.RELEASE, nodeid, formats.RELEASE_IN.pack(fh, 0, 0, 0)
            return data

        return self._in(directory, name, look)

    def write(self, directory: bytes, name: bytes, data: bytes) -> Asking:
        """Make or truncate a file and write it; done when close is."""

        def look() -> Asking:
            parent = yield from self._lookup(1, directory)
            assert isinstance(parent, int)
            nodeid = yield from self._lookup(parent, name)
            assert isinstance(nodeid, int)
            if nodeid:
                answer = yield Opcode.OPEN, nodeid, formats.OPEN_IN.pack(os.O_WRONLY | os.O_TRUNC, 0)
                if answer.error:
                    raise OSError(-answer.error, "open")
                fh = answer.fh
            else:
                body = formats.CREATE_IN.pack(os.O_WRONLY | os.O_CREAT, 0o644, 0, 0) + name + b"\0"
                answer = yield Opcode.CREATE, parent, body
                if answer.error:
                    raise OSError(-answer.error, "create")
                nodeid = self._enter(parent, name, answer.body, None)
                self.node(parent).until = 0.0
                fh = struct.unpack_from("=Q", answer.body, formats.ENTRY_OUT.size)[0]
            node = self.node(nodeid)
            node.pages = None
            node.until = 0.0
            node.version += 1
            answer = yield Opcode.WRITE, nodeid, formats.WRITE_IN.pack(fh, 0, len(data), 0, 0, 0) + data
            node.until = 0.0
            node.version += 1
            code = answer.error
            answer = yield Opcode.FLUSH, nodeid, formats.FLUSH_IN.pack(fh, 0)
            code = code or answer.error
            yield Opcode.RELEASE, nodeid, formats.RELEASE_IN.pack(fh, 0, 0, 0)
            if code:
                raise OSError(-code, "write")
            return data

        return self._in(directory, name, look)

    def unlink(self, directory: bytes, name: bytes) -> Asking:
        parent = yield from self._lookup(1, directory)
        assert isinstance(parent, int)
        answer = yield Opcode.UNLINK, parent, name + b"\0"
        self.names.pop((parent, name), None)
        self.node(parent).until = 0.0
        if answer.error:
            raise OSError(-answer.error, "unlink")
        return None

    def rename(self, directory: bytes, old: bytes, new: bytes) -> Asking:
        parent = yield from self._lookup(1, directory)
        assert isinstance(parent, int)
        nodeid = yield from self._lookup(parent, old)
        if not nodeid:
            raise OSError(errno.ENOENT, "rename")
        answer = yield Opcode.RENAME2, parent, formats.RENAME2_IN.pack(parent, 0) + old + b"\0" + new + b"\0"
        self.node(parent).until = 0.0
        if answer.error:
            self.names.pop((parent, old), None)
            raise OSError(-answer.error, "rename")
        moved = self.names.pop((parent, old), None)
        self.names.pop((parent, new), None)
        if moved is not None:
            # The dentry moves, and what was believed of it with it.
            self.names[parent, new] = moved
        return None

    def listdir(self, directory: bytes, keep: list[tuple[int, int]] | None = None) -> Asking:
        """The names in a directory, which stays open if there is a list to *keep* it in, for `closedir`."""

        def look() -> Asking:
            nodeid = yield from self._lookup(1, directory)
            assert isinstance(nodeid, int)
            answer = yield Opcode.OPENDIR, nodeid, formats.OPEN_IN.pack(0, 0)
            if answer.error:
                raise OSError(-answer.error, "opendir")
            fh, flags = answer.fh, answer.open_flags
            node = self.node(nodeid)
            if not flags & formats.FOPEN_KEEP_CACHE:
                node.listing = None
            fields = yield from self._attributes(nodeid)
            assert isinstance(fields, tuple)
            mtime = fields[4] * 10**9 + fields[7]
            names: list[bytes] = []
            try:
                position = 0
                kept = flags & formats.FOPEN_CACHE_DIR and node.listing is not None and node.listed_at == mtime
                if kept and node.listing is not None:
                    names = list(node.listing)
                while not kept:
                    answer = yield Opcode.READDIRPLUS, nodeid, formats.READ_IN.pack(fh, position, 4096, 0, 0, 0)
                    if answer.error:
                        raise OSError(-answer.error, "readdir")
                    if not answer.body:
                        break
                    offset = 0
                    while offset < len(answer.body):
                        entry = answer.body[offset : offset + 128]
                        _, position, length, _ = struct.unpack_from("=QQII", answer.body, offset + 128)
                        name = answer.body[offset + 152 : offset + 152 + length]
                        offset += 152 + (length + 7 & ~7)
                        if struct.unpack_from("=Q", entry)[0]:
                            self._enter(nodeid, name, entry, None)
                        if name not in (b".", b".."):
                            names.append(name)
                if flags & formats.FOPEN_CACHE_DIR:
                    node.listing, node.listed_at = list(names), mtime
            except OSError:
                yield Opcode.RELEASEDIR, nodeid, formats.RELEASE_IN.pack(fh, 0, 0, 0)
                raise
            if keep is None:
                yield from self.closedir(nodeid, fh)
            else:
                keep.append((nodeid, fh))
            return sorted(names)

        return self._in(directory, b"", look)

    def closedir(self, nodeid: int, fh: int) -> Asking:
        yield Opcode.RELEASEDIR, nodeid, formats.RELEASE_IN.pack(fh, 0, 0, 0)
        return None
