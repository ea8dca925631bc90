"""A tap device (Linux: Documentation/networking/tuntap.rst): an Ethernet interface of Linux whose other end is a descriptor.

Each read and write is one frame behind a virtio-net header. The kernel is told that it may leave checksums to us and hand over whole runs
of segments: one read instead of 45. A filter in the kernel decides which frames wake the node. The device goes when the descriptor is
closed, unless somebody made it to stay.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from stack.core.errors import ModuleError
from stack.filter.bpf.assembler import Code
from stack.filter.bpf.attach import fprog
from stack.wire import virtio_net

PATH = "/dev/net/tun"
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNATTACHFILTER = 0x401054D5
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 1, 2, 4, 8
TUN_F_USO4, TUN_F_USO6 = 0x20, 0x40
"""Runs of UDP datagrams: Linux 6.2."""
TCP_RUNS = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFMTU = 0x8913, 0x8914, 0x8922
IFF_UP = 0x1
NAME_SIZE = 16
IFREQ_SIZE = 40


class TapDevice:
    """A descriptor on the tap device called *ifname*, which is made unless it is there; `%d` in it becomes a number. ModuleError."""

    def __init__(self, ifname: str, runs: bool = True) -> None:
        name = os.fsencode(ifname)
        if not name or len(name) >= NAME_SIZE:
            raise ModuleError(errno.EINVAL, f"{ifname!r} cannot be the name of a Linux interface: 1 to {NAME_SIZE - 1} characters")
        try:
            self.fd = os.open(PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ModuleError(error.errno or errno.EIO, f"cannot open {PATH}, which makes tap devices: {error.strerror}") from error
        try:
            request = struct.pack(f"{NAME_SIZE}sH", name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).ljust(IFREQ_SIZE, b"\0")
            answer = fcntl.ioctl(self.fd, TUNSETIFF, request)
            fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, struct.pack("=i", virtio_net.SIZE))
            self.runs = self._offer(runs)
        except PermissionError as error:
            os.close(self.fd)
            raise ModuleError(
                errno.EPERM, f"no right to make the tap device {ifname}: this needs root or the capability CAP_NET_ADMIN"
            ) from error
        except OSError as error:
            os.close(self.fd)
            raise ModuleError(error.errno or errno.EIO, f"cannot make the tap device {ifname}: {error.strerror}") from error
        self.ifname = os.fsdecode(answer[:NAME_SIZE].rstrip(b"\0"))

    def _offer(self, runs: bool) -> str:
        """Tell the kernel what it may leave to us. What it took, for people."""
        if not runs:
            fcntl.ioctl(self.fd, TUNSETOFFLOAD, 0)
            return "none"
        try:
            fcntl.ioctl(self.fd, TUNSETOFFLOAD, TCP_RUNS | TUN_F_USO4 | TUN_F_USO6)
        except OSError:
            fcntl.ioctl(self.fd, TUNSETOFFLOAD, TCP_RUNS)
            return "TCP"
        return "TCP and UDP"

    def attach(self, code: Code) -> None:
        """Only frames that the program passes can be read from now on."""
        with fprog(code) as program:
            fcntl.ioctl(self.fd, TUNATTACHFILTER, program)

    def configure(self, up: bool, mtu: int | None) -> None:
        """Switch the Linux interface on, and set its MTU. OSError."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as handle:
            name = os.fsencode(self.ifname)
            if mtu is not None:
                fcntl.ioctl(handle, SIOCSIFMTU, struct.pack(f"{NAME_SIZE}si", name, mtu).ljust(IFREQ_SIZE, b"\0"))
            if up:
                answer = fcntl.ioctl(handle, SIOCGIFFLAGS, struct.pack(f"{NAME_SIZE}sh", name, 0).ljust(IFREQ_SIZE, b"\0"))
                (flags,) = struct.unpack_from("=H", answer, NAME_SIZE)
                fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack(f"{NAME_SIZE}sH", name, flags | IFF_UP).ljust(IFREQ_SIZE, b"\0"))

    def close(self) -> None:
        os.close(self.fd)
