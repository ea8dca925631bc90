"""A key-value store as a directory: `echo 5 >/dev/kv/x` sets, `cat` tells, `ls` lists, `rm` removes; from any node.

python examples/keyvalue.py [PATH]
"""

import errno
import sys
import time

from qnetpy.manage import OFFSET_APPEND, Directory, Node, serve
from resmgr.access import MappedUser
from resmgr.dispatch import Buffer

KEYS_MAX = 10_000
VALUE_MAX = 64 * 1024


class Entry(Node):
    """One value, owned by who made it."""

    def __init__(self, user: MappedUser, mode: int) -> None:
        self.uid, self.gid, self.mode = user.uid, user.gid, 0o100000 | mode
        self.value = b""
        self.changed = time.time()

    def size(self) -> int:
        return len(self.value)

    def read(self, state: object | None, offset: int, size: int) -> Buffer:
        return self.value[offset : offset + size]

    def write(self, state: object | None, offset: int, data: Buffer) -> int:
        offset = len(self.value) if offset == OFFSET_APPEND else offset
        if offset + len(data) > VALUE_MAX:
            raise OSError(errno.EFBIG, "value too long")
        before = self.value[:offset].ljust(offset, b"\0")
        self.value = before + bytes(data) + self.value[offset + len(data) :]
        self.changed = time.time()
        return len(data)

    def truncate(self, size: int) -> None:
        if size > VALUE_MAX:
            raise OSError(errno.EFBIG, "value too long")
        self.value = self.value[:size].ljust(size, b"\0")
        self.changed = time.time()


class Store(Directory):
    mode = 0o041777

    def create(self, name: bytes, user: MappedUser, mode: int) -> Node:
        if len(self.nodes) >= KEYS_MAX:
            raise OSError(errno.ENOSPC, "too many keys")
        entry = self.nodes[name] = Entry(user, mode)
        return entry

    def remove(self, name: bytes, user: MappedUser) -> None:
        if user.uid not in (0, self.nodes[name].uid):
            raise PermissionError(errno.EACCES, "another user's")
        del self.nodes[name]


if __name__ == "__main__":
    serve(sys.argv[1] if len(sys.argv) > 1 else "/dev/kv", Store())
