"""Notices that this machine may have been resumed from a snapshot: what was in memory then may be in another machine's memory too.

Two signs. The kernel says that the virtual machine has a new generation id (vmgenid; a uevent since Linux 6.10): then there may be a copy
with our session keys, and `on_clone` is called. Or the wall clock has jumped against the monotonic one, as after a snapshot, a suspension,
or when somebody set the clock: then `on_jump`, which should cost little, because it mostly was the clock.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable

from resmgr.dispatch import Dispatch, Timer

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
JUMP = 10.0
"""Seconds by which the clocks must part between two looks."""
MESSAGES_MAX = 64
"""Uevents read per turn; the rest waits for the next."""
_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_NEW_GENERATION = b"NEW_VMGENID=1"


class ResumeWatch:
    """Watches until `close`. Both calls come in dispatch context."""

    def __init__(self, dispatch: Dispatch, on_clone: Callable[[], None], on_jump: Callable[[float], None], *, uevents: bool = True) -> None:
        """*uevents*: listen to the kernel; without, whoever knows of a copy calls `on_clone`."""
        self._dispatch = dispatch
        self._on_clone = on_clone
        self._on_jump = on_jump
        self._offset = dispatch.wall() - dispatch.now()
        self._timer: Timer | None = dispatch.call_at(dispatch.now() + LOOK_EVERY, self._look)
        self._socket = _uevents() if uevents else None
        if self._socket is not None:
            dispatch.attach_fd(self._socket.fileno(), self._readable)

    def close(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._dispatch.detach_fd(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _look(self) -> None:
        offset = self._dispatch.wall() - self._dispatch.now()
        jump, self._offset = offset - self._offset, offset
        self._timer = self._dispatch.call_at(self._dispatch.now() + LOOK_EVERY, self._look)
        if abs(jump) > JUMP:
            self._on_jump(jump)

    def _readable(self) -> None:
        for _ in range(MESSAGES_MAX):
            if self._socket is None:
                return
            try:
                message, (sender, _) = self._socket.recvfrom(8192)
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS: some were lost; the clock is the other sign
            if sender == 0 and is_new_generation(message):
                self._on_clone()


def is_new_generation(message: bytes) -> bool:
    """Whether a uevent says that the virtual machine has another generation id: `change@...`, then NUL-separated settings."""
    head, *settings = message.split(b"\0")
    return head.startswith(b"change@") and _NEW_GENERATION in settings


def _uevents() -> socket.socket | None:
    """The kernel's uevents. None where they may not be heard: an ordinary container."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT)
        sock.bind((0, _KERNEL_GROUP))
    except OSError as error:
        log.info("resumed snapshots are told by the clock only: no uevents: %s", error.strerror or os.strerror(error.errno or 0))
        return None
    return sock
