"""GETLK, SETLK, SETLKW: locks are the server's, so they hold between all nodes (the kernel keeps none for us).

A lock is also about what the file holds. So an unlock is sent when the writes on the way have arrived, and before a program hears that it
has a lock, the kernel drops what it has of the file: what others wrote until then is read.

The kernel's lock owner is the server's: a process, an open file for open-file-description locks and flock. It tells an unlock by close in
two ways only: FLUSH with the owner (a process closed a descriptor: all its range locks of the file go), RELEASE (the open file is gone, and
with its OCB whatever was locked through it). FLUSH unlocks only for owners that have locked something. Files opened for reading have no
FLUSH (`files`): a process's lock goes when nobody has that open file any more, which is the same unless it was shared by fork.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from stat import S_IFREG
from typing import Final

from resmgr.dispatch import Buffer
from resmgr.fuse import changing, formats
from resmgr.fuse.core import Core
from resmgr.fuse.formats import BODY
from resmgr.fuse.inode import Node
from resmgr.fuse.openfile import File
from resmgr.fuse.ownlocks import OwnFile, State
from resmgr.fuse.reopen import note_lock
from resmgr.fuse.request import LOST, Request, told
from resmgr.iofunc.locks import UNLOCK
from resmgr.iomsg import LOCK_FOUND, LOCK_SET, LOCK_TEST, LOCK_WAIT
from resmgr.lockrequest import LOCK_END, LockRequest, pack_lock

_LAST: Final = LOCK_END - 1


def getlk(core: Core, request: Request, view: memoryview) -> None:
    _send(core, request, view, LOCK_TEST, LOCK_FOUND.size, _found)


def setlk(core: Core, request: Request, view: memoryview) -> None:
    _send(core, request, view, LOCK_SET, 0, _locked)


def setlkw(core: Core, request: Request, view: memoryview) -> None:
    _send(core, request, view, LOCK_WAIT, 0, _locked)


def _send(
    core: Core, request: Request, view: memoryview, operation: int, reply_len: int, step: Callable[[Request, int, Buffer], None]
) -> None:
    fh, owner, start, last, kind, pid, flags = formats.LK_IN.parse(view, BODY)
    file = core.files.get(fh)
    if file is None:
        core.error(request, errno.EBADF)
        return
    whole = bool(flags & formats.LK_FLOCK)
    if whole:
        asked = LockRequest(operation, kind, 0, LOCK_END, owner, pid, True)
    else:
        asked = LockRequest(operation, kind, start, LOCK_END if last >= _LAST else last + 1, owner, pid)
    _decide(core, request, file, asked, reply_len, step)


def _decide(
    core: Core, request: Request, file: File, asked: LockRequest, reply_len: int, step: Callable[[Request, int, Buffer], None]
) -> None:
    """Have the server answer, or, if all locks of the file are ours, answer."""
    kind, operation = asked.kind, asked.operation
    if request.answered:
        return
    again = partial(_decide, core, request, file, asked, reply_len, step)
    lost = core.reopening.lost.get(file.fh) if core.reopening.lost else None
    if lost is not None:
        # Its connection died while a delegation was given back.
        core.reopening.wait(lost, lambda code: core.error(request, told(-code)) if code else again())
        return
    if kind != UNLOCK and operation != LOCK_TEST:
        file.locked = True
        if not asked.whole:
            locks = file.node.locks
            if locks is None:
                locks = file.node.locks = {}
            locks[asked.owner] = file
    own = core.own_locks.of(file)
    if own is None and kind != UNLOCK and operation != LOCK_TEST and core.own_locks.worth(request, file):
        core.own_locks.ask(file, partial(_forget, core, file.node))
        # It may be refused already.
        own = core.own_locks.of(file)
    elif own is not None and own.state is State.HELD and not core.awake.check():
        # It may be given back already.
        own = core.own_locks.of(file)
    if own is not None and own.state is State.HELD and operation != LOCK_TEST and core.own_locks.full(own):
        core.delegated.changed(file.node)
        own = core.own_locks.of(file)
    if own is not None:
        if own.state is State.HELD:
            _here(core, own, request, file, asked, again)
        else:
            own.queue.append(again)
        return

    def over() -> None:
        if request.answered:
            _undo(core, file, asked)
        core.error(request, 0)

    given_up = _give_up(file, asked)

    def done(request: Request, status: int, reply: Buffer) -> None:
        granted = status >= 0 and kind != UNLOCK and operation != LOCK_TEST
        if granted and file.opened != request.opened:
            # It went with what the file was open as then.
            granted, status = False, -errno.EHOSTDOWN
        if granted:
            # At once: the file may be closed, or lost and opened again, before the kernel has dropped its pages.
            note_lock(file, asked)
            _forget(core, file.node, over)
        else:
            if status not in LOST:
                _not_given_up(given_up, asked, -status)
            step(request, status, reply)

    core.on_file(request, file, (pack_lock(file.ocb, asked),), reply_len, done)


def _undo(core: Core, file: File, asked: LockRequest) -> None:
    """*asked* was granted, and its program told that it has no lock."""
    core.drops["locks_undone"] += 1
    note_lock(file, LockRequest(LOCK_SET, UNLOCK, asked.start, asked.end, asked.owner, asked.pid, asked.whole))
    core.reopening.after_locks(file, lambda: unlock(core, file, asked, lambda: None))


def _give_up(file: File, asked: LockRequest) -> list[tuple[File, LockRequest]]:
    """Note that what *asked*, which is on its way, gives up is not held any more. Others may have it before the answer is here, and if that
    is lost, it must not be set again. What was held; a flock is given up, too, before one of the other kind is taken."""
    if asked.operation == LOCK_TEST or not (asked.kind == UNLOCK or asked.whole):
        return []
    held = [(other, one) for other in file.node.files for one in other.held.within(asked) if one.kind != asked.kind]
    if held:
        note_lock(file, LockRequest(LOCK_SET, UNLOCK, asked.start, asked.end, asked.owner, asked.pid, asked.whole))
    return held


def _not_given_up(held: list[tuple[File, LockRequest]], asked: LockRequest, code: int) -> None:
    """*code* is what became of *asked*."""
    if code == errno.ENOLCK or (code > 0 and asked.kind == UNLOCK):
        for file, one in held:
            file.held.note(one)


def _here(core: Core, own: OwnFile, request: Request, file: File, asked: LockRequest, again: Callable[[], None]) -> None:
    """Nobody else has the file open. *again* begins anew, when that is not so any more."""
    if asked.operation == LOCK_TEST:
        found = core.own_locks.test(own, asked)
        pid, (start, end, kind) = (0, (asked.start, asked.end, UNLOCK)) if found is None else found
        core.answer(request, formats.LK_REPLY.pack(formats.LK_REPLY.size, 0, request.unique, start, min(end - 1, _LAST), kind, pid))
        return

    given_up = _give_up(file, asked)

    def done(code: int) -> None:
        _not_given_up(given_up, asked, code)
        if not code and request.answered and asked.kind != UNLOCK:
            _undo(core, file, asked)
        elif not code and asked.kind != UNLOCK:
            note_lock(file, asked)
        core.error(request, code)

    result = core.own_locks.lock(own, asked, again, done if asked.operation == LOCK_WAIT else None)
    if isinstance(result, int):
        done(result)
        return
    waiter = result

    def give_up() -> None:
        if core.own_locks.cancel(own, waiter):
            core.error(request, errno.EINTR)

    request.on_interrupt = give_up


def _forget(core: Core, node: Node, then: Callable[[], None]) -> None:
    """Drop what is known of the file, here and in the kernel."""
    # Others may have changed it while they had the lock, and the event of that may not be here yet.
    changing.written(core, node)
    if node.cached and node.mode & 0o170000 == S_IFREG:
        core.telling.tell(node, [formats.inval_pages(node.nodeid)], then=then)
    else:
        then()


def _locked(request: Request, status: int, reply: Buffer) -> None:
    _answer(request, status)


def _found(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if status < 0:
        _answer(request, status)
    elif len(reply) != LOCK_FOUND.size:
        core.bad_reply(request)
    else:
        kind, pid, start, length = LOCK_FOUND.unpack(reply)
        last = start + length - 1 if length else _LAST
        core.answer(request, formats.LK_REPLY.pack(formats.LK_REPLY.size, 0, request.unique, start, min(last, _LAST), kind, pid))


def _answer(request: Request, status: int) -> None:
    if status < 0:
        request.core.failed(request, -errno.ENOLCK if status == -errno.ENOSYS else status)
    else:
        request.core.error(request, 0)


def unlock(core: Core, file: File, asked: LockRequest, then: Callable[[], None]) -> None:
    """Give up *asked*'s range; *then* when the server knows, or cannot be told."""
    own = core.own_locks.of(file)
    if own is not None:
        if own.state is State.HELD:
            core.own_locks.lock(own, LockRequest(LOCK_SET, UNLOCK, asked.start, asked.end, asked.owner, 0, asked.whole), then, None)
            then()
        else:
            own.queue.append(partial(unlock, core, file, asked, then))
        return
    message = pack_lock(file.ocb, LockRequest(LOCK_SET, UNLOCK, asked.start, asked.end, asked.owner, 0, asked.whole))
    file.connection.submit((message,), 0, lambda status, reply: then())


def closing(core: Core, file: File, owner: int, then: Callable[[], None]) -> None:
    """A process, *owner*, closes a descriptor of the file: none of its locks is left when *then* is called."""
    locks = file.node.locks
    through = None if locks is None else locks.pop(owner, None)
    if through is None:
        then()
        return
    if not locks:
        file.node.locks = None
    everything = LockRequest(LOCK_SET, UNLOCK, 0, LOCK_END, owner)
    note_lock(through, everything)
    core.reopening.after_locks(through, partial(unlock, core, through, everything, then))


def released(file: File) -> None:
    """Nobody has the open file any more: its OCB is about to be closed."""
    locks = file.node.locks
    if locks is not None:
        for owner in [owner for owner, through in locks.items() if through is file]:
            del locks[owner]
        if not locks:
            file.node.locks = None
