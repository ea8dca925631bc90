"""Watches one network interface through rtnetlink: address, MTU, carrier, disappearance, and its return under the same name.

The socket belongs to the network namespace in which it was made, as all of the driver's; everything is asked through it and nothing by name
through the process, so a process that moves on to another namespace loses nothing.

The kernel tells a loss of carrier at once if the last change of carrier is over a second ago, and else up to a second late (linkwatch).
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable

from resmgr.dispatch import Dispatch
from resmgr.errors import BadMessage
from stack.linux.rtnetlink import RECEIVE_MAX, find_link
from stack.wire.rtnetlink import RTMGRP_LINK, Link, LinkGone, Refused, get_link, parse_messages

log = logging.getLogger(__name__)

DRAIN_MAX = 64
"""Datagrams per call: interfaces of others may come and go in thousands."""


class LinkMonitor:
    """*changed* is called with the link whenever it was reported, None when it is gone. Silent before `start`. *follows*: says of a link
    whether it is one that is wanted; another of that name is as none."""

    def __init__(
        self, dispatch: Dispatch, changed: Callable[[Link | None], None], follows: Callable[[Link], bool] = lambda link: True
    ) -> None:
        self._follows = follows
        self._strange = 0
        """Index of the one that was told of last as none that is wanted."""
        self._dispatch = dispatch
        self._changed = changed
        self._name = ""
        self._index: int | None = None
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._started = False
        self._stale = False
        """Something may have happened that was not told: ask."""

    def find(self, name: str) -> Link | None:
        """The interface called *name*, which is then the one that is watched; None when there is none. Answered by the kernel at once."""
        self._name = name
        self._sock.bind((0, RTMGRP_LINK))
        link = find_link(self._sock, name)
        if link is not None:
            self._index = link.index
        return link

    def start(self) -> None:
        self._started = True
        self._dispatch.attach_fd(self._sock.fileno(), self._readable)

    def close(self) -> None:
        """Idempotent."""
        if self._started:
            self._started = False
            self._dispatch.detach_fd(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        for _ in range(DRAIN_MAX):
            try:
                data = self._sock.recv(RECEIVE_MAX)
            except BlockingIOError:
                if not self._stale:
                    return
                # Only now: the kernel drops answers as well while a queue that overflowed is not empty.
                self._stale = False
                self._ask()
                continue
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._stale = True
                continue
            try:
                for message in parse_messages(data):
                    self._take(message)
                    if not self._started:
                        return
            except BadMessage:
                self._stale = True
        self._dispatch.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._started:
            self._readable()

    def _ask(self) -> None:
        """Reports were lost: the answer to this is one."""
        self._sock.send(get_link(self._name if self._index is None else None, self._index or 0))

    def _take(self, message: Link | LinkGone | Refused) -> None:
        if isinstance(message, Link):
            mine = message.index == self._index or (self._index is None and message.name == self._name)
            if mine and self._follows(message):
                self._index = message.index
                self._changed(message)
            elif mine:
                self._pass_over(message)
        elif isinstance(message, LinkGone):
            if message.index == self._index:
                self._lost()
        elif message.code == errno.ENODEV and self._index is not None:
            self._lost()

    def _pass_over(self, link: Link) -> None:
        if link.index != self._strange:
            self._strange = link.index
            log.warning("interface %s is now one of another kind (device type %d): waiting until it is as it was", link.name, link.kind)
        if link.index == self._index:
            self._index = None
            self._changed(None)

    def _lost(self) -> None:
        self._index = None
        self._stale = True  # it may have come back already, in a report that was dropped
        self._changed(None)
