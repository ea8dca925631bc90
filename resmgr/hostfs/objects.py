"""Clients and handles of the host file system. A handle is a descriptor, the export scope it was reached by, and how it was opened."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from resmgr.access import Scope
from resmgr.channel import ClientInfo
from resmgr.hostfs.device import Device
from resmgr.hostfs.directory import DirectoryStream
from resmgr.hostfs.identity import Identity
from resmgr.iofunc.handle import Client, Handle

if TYPE_CHECKING:
    from resmgr.hostfs.operations import Operations


class HostHandle(Handle):
    """A base handle (O_PATH descriptor) or an open control block. Owns its descriptor."""

    __slots__ = (
        "after_close",
        "append",
        "device",
        "directory",
        "fd",
        "inode",
        "place",
        "readable",
        "reopened",
        "scope",
        "stream",
        "writable",
    )

    def __init__(self, fd: int, scope: Scope, device: Device, directory: bool, flags: int = os.O_PATH) -> None:
        super().__init__()
        self.fd = fd
        self.scope = scope
        self.device = device
        self.directory = directory
        self.inode = 0
        """st_ino, once known."""
        self.place: tuple[int, bytes] | None = None
        """A file's directory (`ino`) and name, as it was opened."""
        self.after_close: Callable[[], None] | None = None
        self.reopened = False
        """By a token: its client had it open before."""
        access = flags & os.O_ACCMODE
        opened = not flags & os.O_PATH
        self.readable = opened and access != os.O_WRONLY
        self.writable = opened and access != os.O_RDONLY
        self.append = opened and bool(flags & os.O_APPEND)
        self.stream = DirectoryStream(fd) if opened and directory else None

    @property
    def regular(self) -> bool:
        """Not a directory, device or FIFO."""
        return not self.directory

    @property
    def ino(self) -> int:
        """The inode number that clients are told."""
        return self.inode ^ self.device.salt

    def release(self) -> None:
        lane = self.device.lane
        if lane.patient and (self.readable or self.writable):
            # Closing writes back, or asks the file system's server: it waits as a write does.
            lane.submit(partial(os.close, self.fd), lambda _: None)
        else:
            os.close(self.fd)
            if self.after_close is not None:
                self.after_close()


class HostClient(Client):
    """A client with what the policy says of it. `root` stands for handle 0 and owns no descriptor."""

    __slots__ = ("expires", "identity", "ops", "root")

    def __init__(self, info: ClientInfo) -> None:
        super().__init__(info)
        self.expires = 0.0
        self.identity: Identity | None = None
        self.ops: Operations | None = None
        self.root: HostHandle | None = None


class Leased(BlockingIOError):
    """A file of which somebody has a delegation, or a lease, would be waited for in the kernel. *key*: st_dev, st_ino."""

    def __init__(self, key: tuple[int, int]) -> None:
        super().__init__(errno.EAGAIN, "somebody has a delegation of it")
        self.key = key


class Busy:
    """What a worker thread met: an EAGAIN of open(2), or `Leased`."""

    __slots__ = ("errno", "key")

    def __init__(self, error: BlockingIOError) -> None:
        self.errno = error.errno or errno.EAGAIN
        self.key: tuple[int, int] | None = error.key if isinstance(error, Leased) else None

    def discard(self) -> None:
        """There is nothing to be given back."""
