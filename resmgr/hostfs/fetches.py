"""FETCH: a range that a third node has is taken there with a ticket and written to an open file here. docs/protocol/copies.md.

Parts are asked for ahead and written in order, each as the client's user, as WRITE writes; what is told is how much is written, from the
beginning of the range without a gap. Where nothing was written and the other node is the trouble, the answer is EXDEV: the client copies
by itself, and sees by itself what is wrong.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from functools import partial
from time import monotonic

from resmgr.access import NOBODY_USER
from resmgr.channel import CHID_COPIES, ND_LOCAL, PID_SYSTEM, Connection, Credentials, Kernel, Message
from resmgr.copymsg import TAKE_MAX, Fetch, Take, pack_take, parse_fetch
from resmgr.dispatch import Buffer, Timer
from resmgr.hostfs.identity import Identity
from resmgr.hostfs.objects import HostClient, HostHandle
from resmgr.hostfs.running import Running
from resmgr.iofunc.handle import Handle
from resmgr.iomsg import WATCH_MODIFY

WINDOW = 4
"""Parts that are asked for or wait to be written."""
SILENCE = 10.0
"""Seconds without a part after which the other node is not waited for."""
FETCHES_OF_NODE = 8
FETCHES_MAX = 32
"""Each holds WINDOW parts; more are EXDEV."""


class Fetches:
    """What is being fetched to one `HostFs`."""

    def __init__(self, fs: Running, kernel: Kernel) -> None:
        self.fs = fs
        self.kernel = kernel
        self.running: dict[Fetching, None] = {}
        self.of_node: Counter[int] = Counter()

    def fetch(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        """FETCH. OSError EXDEV: not by this node."""
        fetch = parse_fetch(message.data)
        counters, nd = self.fs.counters, client.info.nd
        if not isinstance(handle, HostHandle) or not handle.regular or handle.device.proc:
            raise OSError(errno.EXDEV, "not to be written by others")
        if not handle.writable or handle.append:
            raise OSError(errno.EBADF, "not open for writing at a place")
        if len(self.running) >= FETCHES_MAX or self.of_node[nd] >= FETCHES_OF_NODE:
            counters["fetches_full"] += 1
            raise OSError(errno.EXDEV, "too many copies at a time")
        there = self.kernel.node_by_name(fetch.node)
        if there is None or there == ND_LOCAL:
            counters["fetches_no_way"] += 1
            raise OSError(errno.EXDEV, "no such node here")
        identity = self.fs.identity(client)
        nobody = Credentials(NOBODY_USER.uid, NOBODY_USER.gid, (), PID_SYSTEM)
        connection = self.kernel.connect(there, PID_SYSTEM, CHID_COPIES, nobody, priority=message.priority)
        fetching = Fetching(self, message, client, handle, fetch, connection, identity)
        counters["fetches"] += 1
        fetching.start()

    def close(self) -> None:
        for fetching in list(self.running):
            fetching.stop()


class Fetching:
    """One FETCH under way."""

    def __init__(
        self,
        fetches: Fetches,
        message: Message,
        client: HostClient,
        handle: HostHandle,
        fetch: Fetch,
        connection: Connection,
        identity: Identity,
    ) -> None:
        self._fetches = fetches
        self._fs = fetches.fs
        self._message = message
        self._client = client
        self._handle = handle
        self._fetch = fetch
        self._connection = connection
        self._identity = identity
        self._asked = 0
        """Bytes of the range that were asked for; of these, `_written` are in the file."""
        self._written = 0
        self._parts: dict[int, Buffer] = {}
        """By offset in the range: what came and is not written. The part of no bytes is the end of the source."""
        self._waiting = 0
        """Parts asked for that did not come."""
        self._length = fetch.length
        self._code = 0
        """Why it ends early."""
        self._writing = False
        self._ended = False
        self._pumping = False
        self._timer: Timer | None = None

    def start(self) -> None:
        fetches = self._fetches
        fetches.running[self] = None
        fetches.of_node[self._client.info.nd] += 1
        handle = self._handle
        handle.hold()
        if handle.at_close is None:
            handle.at_close = {}
        handle.at_close[self] = lambda _: self.stop(errno.EBADF)
        self._message.on_unblock = lambda: self.stop(errno.EINTR)
        self._heard()
        self._pump()

    def stop(self, code: int = errno.EXDEV) -> None:
        """No more is fetched; *code* is told if nothing was."""
        self._code = self._code or code
        self._length = self._written
        self._parts.clear()
        self._pump()

    # ---- asking

    def _heard(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        dispatch = self._fs.dispatch
        self._timer = dispatch.call_at(dispatch.now() + SILENCE, self._silent)

    def _silent(self) -> None:
        if not self._writing:
            self._fs.counters["fetches_silent"] += 1
            self.stop()

    def _pump(self) -> None:
        """Write what is next, ask for more, and end when there is nothing left to wait for. Not entered again by what it calls."""
        if self._pumping or self._ended:
            return
        self._pumping = True
        moved = True
        while moved:
            moved = self._write_next() or self._ask_next()
        self._pumping = False
        if not self._writing and self._written >= self._length:
            self._end()

    def _ask_next(self) -> bool:
        if self._asked >= self._length or self._waiting + len(self._parts) + self._writing >= WINDOW:
            return False
        at = self._asked
        size = min(TAKE_MAX, self._length - at)
        self._asked = at + size
        self._waiting += 1
        take = pack_take(Take(self._fetch.ticket, self._fetch.start + at, size))
        self._connection.submit((take,), size + 1, partial(self._came, at, size))
        return True

    def _came(self, at: int, size: int, status: int, data: Buffer) -> None:
        self._waiting -= 1
        if self._ended or at >= self._length:
            return
        self._heard()
        if status < 0 or len(data) > size:
            # What came before it is still written.
            self._code = self._code or errno.EXDEV
            self._length = at
        else:
            if len(data) < size:
                self._length = at + len(data)
            if len(data):
                self._parts[at] = data
        for late in [late for late in self._parts if late >= self._length]:
            del self._parts[late]
        self._pump()

    # ---- writing

    def _write_next(self) -> bool:
        data = None if self._writing else self._parts.pop(self._written, None)
        if data is None:
            return False
        fs, device = self._fs, self._handle.device
        now = fs.dispatch.now()
        if device.blocking_until > now:
            fs.counters["threaded"] += 1
            self._writing = True
            device.lane.submit(lambda: fs.switch.run(self._identity, self._put, data), partial(self._put_in_thread, len(data)))
            return True
        if self._handle.place is not None:
            fs.watching.before(self._client, self._handle.place[0])
        begun = monotonic()
        try:
            count = fs.switch.run(self._identity, self._put, data)
        except OSError as error:
            self._failed(error)
        else:
            self._wrote(count, len(data))
        finally:
            device.took(monotonic() - begun, now)
        return True

    def _put(self, data: Buffer) -> int:
        """Write all of *data*; fewer bytes only if some went before an error. Any thread."""
        view = memoryview(data)
        offset = self._fetch.to + self._written
        count = 0
        while count < len(view):
            try:
                count += os.pwrite(self._handle.fd, view[count:], offset + count)
            except OSError:
                if count:
                    break
                raise
        return count

    def _put_in_thread(self, wanted: int, result: int | BaseException) -> None:
        self._writing = False
        if isinstance(result, BaseException):
            self._failed(result)
        else:
            self._wrote(result, wanted)
        self._pump()

    def _wrote(self, count: int, wanted: int) -> None:
        self._written += count
        if self._handle.place is not None:
            self._fs.watching.made(self._client, (*self._handle.place, WATCH_MODIFY))
        # It may have been stopped while a thread wrote.
        if count < wanted or self._length < self._written:
            self._length = self._written
            self._parts.clear()
        self._heard()

    def _failed(self, error: BaseException) -> None:
        code = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        # The way may have been the trouble before; what the file says comes first.
        self._code = code if not self._code or self._code == errno.EXDEV else self._code
        self._length = self._written
        self._parts.clear()

    # ---- the end

    def _end(self) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        fetches, handle = self._fetches, self._handle
        del fetches.running[self]
        nd = self._client.info.nd
        fetches.of_node[nd] -= 1
        if not fetches.of_node[nd]:
            del fetches.of_node[nd]
        if handle.at_close is not None:
            handle.at_close.pop(self, None)
        if handle.closed:
            # Perhaps this is called by its close, which looks afterwards whether it is still used.
            self._fs.dispatch.call_soon(handle.drop)
        else:
            handle.drop()
        self._connection.close()
        if self._message.answered:
            return
        if self._written or not self._code:
            self._message.reply(self._written)
        else:
            self._message.error(self._code)
