"""Plays the kernel for a FUSE machine over a file system in memory: bytes in, bytes out, virtual time, no mount and no right needed."""

from __future__ import annotations

import itertools
import os
import struct

from resmgr.channel import Kernel
from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.machine import Machine
from resmgr.fuse.options import FuseOptions
from resmgr.fuse.servers import KernelResolver
from resmgr.testing.memfs import MemFs
from resmgr.testing.virtual import VirtualDispatch

PID = (1 << 22) + 1
"""Who asks: a number that no process can have, since the memory of who asks may be read and written."""


class Answer:
    """One reply as the kernel reads it."""

    def __init__(self, item: object) -> None:
        parts = item if isinstance(item, tuple) else (item,)
        raw = b"".join(bytes(part) for part in parts)
        length, self.error, self.unique = formats.OUT_HEADER.parse(raw)
        assert length == len(raw), "a reply must say its own length"
        self.body = raw[16:]

    @property
    def nodeid(self) -> int:
        """Of an entry."""
        return int(struct.unpack_from("=Q", self.body)[0])

    @property
    def entry(self) -> tuple[int, ...]:
        """Attributes of an entry: ino, size, ..., mode at 9."""
        return formats.ENTRY_OUT.parse(self.body)[6:]

    @property
    def attr(self) -> tuple[int, ...]:
        """Attributes of a GETATTR reply."""
        return formats.ATTR_REPLY.parse(bytes(16) + self.body)[5:]

    @property
    def fh(self) -> int:
        """Of an OPEN reply."""
        return int(struct.unpack_from("=Q", self.body)[0])

    @property
    def open_flags(self) -> int:
        return int(struct.unpack_from("=QI", self.body)[1])


class Rig:
    """Plays the kernel: builds requests, keeps answers by `unique`."""

    def __init__(self, options: FuseOptions | None = None) -> None:
        self.world = VirtualDispatch(1)
        self.dispatch = self.world.node("here")
        self.kernel = Kernel(self.dispatch, "here")
        self.fs = MemFs(self.kernel)
        self.machine = Machine(self.dispatch, KernelResolver(self.kernel), self.fs.target, options, b"/net")
        self.answers: dict[int, Answer] = {}
        self.notifications: list[Answer] = []
        self.uid = 0
        self.pid = PID
        self._uniques = itertools.count(2, 2)
        self.machine.on_output = self._collect

    def _collect(self) -> None:
        for item in self.machine.output:
            answer = Answer(item)
            if answer.unique == 0:
                self.notifications.append(answer)
            else:
                assert answer.unique not in self.answers, "answered twice"
                self.answers[answer.unique] = answer
        self.machine.output.clear()

    def start(self, opcode: int, node: int, body: bytes = b"") -> int:
        """Send a request; its unique."""
        unique = next(self._uniques)
        self.raw(formats.IN_HEADER.pack(40 + len(body), opcode, unique, node, self.uid, self.uid, self.pid, 0, 0) + body)
        return unique

    def raw(self, request: bytes) -> None:
        self.machine.receive(memoryview(bytearray(request)), self.dispatch.now())
        self._collect()

    def ask(self, opcode: int, node: int, body: bytes = b"") -> Answer:
        """Send a request that is answered at once."""
        unique = self.start(opcode, node, body)
        assert unique in self.answers, f"{Opcode(opcode).name} not answered"
        return self.answers[unique]

    def run(self, seconds: float) -> None:
        self.world.run_for(seconds)

    def lookup(self, node: int, name: bytes) -> Answer:
        return self.ask(Opcode.LOOKUP, node, name + b"\0")

    def walk(self, path: bytes) -> int:
        """The nodeid of *path*, which must exist."""
        node = 1
        for name in path.split(b"/"):
            answer = self.lookup(node, name)
            assert answer.error == 0, (path, name, answer.error)
            node = answer.nodeid
        return node

    def open(self, node: int, flags: int = os.O_RDONLY) -> Answer:
        return self.ask(Opcode.OPEN, node, formats.OPEN_IN.pack(flags, 0))

    def read(self, node: int, fh: int, offset: int, size: int) -> Answer:
        return self.ask(Opcode.READ, node, formats.READ_IN.pack(fh, offset, size, 0, 0, 0))

    def write(self, node: int, fh: int, offset: int, data: bytes, how: int = 0) -> Answer:
        return self.ask(Opcode.WRITE, node, formats.WRITE_IN.pack(fh, offset, len(data), how, 0, 0) + data)

    def release(self, node: int, fh: int) -> Answer:
        return self.ask(Opcode.RELEASE, node, formats.RELEASE_IN.pack(fh, 0, 0, 0))

    def messages(self) -> dict[str, int]:
        """Messages by operation since the last call."""
        counts, self.fs.requests = self.fs.requests, {}
        return counts
