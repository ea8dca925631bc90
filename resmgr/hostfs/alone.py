"""Directories that one node has to itself (docs/protocol/delegation.md): no other node looks at what is in them, or changes it, before that
node was asked.

A delegation of a directory belongs to a base handle of it, and is granted while no other node has any handle of it. From then on an
operation of another node that begins there, removes or moves it, or would bring a handle of it, waits until it was given back. Of one that
names more than one component it is not looked up where it leads: all that others have to themselves is recalled. Programs of this machine
are not held up: nothing of its kernel's does that.
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
_LINK: Final = int(Connect.LINK)
_RENAME: Final = int(Connect.RENAME)
_RMDIR: Final = int(Connect.RMDIR)
_UNLINK: Final = int(Connect.UNLINK)
Key = tuple[int, int]
"""st_dev, st_ino."""


class Alone:
    """Which directories, and whose each is."""

    def __init__(self) -> None:
        self._nodes: dict[Key, str] = {}
        self.not_before = 0.0
        """None is delegated until then (`Dispatch.now`)."""

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

    def in_the_way(self, client: HostClient, base: HostHandle, second: object, request: ConnectRequest, inline: bool) -> list[Key]:
        """What other nodes have to themselves of which *request* of *client*, from *base* and perhaps *second*, has to wait. *inline*:
        their file systems answer at once, so names may be looked at."""
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
        if any(path.find(b"/") >= 0 for _, path in places) or (displaces and not inline):
            return [key for key, holder in nodes.items() if holder != node]
        if displaces:
            led = [_leads_to(place, name) for place, name in places]
            return [key for key in led if key is not None and nodes.get(key, node) != node]
        return []

    def of_opened(self, client: HostClient, opened: Opened) -> Key | None:
        """What another node has to itself of the handles that are about to be given to *client*."""
        for handle in (opened.node, opened.ocb):
            if handle is not None and handle.directory and self._nodes.get(key_of(handle), client.info.node) != client.info.node:
                return key_of(handle)
        return None


def unshared(handle: HostHandle, clients: Iterable[HostClient]) -> bool:
    """Whether no other node than that of *handle*'s client, of all *clients*, has a handle of that directory."""
    client = handle.client
    if client is None:
        return False
    key, node = key_of(handle), client.info.node
    looked = 0
    for other in clients:
        if other.info.node == node:
            continue
        looked += len(other.handles)
        if looked > HANDLES_LOOKED_AT:
            return False
        if any(isinstance(one, HostHandle) and one.directory and key_of(one) == key for one in other.handles):
            return False
    return True


def _leads_to(place: HostHandle, name: bytes) -> Key | None:
    try:
        status = os.stat(name, dir_fd=place.fd, follow_symlinks=False)
    except OSError:
        # What cannot be looked at by this daemon is neither removed nor moved by it.
        return None
    return status.st_dev, status.st_ino


def key_of(handle: HostHandle) -> Key:
    """What the directory of *handle* is known by."""
    return handle.device.number, handle.inode
