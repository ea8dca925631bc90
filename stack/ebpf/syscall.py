"""bpf(2) through ctypes. Nothing here blocks. OSError with the errno of the kernel."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
from collections.abc import Callable

from stack.ebpf.constants import SYSTEM_CALL


def bpf(command: int, attribute: bytes | bytearray) -> tuple[int, bytes]:
    """One call. *attribute*: the part of union bpf_attr that the command has. The result, and the attribute as the kernel left it."""
    result, after = bpf_raw(command, attribute)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result, after


def bpf_raw(command: int, attribute: bytes | bytearray) -> tuple[int, bytes]:
    """The same without raising what the kernel answers: its errno, negative."""
    memory = ctypes.create_string_buffer(bytes(attribute), len(attribute))
    result = _system_call()(command, memory, len(attribute))
    return -ctypes.get_errno() if result < 0 else result, memory.raw


@functools.cache
def _system_call() -> Callable[..., int]:
    """Of command, attribute and its length. Made once: to open the library of C costs many times the call."""
    number = SYSTEM_CALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of the bpf system call on {platform.machine()} is not known here")
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint]
    function.restype = ctypes.c_long
    return functools.partial(function, number)


def name_of(text: str) -> bytes:
    """A name for the kernel's lists: 15 characters of those that it takes."""
    return "".join(one if one.isascii() and (one.isalnum() or one in "_.") else "_" for one in text)[:15].encode().ljust(16, b"\0")


def refusal(error: OSError, what: str) -> str:
    """A sentence for people."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"no right to {what}: this needs root, or the capabilities CAP_BPF and CAP_NET_ADMIN"
    if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
        return f"this kernel does not {what}: {error.strerror}"
    return f"cannot {what}: {error.strerror}"
