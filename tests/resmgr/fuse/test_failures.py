"""The way to the server is cut at every message, and comes back with the same server, another one, or another boot of its machine, or the
server forgets what is open: what a program is told, in what time, and what is in the files then.

The file system is a real directory; the link and time are virtual, so every case is repeated by its seed and number:
python -m tests.resmgr.fuse.test_failures [SEED [ROUNDS]]
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path

import attrs
import pytest

from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import Failure, FuseOptions
from resmgr.testing.fuserig import Answer
from tests.resmgr.fuse.far import AWAY, Far

FAULTS = ("link", "restart", "boot", "forgotten")
TOLD = frozenset((0, -errno.EHOSTDOWN, -errno.ESTALE, -errno.EIO))
"""What may come of an operation. Everything else means that it was carried out twice, or on something else."""


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def hard(**more: float) -> FuseOptions:
    return FuseOptions(failure=Failure.HARD, entry_valid=0.0, attr_valid=0.0, **more)  # type: ignore[arg-type]  # numbers of the table


LOCK = formats.LK_IN.pack
RENAME = formats.RENAME2_IN.pack


@attrs.define
class Program:
    """Does one of everything, and keeps a journal of what it was told."""

    rig: Far
    pause: float = 0.0
    """Seconds that it thinks after each."""
    told: list[tuple[str, int, float]] = attrs.field(factory=list)
    content: dict[str, bytearray] = attrs.field(factory=dict)
    """Of files, what writes were acknowledged for."""
    sure: dict[str, bool] = attrs.field(factory=dict)
    """Files whose last close or fsync told no error, and no write did since."""
    answered: float = 0.0
    settled: float = 0.0
    """When the last close or fsync ended."""
    must: dict[str, bool] = attrs.field(factory=dict)
    """Names that must be there, or must not."""

    def do(self, what: str, opcode: int, node: int, body: bytes = b"") -> Answer:
        began = self.rig.dispatch.now()
        answer = self.rig.ask(opcode, node, body)
        self.answered = self.rig.dispatch.now()
        self.told.append((what, answer.error, self.answered - began))
        if self.pause:
            self.rig.run(self.pause)
        return answer

    def node(self, name: str) -> int:
        answer = self.do(f"lookup {name}", Opcode.LOOKUP, 1, name.encode() + b"\0")
        return answer.nodeid if answer.error == 0 and answer.nodeid else 0

    def write(self, name: str, node: int, fh: int, offset: int, data: bytes) -> None:
        answer = self.do(f"write {name}", Opcode.WRITE, node, formats.WRITE_IN.pack(fh, offset, len(data), 0, 0, 0) + data)
        if answer.error == 0:
            content = self.content[name]
            content.extend(bytes(max(0, offset + len(data) - len(content))))
            content[offset : offset + len(data)] = data
        self.sure[name] = False

    def settle(self, what: str, name: str, node: int, fh: int) -> None:
        if what == "fsync":
            answer = self.do(f"fsync {name}", Opcode.FSYNC, node, formats.FSYNC_IN.pack(fh, 0))
        else:
            answer = self.do(f"close {name}", Opcode.FLUSH, node, formats.FLUSH_IN.pack(fh, 7))
        self.settled = self.answered
        # An error is told once: what was acknowledged before it is not promised any more.
        self.sure[name] = answer.error == 0 and not any(
            error for said, error, _ in self.told if said in (f"write {name}", f"close {name}", f"fsync {name}")
        )

    def change(self, what: str, opcode: int, body: bytes, gone: str = "", made: str = "") -> Answer:
        answer = self.do(what, opcode, 1, body)
        for name, there in (gone, False), (made, True):
            if name:
                self.must.pop(name, None)
                if answer.error == 0:
                    self.must[name] = there
        return answer

    def file(self, name: str) -> tuple[int, int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        answer = self.change(f"create {name}", Opcode.CREATE, formats.CREATE_IN.pack(flags, 0o644, 0, 0) + name.encode() + b"\0", made=name)
        if answer.error:
            return 0, 0
        self.content[name] = bytearray()
        return answer.nodeid, int(struct.unpack_from("=Q", answer.body, 128)[0])

    def run(self) -> None:
        rig = self.rig
        node, fh = self.file("f")
        if fh:
            rig.run(0.6)
            for number in range(3):
                self.write("f", node, fh, number * 5000, bytes([65 + number]) * 5000)
            self.do("lock f", Opcode.SETLK, node, LOCK(fh, 7, 0, 99, 1, 5, 0))
            self.settle("fsync", "f", node, fh)
            self.write("f", node, fh, 2500, b"x" * 5000)
            self.write("f", node, fh, 15000, b"y" * 100000)
            read = self.do("read f", Opcode.READ, node, formats.READ_IN.pack(fh, 0, 4096, 0, 0, 0))
            assert read.error or read.body == bytes(self.content["f"][:4096]) or not self.clean("f"), "own writes are read"
            self.do("fstat f", Opcode.GETATTR, node, formats.GETATTR_IN.pack(formats.GETATTR_FH, fh))
        self.change("mkdir d", Opcode.MKDIR, formats.MKDIR_IN.pack(0o755, 0) + b"d\0", made="d")
        self.change("symlink l", Opcode.SYMLINK, b"l\0text\0", made="l")
        self.change("mknod n", Opcode.MKNOD, formats.MKNOD_IN.pack(0o100644, 0, 0, 0) + b"n\0", made="n")
        self.change("rename l", Opcode.RENAME2, RENAME(1, 0) + b"l\0m\0", gone="l", made="m")
        self.change("unlink n", Opcode.UNLINK, b"n\0", gone="n")
        opened = self.do("opendir", Opcode.OPENDIR, 1, bytes(8))
        if not opened.error:
            listed = self.do("readdir", Opcode.READDIR, 1, formats.READ_IN.pack(opened.fh, 0, 4096, 0, 0, 0))
            assert listed.error or b"f" in listed.body
            self.do("readdir again", Opcode.READDIR, 1, formats.READ_IN.pack(opened.fh, 0, 64, 0, 0, 0))
            rig.ask(Opcode.RELEASEDIR, 1, formats.RELEASE_IN.pack(opened.fh, 0, 0, 0))
        if fh:
            self.do("truncate f", Opcode.SETATTR, node, _size(fh, 110000))
            if self.told[-1][1] == 0:
                del self.content["f"][110000:]
            self.settle("close", "f", node, fh)
            rig.ask(Opcode.RELEASE, node, formats.RELEASE_IN.pack(fh, 0, 0, 0))
        self.change("rmdir d", Opcode.RMDIR, b"d\0", gone="d")
        self.do("statfs", Opcode.STATFS, 1)

    def clean(self, name: str) -> bool:
        return not any(error for said, error, _ in self.told if said.endswith(" " + name))

    def check(self) -> None:
        root = self.rig.root
        for name, there in self.must.items():
            assert os.path.lexists(root / name) == there, f"{name} was said to be {'there' if there else 'gone'}"
        for name, sure in self.sure.items():
            # A close is no fsync: what a power failure takes after it was not promised.
            if sure and (root / name).exists() and self.rig.booted < self.settled:
                assert (root / name).read_bytes() == bytes(self.content[name]), f"{name}: acknowledged data are not there"
        for what, error, _ in self.told:
            follows = (
                error == -errno.ENOENT and any(name in what for name in ("rename l", "unlink n", "rmdir d")) and not self.clean(what[-1])
            )
            assert error in TOLD or follows, f"{what}: {errno.errorcode[-error]}"


def _size(fh: int, size: int) -> bytes:
    return formats.SETATTR_IN.pack(formats.FATTR_SIZE | formats.FATTR_FH, fh, size, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def case(root: Path, seed: int, cut_at: int, fault: str, options: FuseOptions) -> tuple[int, Program]:
    """One run that is cut after message *cut_at* (0: not at all); messages that arrived, and what the program saw."""
    for one in root.iterdir():
        shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
    rig = Far(root, options, seed)
    rig.cut_at = cut_at
    rig.on_cut = lambda: rig.fail(fault)
    program = Program(rig, pause=(0.0, 0.3)[(seed + cut_at) % 2])
    try:
        program.run()
        seen = rig.messages_seen
        rig.run(3 + AWAY)
        program.check()
        assert rig.machine.status() == []
        assert not rig.machine.reopening.lost
        assert rig.machine.held_bytes == rig.machine.behind_cost == 0
        assert len(rig.host.manager.table.handles) <= 3
        longest = max((took, what) for what, _, took in program.told)
        assert longest[0] <= AWAY + 1.0, longest
        return seen, program
    except BaseException as error:
        error.add_note(f"seed {seed}, message {cut_at}, {fault}, {options.failure.value}: {program.told}")
        raise
    finally:
        rig.close()


MODES = {"soft": FuseOptions(entry_valid=0.0, attr_valid=0.0), "hard": hard()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", FAULTS)
def test_cut_at_every_message(there: Path, fault: str, mode: str) -> None:
    seen, program = case(there, 1, 0, fault, MODES[mode])
    assert not any(error for _, error, _ in program.told)
    outcomes: Counter[int] = Counter()
    for number in range(1, seen + 1, 3):
        _, program = case(there, 1, number + FAULTS.index(fault) % 3, fault, MODES[mode])
        outcomes.update(error for _, error, _ in program.told)
    assert outcomes[0] > sum(outcomes.values()) * (0.9 if mode == "hard" and fault != "boot" else 0.6), outcomes
    assert outcomes[-errno.EHOSTDOWN] or mode == "hard"


def main(seed: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for number in range(seed, seed + rounds):
            for mode, fault in itertools.product(MODES, FAULTS):
                seen, _ = case(Path(directory), number, 0, fault, MODES[mode])
                outcomes: Counter[str] = Counter()
                for message in range(1, seen + 1):
                    _, program = case(Path(directory), number, message, fault, MODES[mode])
                    outcomes.update(errno.errorcode.get(-error, "done") for _, error, _ in program.told)
                print(f"seed {number}, {mode}, {fault}: cut at each of {seen} messages: {dict(outcomes)}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
