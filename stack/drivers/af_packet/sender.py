"""Sending through a packet socket: plain send for few frames, sendmmsg through ctypes for many.

The message headers are built once; per frame one address and one length are written into the iovecs: frames are sent from where they
lie. The data of a `bytes` object begins at a fixed distance from its address (`bytes.__basicsize__ - 1`, checked when a sender is made); a
buffer that can be written, as a ring is, tells where it lies. What tells nothing, a view of `bytes`, is copied into a slot. The caller's
list keeps the frames alive meanwhile. `copied` counts the copies.

The function is called without letting go of the interpreter lock (PyDLL): the call never blocks, and handing the lock to a worker thread
here could cost a switch interval of 5 ms.
"""

from __future__ import annotations

import ctypes
import errno
import socket
from typing import Final

from stack.frame import Frame
from stack.linux import mmsg
from stack.linux.constants import MSG_DONTWAIT

PLAIN_MAX: Final = 3
"""Up to here one send per frame is cheaper (docs/decisions/packet-io.md)."""
SLOTS: Final = 64


class Sender:
    """Sends batches on *sock*, which is non-blocking. *room*: longest frame that may have to be copied."""

    def __init__(self, sock: socket.socket, room: int) -> None:
        self._sock = sock
        self._stride = (room + 63) // 64 * 64
        slots = bytearray(self._stride * SLOTS)
        iovecs = bytearray(mmsg.IOVEC.size * SLOTS)
        headers = mmsg.headers(SLOTS, mmsg.address(iovecs))
        self._slots = memoryview(slots)
        self._slots_address = mmsg.address(slots)
        self._iovecs = memoryview(iovecs).cast("L")
        self._keep = headers
        self._headers = ctypes.c_void_p(mmsg.address(headers))
        self._sendmmsg = ctypes.PyDLL(None, use_errno=True).sendmmsg
        self._data = _data_offset()
        self.copied = 0

    @property
    def copies(self) -> bool:
        """`bytes` are copied too: this interpreter lays them out differently."""
        return self._data is None

    def send(self, frames: list[Frame], start: int) -> tuple[int, int]:
        """Send `frames[start:]`, in order, as far as it goes. How many went out, and the errno of the next (0: not tried, or all sent)."""
        if len(frames) - start <= PLAIN_MAX:
            return self._send_plain(frames, start)
        sent = 0
        while start < len(frames):
            part = frames[start : start + SLOTS]
            held = self._fill(part)
            count = self._sendmmsg(self._sock.fileno(), self._headers, len(part), MSG_DONTWAIT)
            del held
            if count < 0:
                return sent, ctypes.get_errno()
            # Fewer than asked for: the next round learns why.
            sent += count
            start += count
        return sent, 0

    def _send_plain(self, frames: list[Frame], start: int) -> tuple[int, int]:
        send = self._sock.send
        for place in range(start, len(frames)):
            try:
                send(frames[place])
            except OSError as error:
                return place - start, error.errno or errno.EIO
        return len(frames) - start, 0

    def _fill(self, part: list[Frame]) -> list[ctypes.c_char]:
        """Write the iovecs. Returns what keeps buffers in place until the call is over."""
        iovecs, data = self._iovecs, self._data
        held: list[ctypes.c_char] = []
        place = 0
        if data is not None and set(map(type, part)) == {bytes}:
            for frame in part:
                iovecs[place] = id(frame) + data
                iovecs[place + 1] = len(frame)
                place += 2
            return held
        lies, addressof = ctypes.c_char.from_buffer, ctypes.addressof
        for number, frame in enumerate(part):
            try:
                if isinstance(frame, bytes):
                    iovecs[place] = self._place_of(frame, number)
                else:
                    buffer = lies(frame)
                    held.append(buffer)
                    iovecs[place] = addressof(buffer)
            except (TypeError, ValueError):
                iovecs[place] = self._copy(frame, number)
            iovecs[place + 1] = len(frame)
            place += 2
        return held

    def _place_of(self, frame: bytes, number: int) -> int:
        return self._copy(frame, number) if self._data is None else id(frame) + self._data

    def _copy(self, frame: Frame, number: int) -> int:
        """Into the slot *number*; where that is."""
        self.copied += 1
        offset = number * self._stride
        self._slots[offset : offset + len(frame)] = frame
        return self._slots_address + offset


def _data_offset() -> int | None:
    """Where the data of a `bytes` object begins, counted from its `id`; None when this interpreter does not have it there."""
    offset = bytes.__basicsize__ - 1
    probe = bytes(range(7, 207))
    try:
        found = ctypes.string_at(id(probe) + offset, len(probe)) == probe
    except (ValueError, OSError):
        return None
    return offset if found else None
