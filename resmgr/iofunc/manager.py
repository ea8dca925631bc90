"""The message side of a resource manager: a channel, a table of allowed operations, handles per client, and errors that never kill.

A manager is made from two tables, connect subtype -> handler and I/O type -> handler; what is not in them is ENOSYS, as an unset function
of QNX's resmgr tables. A handler gets the message, the client and what was parsed, and answers the message now or later. What a handler
raises becomes the answer: an OSError its errno, BadMessage EBADMSG with a counter, anything else EIO and one line in the log.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar

from resmgr.channel import FIRST_PART_DEFAULT, PID_SYSTEM, PULSE_DISCONNECT, ClientInfo, Kernel, Message, Pulse
from resmgr.errors import BadMessage, errno_of
from resmgr.handlelist import parse_close
from resmgr.iofunc.handle import Client, Handle
from resmgr.iofunc.handletable import CLIENTS_MAX, HANDLES_PER_CLIENT, HANDLES_PER_MANAGER, HandleTable
from resmgr.iofunc.lanes import Job, Lane
from resmgr.iomsg import REQUEST, Connect, Io
from resmgr.iorequest import ConnectRequest, parse_connect
from resmgr.users import LookingUp, retry

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=Client)
R = TypeVar("R")
_unpack: Final = REQUEST.unpack_from
_CONNECT: Final = int(Io.CONNECT)
_CLOSE: Final = int(Io.CLOSE)
_WATCH: Final = int(Io.WATCH)


class Manager(Generic[C]):
    """A served channel. `counters` are named drops and failures.

    *connect* handlers are called `(message, client, request, base)`, base None meaning the manager's root; *io* handlers
    `(message, client, handle, flags)`, and read the rest of their request from `message.data`. CLOSE is built in. With *foreign*,
    connect handlers also get requests whose handle is not this manager's (base None, `request.handle` set). *watch* is called with WATCH
    messages, which are about no handle `(message, client, subtype)`, *on_gone* when a client has gone, after its handles.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        name: str,
        make_client: Callable[[ClientInfo], C],
        connect: Mapping[Connect, Callable[[Message, C, ConnectRequest, Handle | None], None]],
        io: Mapping[Io, Callable[[Message, C, Handle, int], None]],
        pid: int = PID_SYSTEM,
        chid: int | None = None,
        first_part: int = FIRST_PART_DEFAULT,
        remote: bool = True,
        handles_per_client: int = HANDLES_PER_CLIENT,
        handles_max: int = HANDLES_PER_MANAGER,
        clients_max: int = CLIENTS_MAX,
        first_handle: int = 1,
        foreign: bool = False,
        watch: Callable[[Message, C, int], None] | None = None,
        on_gone: Callable[[C], None] | None = None,
    ) -> None:
        self.kernel = kernel
        self.name = name
        self.counters = {"bad_message": 0, "failed": 0, "reaped": 0, "handles_full": 0, "clients_full": 0, "unsupported": 0}
        self._make_client = make_client
        self._foreign = foreign
        self._watch = watch
        self._on_gone = on_gone
        self._connect = {int(subtype): handler for subtype, handler in connect.items()}
        self._io = {int(kind): handler for kind, handler in io.items()}
        self.channel = kernel.channel(self._receive, on_pulse=self._pulse, pid=pid, chid=chid, first_part=first_part, remote=remote)
        self.table: HandleTable[C] = HandleTable(self.channel.chid, handles_per_client, clients_max, handles_max, first_handle)

    # ---- messages

    def _receive(self, message: Message) -> None:
        try:
            data = message.data
            kind, subtype, flags, number = _unpack(data)
            table = self.table
            info = message.info
            client = table.clients.get(info.scoid) or self._admit(info)
            if kind == _CONNECT:
                connect = self._connect.get(subtype)
                if connect is None:
                    self._unsupported(message)
                    return
                request = parse_connect(data)
                base = None
                if number:
                    base = table.find(client, number, message.channel is self.channel)
                    if base is None and not self._foreign:
                        message.error(errno.EBADF)
                        return
                connect(message, client, request, base)
                return
            if kind == _CLOSE:
                self._close(message, client)
                return
            if kind == _WATCH and self._watch is not None:
                self._watch(message, client, subtype)
                return
            io = self._io.get(kind)
            if io is None:
                self._unsupported(message)
                return
            handle = table.find(client, number, True)
            if handle is None:
                message.error(errno.EBADF)
                return
            io(message, client, handle, flags)
        except Exception as error:
            self.failed(message, error)

    def serve(self, kind: Io, handler: Callable[[Message, C, Handle, int], None]) -> None:
        """Answer I/O messages of one more kind."""
        self._io[int(kind)] = handler

    def again(self, message: Message) -> None:
        """Handle *message*, that a handler has kept, from its beginning, unless it was answered meanwhile."""
        if not message.answered:
            self._receive(message)

    def _unsupported(self, message: Message) -> None:
        self.counters["unsupported"] += 1
        message.error(errno.ENOSYS)

    def _admit(self, info: ClientInfo) -> C:
        if self.table.crowded(info):
            self.counters["clients_full"] += 1
            raise OSError(errno.ENFILE, "too many clients")
        client = self._make_client(info)
        self.table.admit(client)
        return client

    def failed(self, message: Message, error: BaseException) -> None:
        """Answer *message* with what *error* means. An error nobody expects is EIO and one log line. What waits for an account is handled
        anew."""
        if isinstance(error, LookingUp):
            retry(message, error, self._receive)
            return
        if isinstance(error, BadMessage | struct.error):
            self.counters["bad_message"] += 1
            code = errno.EBADMSG
        elif isinstance(error, OSError) and error.errno:
            code = error.errno
        else:
            self.counters["failed"] += 1
            code = errno_of(error)
            logger.error("%s: handler failed: %s: %s", self.name, type(error).__name__, error)
            logger.debug("%s: where it failed", self.name, exc_info=error)
        if not message.answered:
            message.error(code)

    def _close(self, message: Message, client: C) -> None:
        numbers = parse_close(message.data)
        known = 0
        for number in numbers:
            handle = self.table.find(client, number, True)
            if handle is not None:
                known += 1
                self.table.close(handle)
        if known or len(numbers) > 1:
            message.reply(0)
        else:
            message.error(errno.EBADF)

    # ---- handles

    def check_room(self, client: C) -> None:
        """Raises EMFILE or ENFILE when *client* may have no further handle. Ask before doing work that would have to be undone."""
        code = self.table.full(client)
        if code:
            self.counters["handles_full"] += 1
            raise OSError(code, "too many handles")

    def add(self, message: Message, client: C, handle: Handle) -> int:
        """Register a new handle for the sender of *message*. Its number."""
        return self.table.add(client, handle, message.channel is not self.channel)

    # ---- blocking work

    def background(
        self,
        message: Message,
        client: C,
        held: tuple[Handle, ...],
        work: Callable[[], R],
        finish: Callable[[R], None],
        discard: Callable[[R], None] | None = None,
        lane: Lane | None = None,
    ) -> None:
        """Run *work* in a worker thread and *finish* with its result, in dispatch context. *held* handles stay open until then.

        A client that gives up gets EINTR at once; work that waits in its *lane* is dropped, other work goes on, and its result is given to
        *discard* (new descriptors are to be closed).
        """
        for handle in held:
            handle.hold()
        job: Job | None = None

        def give_up() -> None:
            if job is not None and job.cancel():
                for handle in held:
                    handle.drop()
            message.error(errno.EINTR)

        if message.on_unblock is None or lane is not None:
            message.on_unblock = give_up

        def done(result: R | BaseException) -> None:
            for handle in held:
                handle.drop()
            if isinstance(result, BaseException):
                if not message.answered:
                    self.failed(message, result)
                return
            if message.answered or client.gone:
                if discard is not None:
                    discard(result)
                if not message.answered:
                    message.error(errno.EBADF)
                return
            try:
                finish(result)
            except Exception as error:
                self.failed(message, error)

        if lane is None:
            self.kernel.own_dispatch.call_blocking(work, done)
        else:
            job = lane.submit(work, done)

    # ---- life

    def _pulse(self, pulse: Pulse) -> None:
        if pulse.code == PULSE_DISCONNECT:
            client = self.table.clients.get(pulse.info.scoid)
            self.counters["reaped"] += self.table.reap(pulse.info.scoid)
            if client is not None and self._on_gone is not None:
                self._on_gone(client)

    def destroy(self) -> None:
        """Close the channel and every handle."""
        self.channel.destroy()
        self.table.close_all()
