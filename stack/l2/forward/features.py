"""Whether a Linux interface accepts bare frames, asked of the kernel and followed."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable

from resmgr.dispatch import Dispatch
from resmgr.errors import BadMessage
from stack.linux.rtnetlink import RECEIVE_MAX
from stack.wire.netdev import (
    GROUP_DEVICES,
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_GENERIC,
    SOL_NETLINK,
    XdpFeature,
    get_device,
    get_family,
    parse_device,
    parse_family,
)

DRAIN_MAX = 64


class DeviceFeatures:
    """`features` of the interface *index* in the network namespace of the thread that makes this; *changed* is called when they change.

    A kernel that cannot tell (before 6.3) has none. `close` it.
    """

    def __init__(self, dispatch: Dispatch, index: int, changed: Callable[[], None]) -> None:
        self.features = XdpFeature(0)
        self._family = 0
        self._stale = False
        """Changes were lost: ask."""
        self._dispatch = dispatch
        self._index = index
        self._changed = changed
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, NETLINK_GENERIC)
        try:
            self._sock.send(get_family("netdev"))
            family = parse_family(self._sock.recv(RECEIVE_MAX))
            self._family = family.kind
            self._sock.send(get_device(self._family, index))
            self.features = parse_device(self._sock.recv(RECEIVE_MAX)).features
            if GROUP_DEVICES in family.groups:
                self._sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, family.groups[GROUP_DEVICES])
        except (OSError, BadMessage):
            # It answers at once or never will: no such family, or the interface is gone, which others notice.
            self._sock.close()
        else:
            dispatch.attach_fd(self._sock.fileno(), self._readable)

    def close(self) -> None:
        """Idempotent."""
        if self._sock.fileno() >= 0:
            self._dispatch.detach_fd(self._sock.fileno())
            self._sock.close()

    def _readable(self) -> None:
        before = self.features
        for _ in range(DRAIN_MAX):
            try:
                data = self._sock.recv(RECEIVE_MAX)
            except BlockingIOError:
                if not self._stale:
                    break
                # Only now: the kernel drops answers as well while a queue that overflowed is not empty.
                self._stale = False
                with contextlib.suppress(OSError):
                    self._sock.send(get_device(self._family, self._index))
                continue
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    break
                self._stale = True
                continue
            try:
                device = parse_device(data)
            except (OSError, BadMessage):
                continue  # the interface is gone, which others notice
            if device.index == self._index:
                self.features = device.features
        if self.features != before and self._sock.fileno() >= 0:
            self._changed()
