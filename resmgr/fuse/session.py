"""The descriptor: reads kernel requests from /dev/fuse, gives them to the machine, writes its answers.

One read(2) takes one whole request, so the buffer must hold the largest: max_write bytes of data and the headers. A WRITE that is not
done when `receive` returns keeps the buffer, and another one is taken from a small pool. One write(2) or writev(2) takes one answer; data
are not joined.

A program that is answered from what is known here (`Machine.at_home`) mostly asks the next thing at once, as ls does for each file. It is
let run and looked for again in the same turn, up to `BATCH` times: a turn for each would be as much work as the answer. Not where nothing
had come when it was looked for, nor while others want this core, nor when something was read that is to be sent. So it is with one whose
answer has come from afar: its next request is read before the turn sends what it has to, an acknowledgement at least, and goes with it.

A turn reads up to `BATCH` requests. A read that finds nothing costs as much as another look of the dispatch; so after such a read only one
request per turn is read until two came together again. RELEASE and FORGET do not count: the program that closes goes on
without waiting, so its next request is there mostly.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import struct
import time
from collections.abc import Callable
from typing import Final

from resmgr.dispatch import Dispatch, Timer
from resmgr.fuse import formats, handover
from resmgr.fuse.core import OutputItem
from resmgr.fuse.formats import Opcode
from resmgr.fuse.machine import Machine
from resmgr.fuse.sitting import sitting
from resmgr.fuse.state import State
from resmgr.fuse.traits import NOT_WAITED_FOR
from resmgr.fuse.waits import MAY_BE_OURS, Waits

logger = logging.getLogger(__name__)

BATCH: Final = 32
"""Requests read in one turn; the others of the node get their share then."""
LOOK_EVERY: Final = 16
"""A lone reader looks for a second request this often."""
YIELD_MAX: Final = 0.001
"""Seconds for which a program runs before its next request; for longer it was somebody else."""
STAY_PAUSE: Final = 64
"""Requests that get a turn each after somebody else wanted this core."""
HEADERS: Final = 4096
QUIET: Final = 3.0
"""Seconds in which what was read is answered before the mount is handed over."""
PATIENCE: Final = 1.0
"""Seconds after which what keeps a thread of ours in the kernel is answered before that."""
LOOK_AGAIN: Final = 0.01
POOL_MAX: Final = 12
"""Buffers kept for later; more are given back to the system. Getting one is a millisecond of page faults."""
POOL_IDLE: Final = 2.0
"""Seconds after which buffers that were not needed are given back."""
_opcode: Final = struct.Struct("=I").unpack_from
_write: Final = os.write
_writev: Final = os.writev


class _Buffer:
    """A read buffer and how many requests still use it."""

    __slots__ = ("borrowers", "session", "view")

    def __init__(self, session: Session, size: int) -> None:
        self.session = session
        self.view = memoryview(bytearray(size))
        self.borrowers = 0

    def let_go(self) -> None:
        self.borrowers -= 1
        if not self.borrowers:
            self.session.buffer_free(self)


class Session:
    """Serves one mount until the kernel ends it or `close` is called.

    *fd* is an open, non-blocking /dev/fuse whose mount exists or is about to; it belongs to the session from `start` on. *on_end* is
    called once, with a sentence for people, when the kernel has ended the connection; it is not called after `close`. *namespace*: the
    mount namespace in which the mount is, None: this thread's; it stays the caller's and must stay open.
    """

    def __init__(
        self, dispatch: Dispatch, fd: int, machine: Machine, on_end: Callable[[str], None] | None = None, namespace: int | None = None
    ) -> None:
        self.machine = machine
        self.closed = False
        self._dispatch = dispatch
        self._fd = fd
        # It says None where os.read would make an exception: that there is nothing yet.
        self._read: Callable[[memoryview], int | None] = io.FileIO(fd, "rb", closefd=False).readinto
        self._on_end = on_end
        self._size = machine.options.max_write + HEADERS
        self._pool: list[_Buffer] = []
        self._buffer = _Buffer(self, self._size)
        self._trim: Timer | None = None
        self._least = 0
        """Fewest buffers in the pool since it was last trimmed."""
        self._alone = 0
        self._reading = False
        self.telling = 0
        """Jobs that tell the kernel something, and may wait there."""
        self._handing = False
        self._away = 0
        """So often the next request is left to the next turn."""
        self._looking = False
        self._aborted = False
        self.waits = Waits(dispatch, fd, self._size, machine.mountpoint, namespace)
        self.waits.on_replaced = self._replaced
        machine.borrow = self._borrow
        machine.on_output = self._answered
        machine.on_end = self._ended_later
        machine.tell_kernel = self._tell
        machine.sitting = self._sitting
        machine.awake.asleep = _asleep
        machine.drop_pages = self._drop_pages

    def start(self) -> None:
        """Begin to serve."""
        self._dispatch.attach_fd(self._fd, self._readable)
        self._reading = True
        self.waits.start()

    def resume(self) -> None:
        """Begin to serve a mount that another daemon served, with a machine that knows what that one knew (`handover`)."""
        machine = self.machine
        attributes = [formats.inval_inode(node.nodeid) for node in machine.nodes]

        def told() -> None:
            if self.closed:
                return
            if machine.resends:
                try:
                    os.write(self._fd, formats.resend())
                except OSError as error:
                    logger.warning("the kernel does not send again what waits: %s", error.strerror)
            self.start()
            machine.leases.resumed()

        self._tell(attributes, told)

    def hand_over(self, name_of: Callable[[int], str | None], done: Callable[[int, State], None]) -> None:
        """Serve no more, but keep the mount: *done* is given the descriptor, the caller's from then on, and the state for the next daemon,
        when what was read is answered, or after QUIET. *name_of*: as of `handover.state_of`."""
        machine = self.machine
        self._handing = True
        machine.identify.ask_all()
        began = self._dispatch.now()
        until = began + QUIET

        def look() -> None:
            if self.closed:
                return
            now = self._dispatch.now()
            if self.waits.threads and now < until:
                # Such a thread waits for the lock of a directory, perhaps one that a request has which is not read yet: so these are read
                # and answered until it is back; this process could not end before. For a helper that waits the next daemon will answer.
                if now > began + PATIENCE:
                    handover.let_go(machine)
                self._dispatch.call_at(now + LOOK_AGAIN, look)
                return
            if self._reading:
                self._dispatch.detach_fd(self._fd)
                self._reading = False
            if handover.restless(machine) and self._dispatch.now() < until:
                self._dispatch.call_at(self._dispatch.now() + LOOK_AGAIN, look)
                return
            handover.give_up(machine)
            state = handover.state_of(machine, name_of)
            fd, self._fd = self._fd, -1
            self.waits.close(leave=True)
            self._end()
            done(fd, state)

        look()

    def close(self) -> None:
        """Stop serving: the kernel fails what is under way and everything later (ENOTCONN) until the mount is removed. Idempotent."""
        if self.closed:
            return
        if self._reading:
            self._dispatch.detach_fd(self._fd)
        self.waits.close()
        os.close(self._fd)
        self._end()

    def _end(self) -> None:
        self.closed = True
        self._reading = False
        self.machine.close()
        self._pool.clear()
        if self._trim is not None:
            self._trim.cancel()
            self._trim = None

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Tell the kernel that what it believes of *name* in node *parent* is wrong. `waits` does it: it may take a while."""
        self._tell([formats.inval_entry(parent, name)], lambda: None)

    def _tell(self, messages: list[bytes], told: Callable[[], None]) -> None:
        if (done := self._telling(told)) is not None:
            self.waits.tell(messages, done)

    def _drop_pages(self, nodeid: int, told: Callable[[], None]) -> None:
        if (done := self._telling(told)) is not None:
            self.waits.drop_pages(nodeid, done)

    def _telling(self, told: Callable[[], None]) -> Callable[[int], None] | None:
        """What `waits` calls when it has told something; None: it is not told here any more."""
        if self.closed:
            return None
        if self._handing:
            # The next daemon tells it all.
            self._dispatch.call_soon(told)
            return None
        self.telling += 1

        def done(failed: int) -> None:
            self.telling -= 1
            if failed:
                self.machine.drops["notify_failed"] += failed
            told()

        return done

    def _replaced(self) -> None:
        self.machine.drops["notifiers_replaced"] += 1

    def _sitting(self, then: Callable[[set[bytes]], None]) -> None:
        mountpoint = self.machine.mountpoint

        def done(found: set[bytes] | BaseException) -> None:
            then(set() if isinstance(found, BaseException) else found)

        self._dispatch.call_blocking(lambda: sitting(mountpoint), done)

    # ---- buffers

    def _borrow(self) -> Callable[[], None]:
        buffer = self._buffer
        buffer.borrowers += 1
        return buffer.let_go

    def _take_buffer(self) -> _Buffer:
        pool = self._pool
        if not pool:
            return _Buffer(self, self._size)
        buffer = pool.pop()
        self._least = min(self._least, len(pool))
        return buffer

    def buffer_free(self, buffer: _Buffer) -> None:
        """Nobody uses *buffer* any more."""
        if buffer is not self._buffer and len(self._pool) < POOL_MAX and not self.closed:
            self._pool.append(buffer)
            if self._trim is None:
                self._least = 0
                self._trim = self._dispatch.call_at(self._dispatch.now() + POOL_IDLE, self._trim_pool)

    def _trim_pool(self) -> None:
        """Give back the buffers that nobody took since the last time."""
        self._trim = None
        pool = self._pool
        del pool[: self._least]
        if pool:
            self._least = len(pool)
            self._trim = self._dispatch.call_at(self._dispatch.now() + POOL_IDLE, self._trim_pool)

    # ---- reading

    def _readable(self) -> None:
        self._serve(False)

    def _look(self) -> None:
        """Something was answered in this turn that did not begin with a request."""
        self._looking = False
        if self._reading and self._stays():
            self._serve(True)

    def _serve(self, stayed: bool) -> None:
        machine = self.machine
        read = self._read
        now = self._dispatch.now()
        alone = self._alone > 0
        others = False
        if alone:
            self._alone -= 1
        for _ in range(BATCH):
            buffer = self._buffer
            try:
                length = read(buffer.view)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    # The request was taken back before it was read.
                    continue
                if error.errno == errno.ECONNABORTED and not self._aborted:
                    # The mount may just have gone while this request was being read: then the next read says so.
                    self._aborted = True
                    continue
                reasons = {errno.ENODEV: "unmounted", errno.ECONNABORTED: "the connection was aborted"}
                self._ended(reasons.get(error.errno or 0, f"reading /dev/fuse failed: {error.strerror}"))
                return
            if length is None:
                self._alone = LOOK_EVERY
                if stayed:
                    self._away = LOOK_EVERY
                return
            view = buffer.view[:length]
            opcode = _opcode(view, 4)[0]
            if opcode in MAY_BE_OURS and (answer := self.waits.answer(opcode, view)) is not None:
                self.machine.output.append(answer)
                self._flush()
                continue
            waited_for = opcode not in NOT_WAITED_FOR
            machine.receive(view, now)
            if buffer.borrowers:
                self._buffer = self._take_buffer()
            if machine.output:
                self._flush()
            if self.closed:
                return
            if machine.at_home:
                machine.at_home = False
                if not others and self._stays():
                    stayed = True
                    continue
            if waited_for:
                others = True
                if alone:
                    return

    def _stays(self) -> bool:
        """A request was answered without asking anybody. Whether to look for the next one right here, after letting programs run."""
        if self._away:
            self._away -= 1
            return False
        before = time.monotonic()
        os.sched_yield()
        if time.monotonic() - before > YIELD_MAX:
            self._away = STAY_PAUSE
        return True

    # ---- writing

    def _answered(self) -> None:
        self._flush()
        if not self._looking:
            self._looking = True
            self._dispatch.call_soon(self._look)

    def _flush(self) -> None:
        output = self.machine.output
        fd = self._fd
        if self.closed:
            output.clear()
            self.machine.just_answered.clear()
            return
        for item in output:
            try:
                if isinstance(item, bytes):
                    _write(fd, item)
                else:
                    _writev(fd, item)
            except OSError as error:
                self._refused(item, error)
        output.clear()
        self.machine.just_answered.clear()

    def _refused(self, item: OutputItem, error: OSError) -> None:
        """The kernel did not take an answer or a notification."""
        drops = self.machine.drops
        if error.errno in (errno.ENOENT, errno.ENODEV):
            # Nobody waits for it any more, or the inode is not known there.
            drops["reply_not_wanted"] += 1
            return
        drops["reply_refused"] += 1
        head = item if isinstance(item, bytes) else item[0]
        length, code, unique = formats.OUT_HEADER.parse(head)
        logger.error("kernel refused %s: %s", self._about(unique), error.strerror)
        logger.debug("refused reply: length %d, error %d, unique %d", length, code, unique)
        if unique:
            # Whoever waits must not wait for ever.
            try:
                os.write(self._fd, formats.error_reply(unique, errno.EIO))
            except OSError:
                drops["reply_not_wanted"] += 1

    def _about(self, unique: int) -> str:
        """Whose the answer to *unique* was, as far as it is known."""
        request = next((one for one in self.machine.just_answered if one.unique == unique), None)
        if request is None:
            return "a reply" if unique else "a notification"
        path = self.machine.mountpoint + request.node.path().rstrip(b"/")
        nd, pid, chid = request.node.server.key
        server = f"server {pid}/{chid} of " + (f"the node with the number {nd}" if nd else "this node")
        name = b"/" + request.name if request.name else b""
        return f"the reply to {Opcode(request.opcode).name} of {os.fsdecode(path + name)!a}, from {server}"

    # ---- the end

    def _ended_later(self, reason: str) -> None:
        self._dispatch.call_soon(lambda: self._ended(reason))

    def _ended(self, reason: str) -> None:
        if self.closed:
            return
        self.close()
        if self._on_end is not None:
            self._on_end(reason)


def _asleep() -> float:
    """Seconds that this machine was asleep since it was booted: the dispatch's clock stands still meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
