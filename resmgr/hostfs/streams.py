"""What is done to an open device or FIFO: READ, WRITE, NOTIFY, DEVCTL. Nothing here waits in the dispatch, and what waits costs no thread.

Every descriptor is opened with O_NONBLOCK. What cannot be done now is parked (`resmgr.iofunc.waiting`) and tried again at the next news
of the descriptor (`watch`); with NONBLOCK it is EAGAIN. A signal at the client's end is an unblock: a parked read leaves and has taken
nothing, a parked write tells how much it wrote.

Devices that the kernel cannot wait for and that are not in memory are read and written in threads, `LANE` of them at a time for each
device; so are disks. A thread that reads cannot be called back: what it brings when its client has given up is kept for the next READ of
that open.

DEVCTL carries the commands of terminals (`resmgr.iofunc.terminal`) and nothing else: the data of other commands may hold pointers, which
would be taken as places in this process. Who may not write to the export may only ask.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from functools import partial
from stat import S_IFBLK, S_IFCHR, S_IFIFO
from typing import Protocol

from resmgr.access import Scope
from resmgr.channel import Message
from resmgr.dispatch import Dispatch
from resmgr.errors import BadMessage
from resmgr.hostfs import gather
from resmgr.hostfs.device import Device, Devices
from resmgr.hostfs.fifo import FifoOpens
from resmgr.hostfs.gather import Gather
from resmgr.hostfs.identity import Identity, Switch
from resmgr.hostfs.made import Opened
from resmgr.hostfs.objects import HostClient, HostHandle
from resmgr.hostfs.opened import read_waiting
from resmgr.hostfs.special import MEM_MAJOR, MEMORY_DEVICES, Special, check
from resmgr.hostfs.watch import Watch, can_wait, ready
from resmgr.iofunc.handle import Handle
from resmgr.iofunc.lanes import Lane, Lanes
from resmgr.iofunc.manager import Manager
from resmgr.iofunc.terminal import TERMINAL, UNSENT, TerminalCommand, changes
from resmgr.iofunc.waiting import Parking, Waiters
from resmgr.iomsg import NONBLOCK, NOTIFY_CHANGE, NOTIFY_POLL, POLL_ALL, POLL_ERR, POLL_HUP, POLL_IN, POLL_OUT
from resmgr.iorequest import WRITE_HEAD, parse_devctl, parse_notify, parse_read, parse_write

READ_MAX = 1024 * 1024
"""Bytes of one READ; a larger request gets this much."""
INLINE_MAX = 128 * 1024
"""Bytes of random numbers or zeros made in the dispatch; more is a thread's work."""
KEPT_MAX = 1024 * 1024
"""Bytes kept of reads whose clients have given up."""
LANES_MAX = 256
"""Devices with threads of their own at a time."""
DRAIN_FIRST, DRAIN_LAST = 0.005, 0.1
"""Seconds between looks whether a terminal has sent its output."""


class DeviceHandle(HostHandle):
    """An open device or FIFO. `waits`: an attempt never blocks. `tells`: the kernel tells when it is ready. `quick`: so is closing it."""

    __slots__ = ("kept", "kind", "lane", "memory", "quick", "tells", "terminal", "waiters", "waits", "watch")

    def __init__(self, fd: int, scope: Scope, device: Device, special: Special, watch: Watch, lane: Lane) -> None:
        super().__init__(fd, scope, device, False, special.flags & ~os.O_PATH)
        self.kind = special.kind
        self.quick = special.quick
        self.lane = lane
        self.tells = self.kind != S_IFBLK and can_wait(fd)
        self.waits = self.tells or (self.kind == S_IFCHR and os.major(special.rdev) == MEM_MAJOR)
        self.memory = self.kind == S_IFCHR and special.rdev in MEMORY_DEVICES
        self.terminal = self.kind == S_IFCHR and os.isatty(fd)
        self.waiters = Waiters()
        self.watch = watch
        self.kept = b""

    @property
    def regular(self) -> bool:
        return False

    def news(self) -> bool:
        self.waiters.look()
        return bool(self.waiters.queue)

    def release(self) -> None:
        self.watch.remove(self.fd)
        if self.quick:
            os.close(self.fd)
        else:
            # A serial line sends its output first, a tape rewinds.
            self.lane.submit(partial(os.close, self.fd), lambda _: None)


class Attributes(Protocol):
    """Packs what stat says (`operations`)."""

    def attr(self, status: os.stat_result) -> bytes: ...


