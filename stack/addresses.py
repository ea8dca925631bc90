"""Follows the IP addresses of this machine's interfaces, for interfaces of a stack whose link the kernel has too (the packet driver's).

A driver on a Linux interface says so by `linux_index`. What the kernel tells is only that something changed; everything is then asked anew
(`stack.interfaces`), at most once per turn. Linux only: where there is no rtnetlink nothing has addresses.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from typing import Protocol, TypeGuard

from resmgr.dispatch import Dispatch
from stack.capability import capability
from stack.interfaces import RECEIVE_MAX, Rtnetlink, notices

log = logging.getLogger(__name__)


class Addressed(Protocol):
    """An interface as this file needs it."""

    @property
    def driver(self) -> object: ...

    def set_addresses(self, addresses: tuple[str, ...]) -> None: ...


def linux_index(driver: object) -> int:
    """The index of the Linux interface that *driver*, or the one that it is wrapped around, works on; 0 for none."""
    found = capability(driver, _has_index)
    return 0 if found is None else found.linux_index


class _Indexed(Protocol):
    linux_index: int


def _has_index(driver: object) -> TypeGuard[_Indexed]:
    return isinstance(getattr(driver, "linux_index", None), int)


class AddressWatch:
    """Tells *interfaces* their addresses, now, on `look`, and whenever the kernel says that something changed, until `close`."""

    def __init__(self, dispatch: Dispatch, interfaces: Callable[[], Iterable[Addressed]]) -> None:
        """OSError when there is no rtnetlink."""
        self._dispatch = dispatch
        self._interfaces = interfaces
        self._sock: socket.socket | None = notices()
        self._waiting = False
        dispatch.attach_fd(self._sock.fileno(), self._noticed)
        self.look()

    def close(self) -> None:
        """Idempotent."""
        if self._sock is not None:
            self._dispatch.detach_fd(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def look(self) -> None:
        """Ask the kernel at the end of this turn."""
        if not self._waiting:
            self._waiting = True
            self._dispatch.at_turn_end(self._ask)

    def _noticed(self) -> None:
        assert self._sock is not None
        try:
            while self._sock.recv(RECEIVE_MAX):
                pass
        except BlockingIOError:
            pass
        except OSError as error:
            log.debug("notices of addresses: %s", error.strerror)  # ENOBUFS: some are lost, which changes nothing
        self.look()

    def _ask(self) -> None:
        self._waiting = False
        if self._sock is None:
            return
        by_index = [(one, linux_index(one.driver)) for one in self._interfaces()]
        if not any(index for _, index in by_index):
            for one, _ in by_index:
                one.set_addresses(())
            return
        try:
            with Rtnetlink() as kernel:
                known = kernel.addresses()
        except OSError as error:
            log.warning("cannot ask the kernel for addresses: %s", error.strerror)
            return
        for one, index in by_index:
            one.set_addresses(tuple(address.address for address in known if index and address.index == index))
