"""What goes wrong with the messages of a file system in memory."""

from __future__ import annotations

import attrs


@attrs.define
class Fault:
    """What goes wrong with messages. *operation* is the lower-case name of a connect subtype or I/O type ("lookup", "read"), or "*";
    *name*, if not None, the last component of the path or the name by which the handle was obtained.

    *code*: answer with this errno. *delay*: seconds until it is handled (or answered with *code*). *hang*: never handled; the client's
    unblock ends it with EINTR, unless *deaf*. *times*: how many messages it hits, None: all until it is removed.
    """

    operation: str
    name: bytes | None = None
    code: int = 0
    delay: float = 0.0
    hang: bool = False
    deaf: bool = False
    times: int | None = None
    late: float = 0.0
    """LOOKUP and OPEN: handled at once, answered so many seconds later."""
    hits: int = 0