class DeviceIo:
    """The special files of one `HostFs`. *finish* registers what was opened and answers."""

    def __init__(
        self,
        dispatch: Dispatch,
        lanes: Lanes,
        devices: Devices,
        switch: Switch,
        identity: Callable[[HostClient], Identity],
        finish: Callable[[Message, HostClient, Opened], None],
    ) -> None:
        self._dispatch = dispatch
        self._all_lanes = lanes
        self._devices = devices
        self._switch = switch
        self._identity = identity
        self._finish = finish
        self._watch = Watch(dispatch)
        self._lanes: dict[tuple[int, int], Lane] = {}
        self._parking = Parking(self._failed)
        self.fifos = FifoOpens(dispatch, self._failed)
        self._manager: Manager[HostClient]
        self._attrs: Attributes

    def serve(self, manager: Manager[HostClient], attrs: Attributes) -> None:
        """For *manager* from now on."""
        self._manager = manager
        self._attrs = attrs
        manager.counters.update({"devices_opened": 0, "devices_refused": 0})
        self._parking.count_in(manager.counters)
        self.fifos.count_in(manager.counters)

    def _failed(self, message: Message, error: BaseException) -> None:
        self._manager.failed(message, error)

    def forget_remote(self) -> None:
        """Other nodes' rights have changed."""
        self.fifos.forget_remote()

    def close(self) -> None:
        self.fifos.close()
        self._watch.close()

    # ---- opening

    def open(self, message: Message, client: HostClient, special: Special) -> None:
        """Open *special* for the client and answer, perhaps later. Takes it over."""
        try:
            check(special)
            identity = self._identity(client)
        except BaseException:
            self._manager.counters["devices_refused"] += 1
            special.close()
            raise
        node = special.node

        def opened(fd: int) -> None:
            self._opened(message, client, special, node.scope, node.device, fd)

        def open_(access: int | None = None) -> int:
            return self._switch.run(identity, special.open, access)

        if special.kind == S_IFIFO:
            self.fifos.open(message, client, special, open_, opened)
            return
        try:
            if special.quick:
                opened(open_())
            else:
                # `node` stays open while the thread uses it.
                self._manager.background(message, client, (node,), open_, opened, os.close, self._lane(special))
        finally:
            special.close()

    def _opened(self, message: Message, client: HostClient, special: Special, scope: Scope, device: Device, fd: int) -> None:
        try:
            handle = DeviceHandle(fd, scope, device, special, self._watch, self._lane(special))
            attr = (client.ops or self._attrs).attr(os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        self._manager.counters["devices_opened"] += 1
        if message.answered or client.gone:
            handle.close()
            return
        self._finish(message, client, Opened(attr, None, handle))

    def _lane(self, special: Special) -> Lane:
        """Where the threads of this device wait."""
        key = (special.kind, special.rdev)
        lane = self._lanes.get(key)
        if lane is None:
            if len(self._lanes) >= LANES_MAX:
                for other in [key for key, lane in self._lanes.items() if not lane.running and not lane.waiting]:
                    del self._lanes[other]
            name = f"device {os.major(special.rdev)}:{os.minor(special.rdev)}" if special.kind != S_IFIFO else "FIFO"
            lane = self._lanes[key] = Lane(self._all_lanes, name, True)
        return lane

    # ---- reading and writing

    def read(self, message: Message, client: HostClient, handle: DeviceHandle, flags: int) -> None:
        offset, size = parse_read(message.data)
        if not handle.readable:
            raise OSError(errno.EBADF, "not open for reading")
        size = min(size, message.reply_len, READ_MAX)
        if handle.kept:
            data, handle.kept = handle.kept[:size], handle.kept[size:]
            message.reply(len(data), data)
            return
        identity = self._identity(client)
        fd = handle.fd

        def answer(data: bytes) -> None:
            message.reply(len(data), data)

        if not handle.waits or (handle.memory and size > INLINE_MAX):
            if handle.kind == S_IFBLK:
                self._manager.background(
                    message, client, (handle,), lambda: self._switch.run(identity, read_waiting, fd, size, offset), answer, lane=handle.lane
                )
                return

            def keep(data: bytes) -> None:
                if len(handle.kept) + len(data) <= KEPT_MAX:
                    handle.kept += data

            def work() -> bytes:
                os.set_blocking(fd, not flags & NONBLOCK)
                return self._switch.run(identity, os.read, fd, size)

            self._manager.background(message, client, (handle,), work, answer, keep, handle.lane)
            return

        def attempt() -> bool:
            try:
                data = self._switch.run(identity, os.read, fd, size)
            except BlockingIOError:
                return False
            answer(data)
            return True

        if handle.terminal and not flags & NONBLOCK:
            found = gather.rule(fd)
            if found is not None:
                attempt = Gather(self._dispatch, fd, size, *found, attempt, lambda: answer(b""), handle.waiters.look).attempt
        if not attempt():
            if flags & NONBLOCK:
                raise BlockingIOError(errno.EAGAIN, "nothing to read")
            self._park(message, handle, attempt)

    def write(self, message: Message, client: HostClient, handle: DeviceHandle, flags: int) -> None:
        """What arrived with the message is written; more is the client's next WRITE."""
        offset, size = parse_write(message.data)
        if not handle.writable:
            raise OSError(errno.EBADF, "not open for writing")
        if size > message.msglen - WRITE_HEAD:
            raise BadMessage("write has less data than it says")
        view = memoryview(message.data)[WRITE_HEAD : WRITE_HEAD + size]
        identity = self._identity(client)
        fd = handle.fd
        if not handle.waits:
            data = bytes(view)

            def work() -> int:
                if handle.kind == S_IFBLK:
                    return self._switch.run(identity, os.pwrite, fd, data, offset)
                os.set_blocking(fd, not flags & NONBLOCK)
                return self._switch.run(identity, os.write, fd, data)

            self._manager.background(message, client, (handle,), work, message.reply, lane=handle.lane)
            return
        done = 0

        def attempt() -> bool:
            nonlocal done
            while True:
                try:
                    count = self._switch.run(identity, os.write, fd, view[done:])
                except BlockingIOError:
                    return False
                except OSError:
                    if not done:
                        raise
                    break
                done += count
                if done >= len(view) or not count:
                    break
            message.reply(done)
            return True

        def partly() -> None:
            if done:
                message.reply(done)

        if not attempt():
            if flags & NONBLOCK:
                if not done:
                    raise BlockingIOError(errno.EAGAIN, "no room")
                message.reply(done)
                return
            try:
                self._park(message, handle, attempt, partly, len(message.data))
            except BlockingIOError:
                # There is no room for one more that waits.
                if not done:
                    raise
                message.reply(done)

    def _park(
        self,
        message: Message,
        handle: DeviceHandle,
        attempt: Callable[[], bool],
        gave_up: Callable[[], None] | None = None,
        data: int = 0,
    ) -> None:
        self._parking.park(handle.waiters, message, handle, attempt, gave_up, data)
        self._watch.add(handle.fd, handle.news)

    # ---- conditions

    def notify(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        """A regular file is always ready, and has no such handler."""
        if not isinstance(handle, DeviceHandle):
            raise OSError(errno.ENOSYS, "not a device")
        action, wanted = parse_notify(message.data)
        wanted |= POLL_ERR | POLL_HUP
        if not handle.tells:
            message.reply(wanted & (POLL_IN | POLL_OUT))
            return
        fd = handle.fd

        def attempt() -> bool:
            holds = POLL_IN if handle.kept else ready(fd) & POLL_ALL & wanted
            if holds:
                message.reply(holds)
            return bool(holds)

        if action == NOTIFY_POLL:
            message.reply((POLL_IN if handle.kept else 0) | ready(fd) & POLL_ALL & wanted)
        elif action == NOTIFY_CHANGE:
            news = False

            def changed() -> bool:
                return news and attempt()

            self._park(message, handle, changed)
            # What holds already is no news.
            self._watch.look()
            news = True
        elif not attempt():
            self._park(message, handle, attempt)

    # ---- commands

    def devctl(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        if not isinstance(handle, DeviceHandle):
            raise OSError(errno.ENOSYS, "not a device")
        number, data = parse_devctl(message.data)
        command = TERMINAL.get(number)
        if command is None or handle.kind not in (S_IFCHR, S_IFIFO):
            raise OSError(errno.ENOTTY, "no such command")
        if len(data) < command.takes.size:
            raise OSError(errno.EINVAL, "too little data")
        if changes(command) and not handle.scope.write:
            raise OSError(errno.EROFS, "export is read-only")
        identity = self._identity(client)
        taken = bytes(data[: command.takes.size])

        def work() -> tuple[int, bytes]:
            return self._switch.run(identity, _ioctl, handle.fd, command, taken)

        def answer(result: tuple[int, bytes]) -> None:
            message.reply(*result)

        def carry_out() -> None:
            if command.sleeps:
                self._manager.background(message, client, (handle,), work, answer, lane=handle.lane)
            else:
                answer(work())

        if command.waits:
            self._drained(message, handle, carry_out)
        else:
            carry_out()

    def _drained(self, message: Message, handle: DeviceHandle, then: Callable[[], None]) -> None:
        """Call *then* when the terminal has sent its output; nobody tells when, so it is looked at."""
        delay = DRAIN_FIRST

        def attempt() -> bool:
            (unsent,) = UNSENT.gives.unpack(_ioctl(handle.fd, UNSENT, b"")[1])
            if unsent:
                return False
            message.on_unblock = None
            then()
            return True

        def look() -> None:
            nonlocal delay
            if not message.answered and not handle.closed:
                handle.waiters.look()
                delay = min(2 * delay, DRAIN_LAST)
                if handle.waiters.queue:
                    self._dispatch.call_at(self._dispatch.now() + delay, look)

        if not attempt():
            self._parking.park(handle.waiters, message, handle, attempt)
            self._dispatch.call_at(self._dispatch.now() + delay, look)


def _ioctl(fd: int, command: TerminalCommand, taken: bytes) -> tuple[int, bytes]:
    """Status and what it gives."""
    if command.by_value:
        (value,) = command.takes.unpack(taken)
        return fcntl.ioctl(fd, command.number, value), b""
    buffer = bytearray(taken.ljust(command.size, b"\0"))
    status = fcntl.ioctl(fd, command.number, buffer if buffer else 0)
    return status, bytes(buffer) if command.gives.size else b""
