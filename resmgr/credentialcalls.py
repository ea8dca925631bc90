"""The system calls that change the rights of one thread: setresuid, setresgid, setgroups by number.

The C library's functions of these names change every thread of the process. `raw` is its `syscall` without errno handling and without
giving up the interpreter lock: these calls never block.
"""

from __future__ import annotations

import ctypes
import platform

raw = ctypes.PyDLL(None).syscall
raw.restype = ctypes.c_long

_NUMBERS = {
    "x86_64": (117, 119, 116),
    "aarch64": (147, 149, 159),
    "riscv64": (147, 149, 159),
    "loongarch64": (147, 149, 159),
    "ppc64le": (164, 169, 81),
    "armv7l": (208, 210, 206),
    "i686": (208, 210, 206),
}


def credential_calls() -> tuple[int, int, int] | None:
    """Numbers of setresuid, setresgid and setgroups on this machine; None where we do not know them."""
    return _NUMBERS.get(platform.machine())
