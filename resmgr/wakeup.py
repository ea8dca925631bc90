"""What ends a dispatch's wait from outside: `WakeUp`, for calls of other threads, and `Alarm`, for timers. Each is a descriptor."""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from resmgr.turns import Call

NEVER = float("inf")
_CLOCK_MONOTONIC: Final = 1
_TFD_TIMER_ABSTIME: Final = 1


class WakeUp:
    """An eventfd, and the calls that other threads posted."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.posts = 0
        self._posted: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._signalled = False
        self._lock = threading.Lock()

    def post(self, call: Call) -> None:
        """Any thread. After close the call is dropped: there is nobody left to run it."""
        self._posted.put(call)
        self.posts += 1
        self.signal()

    def signal(self) -> None:
        if not self._signalled:
            with self._lock:
                self._signalled = True
                if self.fd >= 0:
                    os.eventfd_write(self.fd, 1)

    def drained_into(self, sink: Callable[[Call], None]) -> Call:
        def drain() -> None:
            try:
                os.eventfd_read(self.fd)
            except BlockingIOError:
                pass
            # Lowered before draining: a post after this signals again.
            self._signalled = False
            posted = self._posted
            while True:
                try:
                    sink(posted.get_nowait())
                except queue.Empty:
                    return

        return drain

    def close(self) -> None:
        with self._lock:
            os.close(self.fd)
            self.fd = -1


class Alarm:
    """A timerfd on CLOCK_MONOTONIC, which is `time.monotonic`'s clock. Python has it from 3.13 on; before, glibc is called directly."""

    def __init__(self) -> None:
        self.armed = NEVER
        if sys.version_info >= (3, 13):
            self.fd = os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)
        else:
            libc = ctypes.PyDLL(None, use_errno=True)
            self.fd = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
            if self.fd < 0:
                raise OSError(ctypes.get_errno(), "timerfd_create")
            self._value = (ctypes.c_long * 4)()
            self._settime = libc.timerfd_settime
            self._settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
            self._address = ctypes.addressof(self._value)

    def set(self, when: float) -> None:
        self.armed = when
        when = max(when, 1e-9)  # zero would disarm it
        if sys.version_info >= (3, 13):
            os.timerfd_settime(self.fd, flags=os.TFD_TIMER_ABSTIME, initial=when)
        else:
            seconds = int(when)
            self._value[2] = seconds
            self._value[3] = int((when - seconds) * 1e9) or (seconds == 0)
            if self._settime(self.fd, _TFD_TIMER_ABSTIME, self._address, None) < 0:
                raise OSError(ctypes.get_errno(), "timerfd_settime")

    def rang(self) -> None:
        self.armed = NEVER
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass

    def close(self) -> None:
        os.close(self.fd)
