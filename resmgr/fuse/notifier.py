"""What a daemon has done to its mounts by another process, since the kernel may have to wait for it.

A thread that waits there can neither be killed nor let go of its files, and as long as /dev/fuse is open nobody is told that the daemon is
gone. docs/decisions/fuse-notifier.md. Run as a script by the daemon's interpreter, without site and without an environment;
`notifying.Helper` is its other end.

    notifier.py CONTROL entries DEVICE SIZE      writes notifications, mostly of changed entries
    notifier.py CONTROL pages PLACE [NAMESPACE]  has the kernel drop pages, by opening their file

*entries* has a /dev/fuse of its own (FUSE_DEV_IOC_CLONE), and none of the daemon's files. So when the daemon is killed the kernel ends what
the daemon had read and not answered, what waited here goes on, and the connection ends with this process. What nobody had read is answered
here, with ECONNABORTED; if this process was killed, too, the programs of a killed machine take it back themselves.

*pages* has no /dev/fuse at all, because of read-ahead that the daemon had not read yet: no program waits for that and can take it back, so
it keeps pages locked until the last /dev/fuse is closed. Whoever opens a file has its pages dropped, if the answer to OPEN does not say
otherwise.

Packets of the control socket: number u64 (native), then notifications, each with its length first, as fuse(4) has them; or a nodeid u64.
Answered by the number and, u32, how many failed, or with what errno. `PING` as number is answered by itself. `LEAVE` as number: somebody
else serves the mount from now on, so nothing is answered here when the socket ends. At its start each thread answers `HERE` and its number,
by which its requests are known. The process ends when the socket has, and all its threads are back from the kernel.

Imports nothing of ours.
"""

from __future__ import annotations

import _socket
import _thread
import errno
import os
import select
import signal
import struct
import sys

TYPE_CHECKING = False  # a type checker takes it for true; to import `typing` would be a third of what starting this takes
if TYPE_CHECKING:
    from collections.abc import Callable

NUMBER = struct.Struct("=Q")
ANSWER = struct.Struct("=QI")
LEAVE = HERE = (1 << 64) - 1
PING = LEAVE - 1
JOBS = 8
"""As many packets as can be waited for at once."""
THREADS = JOBS + 1
"""One never waits in the kernel, and answers PING."""
STACK = 256 * 1024
PACKET_MAX = 8192
"""Bytes of a packet; so all that are under way at once fit into a socket."""

_LENGTH = struct.Struct("=I")
_REQUEST = struct.Struct("=IIQ")
_REPLY = struct.Struct("=IiQ")
_HANDLE = struct.Struct("=IiIII")
"""struct file_handle of a FUSE file system (FILEID_INO64_GEN): nodeid, upper half first, and generation, which is always 0 here."""
_HANDLE_BYTES, _HANDLE_TYPE = 12, 0x81
_UNANSWERED = (2, 36, 42)
"""FORGET, INTERRUPT, BATCH_FORGET."""
_NOTHING_LOST = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR)
"""Of a notification: the kernel does not know it, so nothing was to be forgotten."""


def write_all(device: int, messages: memoryview) -> int:
    """Write each notification; how many failed."""
    failed = 0
    while len(messages) >= _LENGTH.size:
        length = max(_LENGTH.unpack_from(messages)[0], _LENGTH.size)
        try:
            os.write(device, messages[:length])
        except OSError as error:
            if error.errno not in _NOTHING_LOST:
                failed += 1
        messages = messages[length:]
    return failed


