"""Give a classic BPF program to a socket: socket(7), SO_ATTACH_FILTER."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from stack.filter.bpf.assembler import Code

_SO_ATTACH_FILTER = 26


def attach(sock: socket.socket, code: Code) -> None:
    """Make *sock* pass what the program passes; replaces the program before, atomically. OSError when the kernel refuses it."""
    with fprog(code) as program:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


@contextmanager
def fprog(code: Code) -> Iterator[bytes]:
    """The program as `struct sock_fprog`, which points to memory that is there until the context ends."""
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
    memory = ctypes.create_string_buffer(packed, len(packed))
    yield struct.pack("HP", len(code), ctypes.addressof(memory))
