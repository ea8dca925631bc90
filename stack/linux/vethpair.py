"""A veth pair of Linux: two interfaces that are the ends of one cable, one of them perhaps in another network namespace.

Made and removed through one rtnetlink socket, which belongs to the namespace in which it was made, as the near end does.

A process that is killed leaves its pair behind. The near end's alias (`ip link` shows it) says which process made it, so that the next one
that wants those names removes it, and only it: one whose maker is at work, or cannot be seen from here, or that somebody else made, is
in the way.
"""

from __future__ import annotations

import errno
import logging
import os
import socket

from stack.linux.namespace import inside
from stack.linux.rtnetlink import ask, find_link
from stack.wire.rtnetlink import End, delete_link, new_veth, switch_on

log = logging.getLogger(__name__)

NAMESPACES = "/run/netns"
"""Where ip-netns(8) keeps names."""
MAKER = "made by io-pkt, process"
"""How the alias of a near end begins."""


def open_namespace(name: str) -> int:
    """A descriptor of a network namespace: a name of ip-netns(8), a process number, or a path. OSError with a sentence."""
    path = name if "/" in name else f"/proc/{name}/ns/net" if name.isascii() and name.isdigit() else f"{NAMESPACES}/{name}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno or errno.EIO, f"there is no network namespace {name}: {path}: {error.strerror}") from error


class VethPair:
    """See the head of this file. Both ends are switched on. OSError with a sentence when that does not work; then nothing is left."""

    def __init__(self, near: End, far: End, mtu: int) -> None:
        what = f"the veth pair {near.name} and {far.name}"
        self._sock = _netlink()
        try:
            _remove_left_over(self._sock, near.name)
            _ask(self._sock, new_veth(near, far, mtu), f"cannot make {what}")
            self.index = self._index(near.name)
            try:
                _ask(self._sock, switch_on(near.name, _maker(os.getpid())), f"cannot switch {near.name} on")
                with _netlink() if far.namespace is None else _netlink_in(far.namespace) as there:
                    _ask(there, switch_on(far.name), f"cannot switch {far.name} on")
            except BaseException:
                self.remove()
                raise
        except BaseException:
            self._sock.close()
            raise

    def remove(self) -> None:
        """Remove both ends. Idempotent; harmless when they are gone already."""
        if self._sock.fileno() >= 0:
            try:
                ask(self._sock, delete_link(self.index))
            except OSError:
                pass
            self._sock.close()

    def _index(self, name: str) -> int:
        link = find_link(self._sock, name)
        if link is None:
            raise OSError(errno.ENODEV, f"the interface {name} is gone again")
        return link.index


def _maker(pid: int) -> str:
    """A process that makes a pair, so that no other is taken for it: with when it began, and the namespace that its number is of. Empty
    when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            began = file.read().rpartition(")")[2].split()[19]
        return f"{MAKER} {pid} {began} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _remove_left_over(sock: socket.socket, name: str) -> None:
    """Remove the pair with the near end *name* if its maker is no more. OSError when that is at work."""
    link = find_link(sock, name)
    words = [] if link is None or not link.alias.startswith(f"{MAKER} ") else link.alias[len(MAKER) + 1 :].split()
    if link is None or len(words) != 3 or not words[0].isdecimal():
        return
    if words[2] != str(os.stat("/proc/self/ns/pid").st_ino):
        raise OSError(errno.EEXIST, f"{name} was made by an io-pkt that cannot be seen from here: ip link delete {name}, if it ended")
    if _maker(int(words[0])) == link.alias:
        raise OSError(errno.EEXIST, f"{name} was made by process {words[0]}, an io-pkt that is at work")
    _ask(sock, delete_link(link.index), f"cannot remove {name}, which an io-pkt left that was killed")
    log.info("%s was left by process %s, which was killed: removed", name, words[0])


def _netlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


def _netlink_in(namespace: int) -> socket.socket:
    """A socket of another namespace: it stays where it was made."""
    try:
        with inside(namespace):
            return _netlink()
    except OSError as error:
        code = error.errno or errno.EIO
        raise OSError(code, f"cannot enter the network namespace: {_why(code)}") from error


def _ask(sock: socket.socket, request: bytes, failure: str) -> None:
    try:
        ask(sock, request)
    except OSError as error:
        code = error.errno or errno.EIO
        raise OSError(code, f"{failure}: {_why(code)}") from error


def _why(code: int) -> str:
    if code == errno.EPERM:
        return "this needs root, or the capabilities CAP_NET_ADMIN and, for another namespace, CAP_SYS_ADMIN"
    if code == errno.EEXIST:
        return "there is an interface of that name already"
    if code == errno.EOPNOTSUPP:
        return "this kernel has no veth (module not loaded or not built)"
    return os.strerror(code)
