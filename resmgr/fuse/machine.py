"""The table of operations, and the entry point for what was read from /dev/fuse: bytes in, messages to servers, bytes out.

Nothing that the kernel sends leaves `receive` as an exception: what does not parse is answered EIO and counted, unless no answer is
expected. Operations that are not in the table are answered ENOSYS; for most of them the kernel remembers that and never asks again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Final

import attrs

from resmgr.dispatch import Dispatch
from resmgr.errors import BadMessage, ResmgrError, errno_of
from resmgr.fuse import attributes, directory, files, formats, ioctl, locking, names, owned, polling, ranges, writing, xattr
from resmgr.fuse.core import Core
from resmgr.fuse.formats import BODY, MAJOR, MINOR_MAX, MINOR_MIN, Init, Opcode
from resmgr.fuse.openfile import File
from resmgr.fuse.options import WHOLE, FuseOptions, Part
from resmgr.fuse.reopen import OF_LOCKS
from resmgr.fuse.request import Request, told
from resmgr.fuse.servers import Resolver
from resmgr.fuse.traits import AFTER_REMOVALS, AFTER_WRITES, NOT_WAITED_FOR, ON_OPEN, TELLS_ERRORS, XATTRS
from resmgr.fuse.usergroups import UserGroups
from resmgr.iomsg import Target
from resmgr.users import LookingUp

Handler = Callable[[Core, Request, memoryview], None]

WANTED = (
    Init.ASYNC_READ
    | Init.POSIX_LOCKS
    | Init.FLOCK_LOCKS
    | Init.ATOMIC_O_TRUNC
    | Init.BIG_WRITES
    | Init.AUTO_INVAL_DATA
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS
    | Init.DONT_MASK
    | Init.HANDLE_KILLPRIV
    | Init.HANDLE_KILLPRIV_V2
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    | Init.INIT_EXT
    | Init.DIRECT_IO_ALLOW_MMAP
)
"""What is asked for, if the kernel offers it."""
PAGE: Final = 4096
_GETXATTR: Final = int(Opcode.GETXATTR)
_WRITE: Final = int(Opcode.WRITE)
_FORGET: Final = int(Opcode.FORGET)
_BATCH_FORGET: Final = int(Opcode.BATCH_FORGET)

OPERATIONS: dict[int, Handler] = {
    Opcode.LOOKUP: names.lookup,
    Opcode.GETATTR: attributes.getattr_,
    Opcode.SETATTR: attributes.setattr_,
    Opcode.READLINK: names.readlink,
    Opcode.SYMLINK: names.symlink,
    Opcode.MKNOD: names.mknod,
    Opcode.MKDIR: names.mkdir,
    Opcode.UNLINK: names.unlink,
    Opcode.RMDIR: names.rmdir,
    Opcode.RENAME: names.rename,
    Opcode.RENAME2: names.rename2,
    Opcode.LINK: names.link,
    Opcode.OPEN: files.open_,
    Opcode.READ: files.read,
    Opcode.WRITE: writing.write,
    Opcode.STATFS: attributes.statfs,
    Opcode.RELEASE: files.release,
    Opcode.FSYNC: files.fsync,
    Opcode.FLUSH: files.flush,
    Opcode.OPENDIR: directory.opendir,
    Opcode.READDIR: directory.readdir,
    Opcode.READDIRPLUS: directory.readdirplus,
    Opcode.RELEASEDIR: directory.releasedir,
    Opcode.FSYNCDIR: directory.fsyncdir,
    Opcode.GETLK: locking.getlk,
    Opcode.SETLK: locking.setlk,
    Opcode.SETLKW: locking.setlkw,
    Opcode.POLL: polling.poll,
    Opcode.IOCTL: ioctl.ioctl,
    Opcode.ACCESS: attributes.access,
    Opcode.CREATE: files.create,
    Opcode.FALLOCATE: ranges.fallocate,
    Opcode.LSEEK: ranges.lseek,
    Opcode.COPY_FILE_RANGE: ranges.copy_file_range,
    Opcode.TMPFILE: files.tmpfile,
    Opcode.STATX: attributes.statx,
    Opcode.GETXATTR: xattr.getxattr,
    Opcode.LISTXATTR: xattr.listxattr,
    Opcode.SETXATTR: xattr.setxattr,
    Opcode.REMOVEXATTR: xattr.removexattr,
}


@attrs.frozen
class FuseStatistics:
    """Counters since the mount. `requests` by operation, `errors` by operation and errno, `events` what did not go the straight way."""

    minor: int
    nodes: int
    handles: int
    open_files: int
    outstanding: int
    requests: dict[str, int]
    errors: dict[str, int]
    events: dict[str, int]


class Machine(Core):
    """Turns kernel requests into messages. `receive` takes one request; answers are in `output`, also those that come later (`on_output`).

    *root* is the manager that is mounted, its handle 0 the root directory, or what *part* says. *mountpoint* is only used to show absolute
    links of other nodes. *groups*: whose users' requests wait until it knows them.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        resolver: Resolver,
        root: Target,
        options: FuseOptions | None = None,
        mountpoint: bytes = b"",
        part: Part = WHOLE,
        *,
        groups: UserGroups | None = None,
    ) -> None:
        self._groups = groups
        self._operations = OPERATIONS
        super().__init__(dispatch, resolver, root, FuseOptions() if options is None else options, mountpoint, part)
        if not self.options.xattr:
            self._operations = {opcode: handler for opcode, handler in OPERATIONS.items() if opcode not in XATTRS}
        self.on_end: Callable[[str], None] = lambda reason: None
        """Called when the kernel says that it is over (DESTROY), or speaks a version that is not ours."""

    def receive(self, request: memoryview, now: float) -> None:
        """One request as read from /dev/fuse. Its bytes are only used until this returns, except by those who called `borrow`."""
        self.receiving = True
        try:
            length, opcode, unique, nodeid, uid, gid, pid, _, _ = formats.IN_HEADER.parse(request)
            if length != len(request):
                raise BadMessage("request has another length than it says")
            self.requests[opcode] += 1
            handler = self._operations.get(opcode)
            if handler is None:
                self._special(opcode, unique, nodeid, request)
                return
            node = self.nodes.get(nodeid)
            if node is None:
                self.errors[opcode, errno.ESTALE] += 1
                self.output.append(formats.error_reply(unique, errno.ESTALE))
                return
            if opcode == _GETXATTR and (code := xattr.answered_here(self, node, (uid, gid), pid, request, now)):
                self.errors[opcode, code] += 1
                self.output.append(formats.error_reply(unique, code))
                self.at_home = True
                return
            record = Request(self, unique, opcode, node, (uid, gid), pid, now)
            if self.patience.limit and opcode != _WRITE:
                record.raw = bytes(request)
            if self._groups is not None and uid not in self._groups.known:
                self._new_user(record, self._groups, handler, bytes(request))
                return
            if self.reopening.lost and opcode in ON_OPEN and self._waits_for_file(record, handler, request):
                return
            behind = node.behind
            on_the_way = (behind is not None and (behind.outstanding or behind.overdue is not None)) or self.removals.count
            if on_the_way and self._held_up(record, handler, request):
                return
            self._begin(record, handler, request)
            if not record.answered:
                self.note_outstanding(record)
        except BadMessage:
            self.drops["bad_request"] += 1
        finally:
            self.receiving = False

    def _waits_for_file(self, record: Request, handler: Handler, request: memoryview) -> bool:
        """Begin with a request when what it is about is open again. False: it is open."""
        lost = self.reopening.find(record, request)
        if lost is None:
            return False
        kept = bytes(request)

        def again(code: int) -> None:
            if record.answered:
                return
            if code:
                if isinstance(lost.thing, File) and record.opcode in TELLS_ERRORS:
                    # Whatever became of earlier writes is told with it.
                    file = lost.thing
                    told_before = file.show_error(True) if record.opcode == Opcode.FLUSH else file.take_error()
                    code = told_before or code
                self.error(record, told(-code))
            else:
                record.at = self.dispatch.now()
                self._go_on(record, handler, memoryview(kept))

        self.note_outstanding(record)
        self.reopening.wait(lost, again, record.opcode not in OF_LOCKS or lost.thing.fh == formats.FH_IN.parse(request, BODY)[0])
        return True

    def _handle(self, handler: Handler, record: Request, request: memoryview) -> None:
        if not self._held_up(record, handler, request):
            self._begin(record, handler, request)

    def _begin(self, record: Request, handler: Handler, request: memoryview) -> None:
        try:
            handler(self, record, request)
        except BadMessage:
            self.drops["bad_request"] += 1
            self.error(record, errno.EIO)

    def _new_user(self, record: Request, groups: UserGroups, handler: Handler, request: bytes) -> None:
        """Begin with a request when the groups of its user are known."""
        if record.answered and record not in self.unfinished:
            return
        self.unfinished.pop(record, None)
        try:
            groups.learn(record.user[0])
        except LookingUp as looking:
            self.drops["waited_for_account"] += 1
            self._said_once(record, handler, request)
            looking.then(lambda: self._new_user(record, groups, handler, request))
        except ResmgrError as error:
            self.error(record, errno_of(error))
        else:
            record.at = self.dispatch.now()
            self._go_on(record, handler, memoryview(request))
        if not record.answered:
            self.note_outstanding(record)

    def rerun(self, request: Request) -> None:
        """`Core.rerun`."""
        raw = request.raw
        assert raw is not None
        request.at = self.dispatch.now()
        request.base = request.second = request.via = request.again = None
        owned.ended(request)
        request.changes = ()
        request.span = None
        request.retries = request.hops = 0
        request.unsure = False
        self._go_on(request, OPERATIONS[request.opcode], memoryview(raw))

    def reclaim(self, file: File) -> None:
        """Have a lost file opened again for its locks, when its user's groups are known."""
        if self._groups is not None:
            try:
                self._groups.learn(file.connection.credentials.uid)
            except LookingUp as looking:
                looking.then(lambda: self.reclaim(file))
                return
            except ResmgrError:
                return
        self.reopening.reclaim(file)

    def _go_on(self, record: Request, handler: Handler, request: memoryview) -> None:
        """Begin with a request, unless something else holds it up."""
        if not self.reopening.lost or record.opcode not in ON_OPEN or not self._waits_for_file(record, handler, request):
            self._handle(handler, record, request)

    def _held_up(self, record: Request, handler: Handler, request: memoryview, *, written: bool = False) -> bool:
        """Begin with a request when what is on the way, and must not be overtaken by it, has arrived. False: nothing is. *written*: it has
        waited for writes already; later ones do not count."""
        wait: Callable[[Callable[[], None]], None] | None = None
        counted = "waited_for_writes"
        behind = record.node.behind
        if behind is not None and record.opcode in AFTER_WRITES:
            if behind.outstanding and not written:
                wait = behind.wait
            elif behind.overdue is not None and (numbers := behind.overdue.before(record.opcode, request)):
                wait = partial(behind.overdue.wait, numbers)
        writes = wait is not None
        if wait is None and self.removals.count and record.opcode in AFTER_REMOVALS:
            counted = "waited_for_removals"
            removals = self.removals.before(record, request)
            wait = None if removals is None else removals.wait
        if wait is None:
            return False
        kept = bytes(request)

        self._said_once(record, handler, kept)

        def begin() -> None:
            if record.answered and record not in self.unfinished:
                return
            self.unfinished.pop(record, None)
            record.at = self.dispatch.now()
            view = memoryview(kept)
            if self.reopening.lost and record.opcode in ON_OPEN and self._waits_for_file(record, handler, view):
                return
            if not writes or not self._held_up(record, handler, view, written=True):
                self._begin(record, handler, view)

        self.drops[counted] += 1
        self.note_outstanding(record)
        wait(begin)
        return True

    def _said_once(self, record: Request, handler: Handler, request: bytes) -> None:
        """The request waits here. If the kernel says it once only, it is carried out though it is given up."""
        if record.opcode in NOT_WAITED_FOR:
            self.unfinished[record] = lambda: self._begin(record, handler, memoryview(request))

    def _special(self, opcode: int, unique: int, nodeid: int, request: memoryview) -> None:
        """What is not about a node, or has no answer."""
        if opcode == _FORGET:
            (count,) = formats.FORGET_IN.parse(request, BODY)
            self._forget(nodeid, count)
        elif opcode == _BATCH_FORGET:
            for forgotten, count in formats.forgets(request):
                self._forget(forgotten, count)
        elif opcode == Opcode.INTERRUPT:
            (victim,) = formats.INTERRUPT_IN.parse(request, BODY)
            self.interrupts.came(victim)
        elif opcode == Opcode.INIT:
            try:
                self._init(unique, request)
            except BadMessage:
                self.output.append(formats.error_reply(unique, errno.EPROTO))
                raise
        elif opcode == Opcode.DESTROY:
            self.output.append(formats.error_reply(unique, 0))
            self.on_end("unmounted")
        elif opcode != Opcode.NOTIFY_REPLY:
            self.errors[opcode, errno.ENOSYS] += 1
            self.output.append(formats.error_reply(unique, errno.ENOSYS))

    def _forget(self, nodeid: int, count: int) -> None:
        node = self.nodes.get(nodeid)
        if node is None:
            self.drops["forgot_unknown"] += 1
        elif node.parent is not None:
            self.nodes.forget(node, count)

    def _init(self, unique: int, request: memoryview) -> None:
        major, minor, _, flags = formats.INIT_IN.parse(request, BODY)
        options = self.options
        if major > MAJOR:
            # The kernel will ask again with our version.
            reply = formats.INIT_OUT.pack(MAJOR, MINOR_MAX, 0, 0, 0, 0, 0, 0, 0, 0, 0)
            self.output.append(formats.OUT_HEADER.pack(16 + len(reply), 0, unique) + reply)
            return
        if major < MAJOR or minor < MINOR_MIN:
            self.output.append(formats.error_reply(unique, errno.EPROTO))
            self.on_end(f"the kernel speaks FUSE {major}.{minor}, {MAJOR}.{MINOR_MIN} is needed (Linux 5.4)")
            return
        if flags & Init.INIT_EXT:
            (high,) = formats.INIT_FLAGS2.parse(request, BODY + formats.INIT_IN.size)
            flags |= high << 32
        self.expires = bool(flags & Init.HAS_EXPIRE_ONLY)
        self.resends = bool(flags & Init.HAS_RESEND)
        agreed = int(WANTED) & flags
        self.minor = min(minor, MINOR_MAX)
        reply = formats.INIT_OUT.pack(
            MAJOR,
            self.minor,
            options.max_readahead,
            agreed & 0xFFFFFFFF,
            options.max_background,
            options.max_background * 3 // 4,
            options.max_write,
            1,
            options.max_write // PAGE,
            0,
            agreed >> 32,
        )
        self.output.append(formats.OUT_HEADER.pack(16 + len(reply), 0, unique) + reply)

    def statistics(self) -> FuseStatistics:
        """A copy of all counters."""
        return FuseStatistics(
            self.minor,
            len(self.nodes),
            len(self.handles),
            len(self.files) + len(self.directories),
            len(self.outstanding),
            {_operation(opcode): count for opcode, count in self.requests.items()},
            {f"{_operation(opcode)} {errno.errorcode.get(code, code)}": count for (opcode, code), count in self.errors.items()},
            dict(self.drops),
        )


def _operation(opcode: int) -> str:
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"opcode {opcode}"
