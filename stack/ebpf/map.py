"""eBPF maps: tables that programs in the kernel and this process share.

Keys and values are bytes of fixed sizes, in the machine's byte order where they hold numbers. Each call is one system call, some
4 µs with what Python adds; `items` fetches many in one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from resmgr.errors import Misuse
from stack.ebpf.constants import ANY, MAP_CREATE, MAP_DELETE, MAP_LOOKUP, MAP_LOOKUP_BATCH, MAP_UPDATE, MapType
from stack.ebpf.syscall import bpf, bpf_raw, name_of

_CREATE = struct.Struct("=IIIIIII16s")
_ELEMENT = struct.Struct("=IxxxxQQQ")
_BATCH = struct.Struct("=QQQQIIQQ")
BATCH = 256
"""Entries fetched per call."""


def possible_cpus() -> int:
    """How many values an entry of a per-CPU map has."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().replace("-", ",").split(",")[-1]
    return int(last) + 1


class Map:
    """One map; `fd` names it to programs. `close` it, or use it in `with`."""

    def __init__(self, kind: MapType, key_size: int, value_size: int, entries: int, name: str = "") -> None:
        """OSError when the kernel refuses it (EPERM, ENOMEM, E2BIG)."""
        self.kind = kind
        self.key_size = key_size
        self.value_size = value_size
        self.entries = entries
        self.cpus = possible_cpus() if kind is MapType.PERCPU_ARRAY else 1
        self._stride = (value_size + 7) // 8 * 8 if kind is MapType.PERCPU_ARRAY else value_size
        self._room = self._stride * self.cpus
        self.fd, _ = bpf(MAP_CREATE, _CREATE.pack(kind, key_size, value_size, entries, 0, 0, 0, name_of(name)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent. The kernel keeps the map for as long as a loaded program uses it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Set an entry. OSError: E2BIG when the map is full; EEXIST and ENOENT by *flags*."""
        self._check_key(key)
        if len(value) != self.value_size:
            raise Misuse(f"a value of {len(value)} bytes in a map of {self.value_size}")
        self._element(MAP_UPDATE, key, ctypes.create_string_buffer(value.ljust(self._stride, b"\0") * self.cpus, self._room), flags)

    def lookup(self, key: bytes) -> bytes | None:
        """The value; None when there is none. Of a per-CPU map see `lookup_cpus`."""
        values = self.lookup_cpus(key)
        if values is not None and len(values) > 1:
            raise Misuse("each processor has a value of its own in this map")
        return None if values is None else values[0]

    def lookup_cpus(self, key: bytes) -> list[bytes] | None:
        """The values of all processors."""
        self._check_key(key)
        value = ctypes.create_string_buffer(self._room)
        try:
            self._element(MAP_LOOKUP, key, value)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return self._values(value.raw)

    def delete(self, key: bytes) -> bool:
        """False when there was no such entry."""
        self._check_key(key)
        try:
            self._element(MAP_DELETE, key, None)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def items(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """All entries, BATCH per system call. What changes meanwhile may be missed or told twice."""
        where = ctypes.create_string_buffer(max(8, self.key_size))
        first = True
        count = BATCH
        while True:
            keys = ctypes.create_string_buffer(self.key_size * count)
            values = ctypes.create_string_buffer(self._room * count)
            attribute = _BATCH.pack(
                0 if first else ctypes.addressof(where),
                ctypes.addressof(where),
                ctypes.addressof(keys),
                ctypes.addressof(values),
                count,
                self.fd,
                0,
                0,
            )
            result, after = bpf_raw(MAP_LOOKUP_BATCH, attribute)
            if result == -errno.ENOSPC and count < self.entries:
                # One bucket of the hash holds more than there is room for.
                count = min(self.entries, count * 4)
                continue
            if result < 0 and result != -errno.ENOENT:
                raise OSError(-result, os.strerror(-result))
            got = int(_BATCH.unpack(after)[4])
            raw_keys, raw_values = keys.raw, values.raw
            for number in range(got):
                key = raw_keys[number * self.key_size : (number + 1) * self.key_size]
                yield key, self._values(raw_values[number * self._room : (number + 1) * self._room])
            if result:
                return  # ENOENT: that was the last part
            first = False

    def array(self) -> bytes:
        """All entries of an array in order of their index, in one system call: of a per-CPU array each as the values of all `cpus`, which
        are filled up to 8 bytes."""
        where, keys = ctypes.create_string_buffer(8), ctypes.create_string_buffer(self.key_size * self.entries)
        values = ctypes.create_string_buffer(self._room * self.entries)
        attribute = _BATCH.pack(0, *map(ctypes.addressof, (where, keys, values)), self.entries, self.fd, 0, 0)
        result, _ = bpf_raw(MAP_LOOKUP_BATCH, attribute)
        if result < 0 and result != -errno.ENOENT:
            raise OSError(-result, os.strerror(-result))
        return values.raw

    def _values(self, raw: bytes) -> list[bytes]:
        return [raw[start : start + self.value_size] for start in range(0, self._room, self._stride)]

    def _element(self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None, flags: int = 0) -> None:
        key_memory = ctypes.create_string_buffer(key, self.key_size)
        bpf(command, _ELEMENT.pack(self.fd, ctypes.addressof(key_memory), 0 if value is None else ctypes.addressof(value), flags))

    def _check_key(self, key: bytes) -> None:
        if len(key) != self.key_size:
            raise Misuse(f"a key of {len(key)} bytes in a map of {self.key_size}")
