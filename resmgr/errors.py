"""Errors by origin, and the one place that maps them to errno.

Three origins (docs/architecture.md, "Errors"):

- a bad peer: `BadMessage`. Bytes from outside did not parse. Whoever reads them counts the drop and goes on.
- the caller's mistake: `Misuse`. A bug in the program that calls us; it is never caught to go on.
- the world: `ResmgrError`, which carries an errno exactly as a QNX or POSIX call would return it.

On the message path errors travel as a negative errno in `status`; exceptions appear only at the edges, where a person's code awaits.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence


class BadMessage(Exception):
    """Bytes from another process or node do not parse. Says which field, never holds the bytes."""


class Misuse(Exception):
    """The calling program broke the contract of the call (replying twice, using a closed connection)."""


class ResmgrError(OSError):
    """A message was answered with an error. `errno` and `strerror` are set as for any OSError."""

    def __init__(self, code: int, text: str | None = None) -> None:
        super().__init__(code, text if text is not None else os.strerror(code))


ERRNO_MAX = 4095
"""Linux's MAX_ERRNO."""


def errno_told(code: object) -> int:
    """*code*, or EIO for what is no errno: a server's mistake must not look like a broken message at its client."""
    return code if isinstance(code, int) and 0 < code <= ERRNO_MAX else errno.EIO


def check_reply(status: object, parts: Sequence[object]) -> None:
    """Misuse, if a server cannot answer with these."""
    if not isinstance(status, int) or status < 0:
        raise Misuse(f"a reply's status is an int of at least 0, not {status!r}; an error is answered with `error`")
    for part in parts:
        if not isinstance(part, bytes | bytearray | memoryview):
            raise Misuse(f"a reply's data is {type(part).__name__}, not bytes")


def errno_of(error: BaseException) -> int:
    """The errno to answer a peer with when a handler raised *error*; EIO for what is nobody's expected failure."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, BadMessage):
        return errno.EBADMSG
    if isinstance(error, NotImplementedError):
        return errno.ENOSYS
    if isinstance(error, TimeoutError):
        return errno.ETIMEDOUT
    if isinstance(error, PermissionError):
        return errno.EPERM
    return errno.EIO
