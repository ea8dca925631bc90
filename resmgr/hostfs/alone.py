"""Directories that one node has to itself (docs/protocol/delegation.md): no other node looks at what is in them, or changes it, before that
node was asked.

A delegation of a directory belongs to a base handle of it, and is granted while no other node has any handle of it. From then on an
operation of another node that begins there, crosses it, removes or moves it, or would bring a handle of it, waits until it was given back.
Where names cannot be looked at, since a file system may not answer, all that others have to themselves is recalled. Programs of this
machine are not held up: nothing of its kernel's does that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from resmgr.hostfs.made import Opened
from resmgr.hostfs.objects import HostClient, HostHandle
from resmgr.iomsg import UNLINK_DIRECTORY, Connect

if TYPE_CHECKING:
    from resmgr.iorequest import ConnectRequest

HELD_OFF: Final = 0.2
"""Seconds after somebody waited for a directory in which none is delegated; more than `iofunc.delegations.AGAIN`, so nobody gets one while
others wait. Stops who gives back late, and asks again at once, from holding others up until they are told EAGAIN."""
HANDLES_LOOKED_AT: Final = 65536
"""Handles of a manager that are looked through for others of a directory; none is delegated if there are more."""
LOOK_REST: Final = 2e-6
LOOK_AHEAD: Final = 0.2
"""A handle takes 0.1 us to look at, and LOOK_REST seconds of what may be spent; who has spent LOOK_AHEAD beforehand is refused. So who asks
for directories all the time takes a twentieth of this daemon's time."""
CROSSED_MAX: Final = 16
"""Directories that a path leads through and that are looked at; of a longer one it is not known where it leads."""
_LINK: Final = int(Connect.LINK)
_RENAME: Final = int(Connect.RENAME)
_RMDIR: Final = int(Connect.RMDIR)
_UNLINK: Final = int(Connect.UNLINK)
_STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
Key = tuple[int, int]
"""st_dev, st_ino."""


class Alone:
    """Which directories, and whose each is."""

    def __init__(self) -> None:
        self._nodes: dict[Key, str] = {}
        self.not_before = 0.0
        """None is delegated until then (`Dispatch.now`)."""
        self._spent = 0.0
        """Until when what was spent on looking through handles lasts."""

    def __bool__(self) -> bool:
        return bool(self._nodes)

    def take(self, key: Key, node: str) -> bool:
        """It is *node*'s from now on; False if it is somebody's already."""
        if key in self._nodes:
            return False
        self._nodes[key] = node
        return True

    def give(self, key: Key) -> None:
        """It is nobody's."""
        self._nodes.pop(key, None)

    def unshared(self, handle: HostHandle, clients: Iterable[HostClient], now: float) -> bool:
        """Whether no other node than that of *handle*'s client, of all *clients*, has a handle of that directory. False, too, if that was
        asked too much before *now*."""
        client = handle.client
        if client is None or self._spent > now + LOOK_AHEAD:
            return False
        others = [other for other in clients if other.info.node != client.info.node]
        looked = sum(len(other.handles) for other in others)
        if looked > HANDLES_LOOKED_AT:
            return False
        self._spent = max(self._spent, now) + looked * LOOK_REST
        key = key_of(handle)
        return not any(isinstance(one, HostHandle) and one.directory and key_of(one) == key for other in others for one in other.handles)

    def of_others(self, client: HostClient) -> list[Key]:
        """All that other nodes than *client*'s have to themselves."""
        node = client.info.node
        return [key for key, holder in self._nodes.items() if holder != node]

    def in_the_way(self, client: HostClient, base: HostHandle, second: object, request: ConnectRequest, inline: bool) -> list[Key] | None:
        """What other nodes have to themselves of which *request* of *client*, from *base* and perhaps *second*, has to wait; None: that
        cannot be known. *inline*: their file systems answer at once, so names may be looked at."""
        node = client.info.node
        nodes = self._nodes
        for place in (base, second):
            if isinstance(place, HostHandle) and nodes.get(key_of(place), node) != node:
                return [key_of(place)]
        subtype = request.subtype
        places = [(base, request.path)]
        if isinstance(second, HostHandle) and subtype in (_RENAME, _LINK):
            places.append((second, request.path2))
        displaces = subtype in (_RENAME, _RMDIR) or (subtype == _UNLINK and bool(request.flags & UNLINK_DIRECTORY))
        met: list[Key] = []
        for place, path in places:
            depth = path.count(b"/")
            if not depth and not displaces:
                continue
            if not inline or depth > CROSSED_MAX:
                return None
            met += [key for key in _crossed(place.fd, path.split(b"/"), displaces) if nodes.get(key, node) != node]
        return met

    def of_opened(self, client: HostClient, opened: Opened) -> Key | None:
        """What another node has to itself of the handles that are about to be given to *client*."""
        for handle in (opened.node, opened.ocb):
            if handle is not None and handle.directory and self._nodes.get(key_of(handle), client.info.node) != client.info.node:
                return key_of(handle)
        return None


def _crossed(fd: int, names: list[bytes], last: bool) -> list[Key]:
    """The directories below *fd* through which *names* lead, and if *last* that to which, as far as this daemon can look: what it cannot is
    neither opened nor removed or moved by it."""
    crossed: list[Key] = []
    here = fd
    try:
        for name in names[:-1]:
            below = os.open(name, _STEP, dir_fd=here)
            if here != fd:
                os.close(here)
            here = below
            status = os.fstat(here)
            crossed.append((status.st_dev, status.st_ino))
        if last:
            status = os.stat(names[-1], dir_fd=here, follow_symlinks=False)
            crossed.append((status.st_dev, status.st_ino))
    except OSError:
        pass
    finally:
        if here != fd:
            os.close(here)
    return crossed


def key_of(handle: HostHandle) -> Key:
    """What the directory of *handle* is known by."""
    return handle.device.number, handle.inode
