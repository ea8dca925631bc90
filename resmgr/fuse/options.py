"""Options of a mount: what the kernel is told, and how it is answered."""

from __future__ import annotations

import enum

import attrs


class Permissions(enum.Enum):
    """Who checks permissions (docs/decisions/fuse-permissions.md)."""

    KERNEL_AND_SERVER = "kernel+server"
    """The kernel checks the modes and owners it was told (mount option default_permissions), and the server checks again."""
    SERVER = "server"
    """Only the server checks: for trees whose owners are other people's numbers."""


@attrs.frozen
class FuseOptions:
    """Times in seconds, sizes in bytes."""

    attr_valid: float = 1.0
    """How long the kernel may answer stat from memory."""
    entry_valid: float = 1.0
    """How long the kernel may believe that a name leads where it led."""
    negative_valid: float = 0.1
    """The same for names that do not exist."""
    prefetch: int = 64 * 1024
    """First bytes asked for with a read-only open; 0: none."""
    attributes_ahead: int = 256 * 1024
    """Bytes of entries with attributes read ahead of one directory in which names are looked up one after another; 0: none."""
    max_write: int = 1024 * 1024
    """Largest READ and WRITE. The descriptor is read with a buffer of this and 4096 bytes more."""
    write_behind: int = 8 * 1024 * 1024
    """Bytes of one file that may be on the way to its server after the program was told that they are written; 0: each write(2) waits for
    its server.
    """
    max_readahead: int = 1024 * 1024
    max_background: int = 64
    """Requests that nobody waits for (read-ahead, asynchronous direct I/O) that the kernel has under way at once."""
    permissions: Permissions = Permissions.KERNEL_AND_SERVER
    allow_other: bool = True
    transform_links: bool = True
    """Absolute symbolic links of other nodes are shown with the path of that node's root in front (docs/decisions/fuse-links.md)."""
    devices_as_files: bool = True
    """Devices and FIFOs are shown as regular files of size 0, so that opening them reaches the far device, not a local one with its
    number.
    """
    interrupt_delay: float = 0.05
    """A signal has to wait this long before the server is asked to unblock: quick operations end with their result instead of EINTR."""
    interrupt_patience: float = 1.0
    """A server that was asked to unblock and did not answer in this time is not waited for any more."""
    stream_patience: float = 10.0
    """The same for reads and writes of a device or FIFO: what a read brings is taken from there, so an answer thrown away is data lost; and
    who does not hear how much he wrote writes it again."""
    handles_max: int = 4096
    """Base handles kept in all; beyond it the oldest are closed and got again when needed. Bounds descriptors on the servers."""
    source: str = "resmgr"
    subtype: str = "resmgr"
