"""Give a classic BPF program to a socket: socket(7), SO_ATTACH_FILTER."""

from __future__ import annotations

import ctypes
import socket
import struct

from stack.filter.bpf.assembler import Code

_SO_ATTACH_FILTER = 26


def attach(sock: socket.socket, code: Code) -> None:
    """Make *sock* pass what the program passes; replaces the program before, atomically. OSError when the kernel refuses it."""
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
    memory = ctypes.create_string_buffer(packed, len(packed))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(code), ctypes.addressof(memory)))
