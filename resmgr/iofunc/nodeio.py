"""I/O messages to an open node that its methods answer: READ, WRITE, NOTIFY, LOCK, DEVCTL; at once, when the node has changed, or later."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from stat import S_IFCHR, S_IFIFO, S_IFMT, S_IFSOCK
from typing import TypeVar

from resmgr.channel import Message
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, Misuse
from resmgr.iofunc.handle import Client, Handle
from resmgr.iofunc.locking import FileLocks
from resmgr.iofunc.nodes import Directory, Node, NodeHandle, opened
from resmgr.iofunc.waiting import Later, Parking, Waiters
from resmgr.iomsg import NONBLOCK, NOTIFY_CHANGE, NOTIFY_POLL, OFFSET_APPEND, POLL_ERR, POLL_HUP, WRITE_AT
from resmgr.iorequest import WRITE_HEAD, parse_devctl, parse_notify, parse_read, parse_write

VALUE_WRITE_MAX = 64 * 1024
"""Bytes of one write to a node. Of more, a stream (a character device, a FIFO, a socket) is given the first ones, as a pipe takes what it
has room for; any other node is a value, which is not to be had in pieces: EMSGSIZE."""
STREAMS = frozenset((S_IFCHR, S_IFIFO, S_IFSOCK))
T = TypeVar("T")


def read_data(node: Node, found: object, size: int) -> Buffer:
    """What `read` of *node* returned, cut to what was asked for. Misuse if it is no buffer."""
    if not isinstance(found, bytes | bytearray | memoryview):
        raise Misuse(f"{type(node).__name__}.read returned {type(found).__name__}, not bytes")
    if isinstance(found, memoryview) and not (found.contiguous and found.format in ("B", "b", "c")):
        raise Misuse(f"{type(node).__name__}.read returned a view whose items are no bytes")
    return found if len(found) <= size else memoryview(found)[:size]


def write_count(node: Node, taken: object, size: int) -> int:
    """What `write` of *node* returned. Misuse if it is not how many of *size* bytes were taken."""
    if not isinstance(taken, int) or not 0 <= taken <= size:
        raise Misuse(f"{type(node).__name__}.write returned {taken!r} for {size} bytes")
    return taken


class NodeIo:
    """The handlers. *failed* answers a message with what an exception means."""

    def __init__(self, failed: Callable[[Message, BaseException], None]) -> None:
        self._failed = failed
        self._parking = Parking(failed)
        self.locks = FileLocks()

    def count_in(self, counters: dict[str, int]) -> None:
        """Count in *counters* from now on: those of the manager."""
        self._parking.count_in(counters)
        self.locks.count_in(counters)

    def read(self, message: Message, client: Client, handle: Handle, flags: int) -> None:
        ocb = opened(handle)
        offset, size = parse_read(message.data)
        if isinstance(ocb.node, Directory):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        if ocb.flags & os.O_ACCMODE == os.O_WRONLY:
            raise OSError(errno.EBADF, "not open for reading")
        size = min(size, message.reply_len)

        def answer(found: Buffer) -> None:
            data = read_data(ocb.node, found, size)
            message.reply(len(data), data)

        def attempt() -> bool:
            found = ocb.node.read(ocb.state, offset, size)
            if isinstance(found, Later):
                self._later(message, ocb, found, answer)
            elif found is None:
                return False
            else:
                answer(found)
            return True

        self._attempt(message, ocb, flags, attempt)

    def write(self, message: Message, client: Client, handle: Handle, flags: int) -> None:
        ocb = opened(handle)
        offset, size = parse_write(message.data)
        if ocb.flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing")
        if size > message.msglen - WRITE_HEAD:
            raise BadMessage("write has less data than it says")
        if size > VALUE_WRITE_MAX:
            if S_IFMT(ocb.node.mode) not in STREAMS:
                raise OSError(errno.EMSGSIZE, "value too long")
            size = VALUE_WRITE_MAX
        if ocb.flags & os.O_APPEND and not flags & WRITE_AT:
            offset = OFFSET_APPEND
        have = len(message.data) - WRITE_HEAD
        if have >= size:
            self._put(message, ocb, flags, offset, memoryview(message.data)[WRITE_HEAD : WRITE_HEAD + size])
            return

        def pulled(count: int, data: Buffer) -> None:
            try:
                if count != size:
                    raise OSError(-count if count < 0 else errno.EBADMSG, "client gone")
                if ocb.closed:
                    raise OSError(errno.EBADF, "closed meanwhile")
                self._put(message, ocb, flags, offset, data)
            except Exception as error:
                self._failed(message, error)

        message.read(WRITE_HEAD, size, pulled)

    def _put(self, message: Message, ocb: NodeHandle, flags: int, offset: int, data: Buffer) -> None:
        def answer(taken: int) -> None:
            message.reply(write_count(ocb.node, taken, len(data)))

        def attempt() -> bool:
            taken = ocb.node.write(ocb.state, offset, data)
            if isinstance(taken, Later):
                self._later(message, ocb, taken, answer)
            elif taken is None:
                return False
            else:
                answer(taken)
            return True

        self._attempt(message, ocb, flags, attempt)

    def _attempt(self, message: Message, ocb: NodeHandle, flags: int, attempt: Callable[[], bool]) -> None:
        """Answer now, or when the node has changed."""
        if attempt():
            return
        if flags & NONBLOCK:
            raise BlockingIOError(errno.EAGAIN, "not now")
        self._parking.park(self._waiters(ocb.node), message, ocb, attempt)

    def _waiters(self, node: Node) -> Waiters:
        if node.waiters is None:
            node.waiters = Waiters()
        return node.waiters

    def _later(self, message: Message, ocb: NodeHandle, later: Later[T], answered: Callable[[T], None]) -> None:
        def gone(handle: Handle, code: int = errno.EBADF) -> None:
            later.give_up()
            if not message.answered:
                message.error(code)

        def over() -> None:
            if ocb.at_close is not None:
                ocb.at_close.pop(later, None)

        def answer(value: T) -> None:
            over()
            if not message.answered:
                try:
                    answered(value)
                except Exception as error:
                    self._failed(message, error)

        def fail(code: int) -> None:
            over()
            if not message.answered:
                message.error(code)

        def unblocked() -> None:
            over()
            gone(ocb, errno.EINTR)

        message.on_unblock = unblocked
        if ocb.at_close is None:
            ocb.at_close = {}
        ocb.at_close[later] = gone
        later.tell(answer, fail)

    def notify(self, message: Message, client: Client, handle: Handle, flags: int) -> None:
        ocb = opened(handle)
        action, wanted = parse_notify(message.data)
        wanted |= POLL_ERR | POLL_HUP

        def attempt() -> bool:
            holds = ocb.node.poll(ocb.state) & wanted
            if holds:
                message.reply(holds)
            return bool(holds)

        if action == NOTIFY_POLL:
            message.reply(ocb.node.poll(ocb.state) & wanted)
        elif action == NOTIFY_CHANGE or not attempt():
            self._parking.park(self._waiters(ocb.node), message, ocb, attempt)

    def lock(self, message: Message, client: Client, handle: Handle, flags: int) -> None:
        ocb = opened(handle)
        access = ocb.flags & os.O_ACCMODE
        self.locks.answer(message, client, ocb, ocb.path, access != os.O_WRONLY, access != os.O_RDONLY)

    def devctl(self, message: Message, client: Client, handle: Handle, flags: int) -> None:
        ocb = opened(handle)
        command, data = parse_devctl(message.data)
        answer = ocb.node.devctl(ocb.state, command, data)
        if isinstance(answer, Later):
            self._later(message, ocb, answer, lambda back: message.reply(*back))
        else:
            message.reply(*answer)
