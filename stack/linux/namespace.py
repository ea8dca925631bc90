"""Doing something in the network namespace of an interface: devices are named to the kernel in the caller's namespace.

A process that is in that namespace already, which is the rule, needs no right for it; else CAP_SYS_ADMIN.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000
OWN = "/proc/thread-self/ns/net"
"""This thread's."""


@contextmanager
def inside(namespace: int) -> Iterator[None]:
    """This thread is in the network namespace of that descriptor meanwhile. OSError when it cannot go there."""
    if os.fstat(namespace).st_ino == os.stat(OWN).st_ino:
        yield
        return
    own = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(namespace)
        try:
            yield
        finally:
            enter(own)
    finally:
        os.close(own)


def enter(namespace: int) -> None:
    """This thread is in the network namespace of that descriptor from now on. OSError when it cannot go there."""
    if _setns()(namespace, _CLONE_NEWNET) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot enter its network namespace: {os.strerror(code)}")


@functools.cache
def _setns() -> Callable[[int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).setns
    function.argtypes = [ctypes.c_int, ctypes.c_int]
    return function