class Threads:
    """Each takes a packet, does what it says, and answers. The last one that finds the socket ended ends the process; the first one does
    what is to be done until then, *meanwhile*, unless somebody else serves the mount."""

    def __init__(self, control: _socket.socket, perform: Callable[[memoryview], int], meanwhile: Callable[[], None]) -> None:
        self._control = control
        self._perform = perform
        self._meanwhile = meanwhile
        self._receiving = _thread.allocate_lock()
        """For `_left` and `_threads`, and held while waiting for a packet: who finds the end has seen all that came before it."""
        self._left = False
        self._threads = THREADS

    def start(self) -> None:
        """Never returns."""
        _thread.stack_size(STACK)
        try:
            for _ in range(THREADS - 1):
                _thread.start_new_thread(self._work, ())
        except RuntimeError:
            # No room for them. The daemon sees, and says, that this one has ended.
            os._exit(1)
        self._work()

    def _work(self) -> None:
        self._answer(HERE, _thread.get_native_id())
        while packet := self._next():
            (number,) = NUMBER.unpack_from(packet)
            self._answer(number, 0 if number == PING else self._perform(memoryview(packet)[NUMBER.size :]))
        with self._receiving:
            first = self._threads == THREADS
            self._threads -= 1
            if not self._threads:
                os._exit(0)
        if first and not self._left:
            self._meanwhile()
        # The process would end with its main thread.
        forever = _thread.allocate_lock()
        forever.acquire()
        forever.acquire()

    def _next(self) -> bytes:
        """A packet that is to be carried out; empty: the socket has ended."""
        with self._receiving:
            while True:
                try:
                    packet = self._control.recv(PACKET_MAX)
                except OSError:
                    return b""
                if not packet or NUMBER.unpack_from(packet)[0] != LEAVE:
                    return packet
                self._left = True

    def _answer(self, number: int, result: int) -> None:
        try:
            self._control.send(ANSWER.pack(number, result))
        except OSError:
            pass  # nobody is there any more: so says the next recv


class Entries:
    """Writes notifications to a /dev/fuse."""

    def __init__(self, device: int, buffer_size: int) -> None:
        self._device = device
        self._size = buffer_size

    def perform(self, messages: memoryview) -> int:
        return write_all(self._device, messages)

    def meanwhile(self) -> None:
        """Answer what nobody else will, until the connection ends."""
        buffer = bytearray(self._size)
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        while poll.poll() and self._refuse(buffer):
            pass

    def _refuse(self, buffer: bytearray) -> bool:
        """Read one request and say that there is nobody. False: the connection has ended."""
        try:
            os.readv(self._device, [buffer])
            _, opcode, unique = _REQUEST.unpack_from(buffer)
            if opcode not in _UNANSWERED:
                os.write(self._device, _REPLY.pack(_REPLY.size, -errno.ECONNABORTED, unique))
        except OSError as error:
            return error.errno not in (errno.ENODEV, errno.ECONNABORTED)
        return True


class Pages:
    """Opens files of a mount by their nodeids."""

    def __init__(self, place: bytes) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        self._open = libc.open_by_handle_at
        self._errno = ctypes.get_errno
        self._place = place

    def perform(self, packet: memoryview) -> int:
        (nodeid,) = NUMBER.unpack_from(packet)
        try:
            # Not kept open: the mount could not be removed meanwhile.
            mount = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            return error.errno or errno.EIO
        try:
            handle = _HANDLE.pack(_HANDLE_BYTES, _HANDLE_TYPE, nodeid >> 32, nodeid & 0xFFFFFFFF, 0)
            found = self._open(mount, handle, os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)
            if found < 0:
                return self._errno() or errno.EIO
            os.close(found)
        finally:
            os.close(mount)
        return 0

    def meanwhile(self) -> None:
        """What waits here waits for a connection that nobody serves, and ends with it."""


def enter(namespace: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the namespace of the mount")


def main(arguments: list[str]) -> None:
    # Its end is that of the socket, also when the terminal or the service ends both.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    control = _socket.socket(fileno=int(arguments[0]))
    does: Entries | Pages
    if arguments[1] == "entries":
        does = Entries(int(arguments[2]), int(arguments[3]))
    else:
        for namespace in arguments[3:]:
            enter(int(namespace))
        does = Pages(os.fsencode(arguments[2]))
    os.chdir("/")
    Threads(control, does.perform, does.meanwhile).start()


if __name__ == "__main__":
    main(sys.argv[1:])
