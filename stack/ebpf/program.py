"""eBPF programs in the kernel: loaded past its verifier, run on a test frame, attached to an interface by a link.

A link (`BPF_LINK_CREATE`) holds the program on the interface for as long as its descriptor is open: no process that dies leaves a program
behind, and nobody else replaces it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Self

import attrs

from stack.ebpf.assembler import Code
from stack.ebpf.constants import ATTACH_XDP, LINK_CREATE, PROG_LOAD, PROG_TEST_RUN, PROG_TYPE_XDP, PROG_XDP_HAS_FRAGS, XdpMode
from stack.ebpf.syscall import bpf, name_of

_LOAD = struct.Struct("=IIQQIIQII16sII")
_TEST = struct.Struct("=IIIIQQIIIIQQ")
_LINK = struct.Struct("=IIII")
LOG_SIZE = 1 << 18
LOG_TOLD = 12
"""Lines at the end of the verifier's log that are told."""


class ProgramRefused(OSError):
    """The verifier does not take a program: our fault, or a kernel that lacks something. The text has its last words."""


class Program:
    """A loaded program. *licence*: some helpers are for GPL programs only."""

    def __init__(self, code: Code, name: str, kind: int = PROG_TYPE_XDP, flags: int = PROG_XDP_HAS_FRAGS, licence: str = "GPL") -> None:
        """ProgramRefused; OSError for a missing right (EPERM)."""
        self.code = code
        try:
            self.fd = _load(code, name, kind, flags, licence, None)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EINVAL, errno.E2BIG):
                raise
            # Only now, since the log costs memory and time.
            log = ctypes.create_string_buffer(LOG_SIZE)
            try:
                self.fd = _load(code, name, kind, flags, licence, log)
            except OSError as again:
                raise ProgramRefused(again.errno, f"the kernel refuses the program {name}: {_last_words(log.value, code)}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent. A link keeps the program."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def run(self, frame: bytes, times: int = 1) -> Run:
        """Run it on *frame*, without an interface; maps are changed as usual. The kernel takes no frame below 14 bytes."""
        given = ctypes.create_string_buffer(frame, len(frame))
        room = len(frame) + 256
        made = ctypes.create_string_buffer(room)
        attribute = _TEST.pack(self.fd, 0, len(frame), room, ctypes.addressof(given), ctypes.addressof(made), times, 0, 0, 0, 0, 0)
        _, after = bpf(PROG_TEST_RUN, attribute)
        _, result, _, size, _, _, _, duration, *_ = _TEST.unpack(after)
        return Run(result, made.raw[:size], duration * 1e-9)


@attrs.frozen
class Run:
    """What a test run gave: the result, the frame afterwards, seconds per run."""

    result: int
    frame: bytes
    seconds: float


class XdpLink:
    """A program on the interface *index* of the thread's network namespace.

    OSError: EBUSY when the interface has an XDP program already, EOPNOTSUPP when its driver has no native mode, EINVAL when MTU or other
    features of the interface exclude XDP.
    """

    def __init__(self, program: Program, index: int, mode: XdpMode) -> None:
        self.mode = mode
        self.fd, _ = bpf(LINK_CREATE, _LINK.pack(program.fd, index, ATTACH_XDP, mode))

    def close(self) -> None:
        """The program is off the interface when this returns. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _load(code: Code, name: str, kind: int, flags: int, licence: str, log: ctypes.Array[ctypes.c_char] | None) -> int:
    instructions = ctypes.create_string_buffer(code.instructions, len(code.instructions))
    text = ctypes.create_string_buffer(licence.encode())
    attribute = _LOAD.pack(
        kind,
        code.count,
        ctypes.addressof(instructions),
        ctypes.addressof(text),
        0 if log is None else 1,
        0 if log is None else LOG_SIZE,
        0 if log is None else ctypes.addressof(log),
        0,
        flags,
        name_of(name),
        0,
        ATTACH_XDP if kind == PROG_TYPE_XDP else 0,
    )
    return bpf(PROG_LOAD, attribute)[0]


def _last_words(log: bytes, code: Code) -> str:
    """The end of the verifier's log, each instruction that it names with our own text beside it."""
    lines = [
        line for line in log.decode(errors="replace").splitlines() if line and not line.startswith(("processed ", "verification time"))
    ]
    told = []
    for line in lines[-LOG_TOLD:]:
        number = line.split(":", 1)[0]
        ours = code.text[int(number)] if number.isdecimal() and int(number) < code.count else ""
        told.append(f"{line}   ; {ours}" if ours else line)
    return "\n    ".join(told) or "it does not say why"
