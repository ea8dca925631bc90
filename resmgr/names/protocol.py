"""The message that attaches a name, and where names are found.

To `(0, PID_SYSTEM, CHID_NAMES)`, network byte order:

    0           2          4         8
    +-----------+----------+---------+--------
    | operation | reserved | chid    | name
    +-----------+----------+---------+--------

with the operation ATTACH (1) or DETACH (2; chid is not looked at). The server's pid is the sender's, as its socket proved it. Answers: 0;
EEXIST: the name is taken; EINVAL: no good name (empty, longer than 255 bytes, with a slash or NUL); EPERM: a client of another node;
EAGAIN: too many names of one connection or in all; ENOENT: this connection has not attached the name; ENOSYS: another operation.
"""

from __future__ import annotations

import struct

PREFIX = b"dev/name/local"
REQUEST = struct.Struct("!HHI")
ATTACH = 1
DETACH = 2


def name_path(name: str | bytes, node: str = "") -> bytes:
    """The path of a name on *node* (empty: this one). One that begins with a slash is a path already."""
    name = name.encode() if isinstance(name, str) else name
    if name.startswith(b"/"):
        return name
    return (b"/net/" + node.encode() if node else b"") + b"/" + PREFIX + b"/" + name
