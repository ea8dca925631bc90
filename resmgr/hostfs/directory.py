"""Directory streams: getdents64 with the file system's own cookies.

A cookie is the kernel's `d_off`: the file system promises that reading on from one neither repeats nor misses names that were there all the
time, whatever is created and removed meanwhile. One buffer of records is kept per stream, so a directory of any size takes the
same memory.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading

from resmgr.hostfs.syscalls import getdents64

BUFFER = 16 * 1024
_RECORD = struct.Struct("=QqHB")
_NAME = _RECORD.size
_SIGN = 1 << 63

Record = tuple[int, int, int, bytes]
"""d_ino, cookie of the next entry, DT_* type, name."""


class DirectoryStream:
    """Reads the directory open at *fd* (borrowed; not O_PATH). `lock` is held by whoever uses it: workers and the dispatch may meet
    here."""

    __slots__ = ("_end", "_fd", "_index", "_records", "lock", "position")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._records: list[Record] = []
        self._index = 0
        self._end = False
        self.position = 0
        """Cookie of the next entry."""
        self.lock = threading.Lock()

    def seek(self, cookie: int) -> None:
        """Go on at *cookie* (0: the start). Free if the stream stands there already."""
        if cookie != self.position or cookie == 0:
            os.lseek(self._fd, cookie if cookie < _SIGN else cookie - (1 << 64), os.SEEK_SET)
            self._records = []
            self._index = 0
            self._end = False
            self.position = cookie

    def rest(self) -> list[Record]:
        """Records that are at hand from here on, `.` and `..` among them; more are read if there are none. Empty at the end."""
        if self._index >= len(self._records) and (self._end or not self._fill()):
            return []
        return self._records[self._index :]

    def advance(self, count: int) -> None:
        """Go past *count* of the records that `rest` gave."""
        if count:
            self._index += count
            self.position = self._records[self._index - 1][1]

    def _fill(self) -> bool:
        buffer = ctypes.create_string_buffer(BUFFER)
        count = getdents64(self._fd, buffer)
        if count == 0:
            self._records = []
            self._index = 0
            self._end = True
            return False
        raw = buffer.raw
        records: list[Record] = []
        offset = 0
        while offset < count:
            ino, cookie, length, kind = _RECORD.unpack_from(raw, offset)
            start = offset + _NAME
            records.append((ino, cookie if cookie >= 0 else cookie + (1 << 64), kind, raw[start : raw.index(0, start)]))
            offset += length
        self._records = records
        self._index = 0
        return True
