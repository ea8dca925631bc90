"""Numbers of <linux/bpf.h>, <linux/if_link.h> and bpf(2). Those of instructions are in `stack.ebpf.assembler`."""

from __future__ import annotations

import enum

SYSTEM_CALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
"""The number of bpf(2), by `platform.machine()`."""

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, PROG_LOAD, PROG_TEST_RUN = 0, 1, 2, 3, 5, 10
MAP_LOOKUP_BATCH, LINK_CREATE = 24, 28


class MapType(enum.IntEnum):
    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    DEVMAP = 14
    XSKMAP = 17


ANY, NOEXIST, EXIST = 0, 1, 2
"""Flags of an update."""

PROG_TYPE_SOCKET_FILTER, PROG_TYPE_XDP = 1, 6
ATTACH_XDP = 37
PROG_XDP_HAS_FRAGS = 1 << 5
"""The program looks at the first piece of a frame only, so frames of several pieces may come."""


class Helper(enum.IntEnum):
    """Functions of the kernel: bpf-helpers(7)."""

    MAP_LOOKUP = 1
    """R1 map, R2 key -> R0 value or 0."""
    REDIRECT_MAP = 51
    """R1 map, R2 index, R3 what to return when there is no entry -> R0 action."""
    KTIME_COARSE = 160
    """-> R0 nanoseconds of CLOCK_MONOTONIC_COARSE."""
    XDP_BUFFER_LENGTH = 188
    """R1 context -> R0 bytes of the frame, all pieces."""


class Xdp(enum.IntEnum):
    """What an XDP program returns."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


XDP_DATA, XDP_DATA_END, XDP_RX_QUEUE = 0, 4, 16
"""Offsets in struct xdp_md."""


class XdpMode(enum.IntEnum):
    """Where XDP runs; the values are the flags of the link."""

    GENERIC = 1 << 1
    """For any interface: behind the driver, where there is a socket buffer."""
    NATIVE = 1 << 2
    """In the driver."""
