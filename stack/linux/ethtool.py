"""What ethtool(8) knows of an interface of the thread's network namespace, asked by ioctl."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_GDRVINFO, _GCHANNELS = 0x3, 0x3C
_IFREQ = struct.Struct("=16sQ16x")
_DRIVER = struct.Struct("=I32s160x")
_CHANNELS = struct.Struct("=9I")
"""Command, then the largest numbers and the present ones of: receive, transmit, other, combined queues."""


def linux_driver(name: str) -> str:
    """The driver of the interface, like `veth` or `e1000e`; empty when it does not tell."""
    answer = _ask(name, _DRIVER.pack(_GDRVINFO, b""))
    return "" if answer is None else str(_DRIVER.unpack(answer)[1].rstrip(b"\0").decode(errors="replace"))


def receive_queues(name: str) -> int:
    """How many receive queues the interface uses. One that does not tell has one."""
    answer = _ask(name, _CHANNELS.pack(_GCHANNELS, *(0,) * 8))
    if answer is None:
        return 1
    _, _, _, _, _, receive, _, _, combined = _CHANNELS.unpack(answer)
    return max(1, int(receive) + int(combined))


def _ask(name: str, command: bytes) -> bytes | None:
    memory = ctypes.create_string_buffer(command, len(command))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock.fileno(), _SIOCETHTOOL, _IFREQ.pack(name.encode("utf-8", "surrogateescape"), ctypes.addressof(memory)))
        except OSError:
            return None
    return memory.raw
