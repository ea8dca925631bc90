"""What simulated nodes do to each other while things go wrong, and whether what came of it is legal. Used by `qnetpy.testing.scenario`.

`Ledger` is the judge: it knows each operation, counts how often servers carried it out, and checks every result when it arrives. A result
that nothing that happened can explain raises `Wrong` at once, inside the turn that brought it.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections import Counter
from collections.abc import Callable, Generator
from functools import partial

import attrs

from qnetpy.nodes import NodeState
from qnetpy.testing.node import SimNode
from resmgr.channel import CHID_PATHMGR, PID_SYSTEM, Channel, Connection, Credentials, Kernel, Message, Nd, Pending, Pulse
from resmgr.dispatch import Buffer
from resmgr.errors import ResmgrError
from resmgr.handlelist import pack_close
from resmgr.iomsg import OFFSET_APPEND, STATUS_REDIRECT, Connect, Entry, parse_dirents
from resmgr.iorequest import ConnectRequest, pack_read, pack_readdir, pack_write
from resmgr.walk import translate

SERVER_CHID = 100
HEADER = struct.Struct("!QBIIH")
"""Operation, mode, bytes that follow, bytes wanted in the reply, milliseconds until it is answered."""
ECHO, ERROR, WRITE, HOLD, STATUS, DEAF = range(6)
"""Reply with data; answer EDOM; push the data, then reply; answer only when unblocked; reply a number; reply and ignore unblocks."""
SIZES = (*(0, 1, 64, 64, 64, 1000, 1400, 4096, 9000, 20_000) * 2, *(64, 1400, 66_000, 300_000))
HELD_BYTES_MAX = 3_000_000
REPLY_MAX = 2 << 20


class Wrong(AssertionError):
    """Something happened that the contract does not allow."""


def content(seed: int, size: int) -> bytes:
    """Bytes that nobody else's operation has."""
    return random.Random(seed).randbytes(size)


@attrs.define(eq=False)
class Op:
    """One send."""

    number: int
    client: SimNode
    to: str
    mode: int
    size: int
    reply_size: int
    starts: int
    """How often the client's node had seen the other one come up when the connection was first used."""
    began: float
    pending: Pending | None = None
    unblocked: float | None = None
    status: int | None = None

    @property
    def ended(self) -> bool:
        return self.status is not None


class Ledger:
    """All operations of a world."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note
        self.executed: Counter[int] = Counter()
        self.cut_short: set[int] = set()
        """Operations of which a server could read only the beginning: their clients must be gone."""
        self.pulses: Counter[int] = Counter()
        self.pulses_sent = 0
        self.ops: dict[int, Op] = {}
        self.open: dict[int, Op] = {}
        self.jobs: dict[int, FileJob] = {}
        self.results: Counter[str] = Counter()
        self.wrongs: list[str] = []
        self.numbers = 0
        self.undisturbed = False
        """Nothing goes wrong at the moment: nothing may fail."""

    def wrong(self, what: str) -> Wrong:
        """Remember what is wrong: a node survives exceptions of its servers, so raising alone would not be noticed."""
        self.wrongs.append(what)
        return Wrong(what)

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def ran(self, number: int) -> None:
        self.executed[number] += 1
        if self.executed[number] > 1:
            raise self.wrong(f"operation {number} was carried out twice")

    def finish(self, op: Op, status: int, reply: Buffer) -> None:
        """The one result of *op*."""
        if op.status is not None:
            raise self.wrong(f"operation {op.number} ended twice: {op.status}, then {status}")
        op.status = status
        op.pending = None
        self.open.pop(op.number, None)
        self.note(f"op {op.number} {op.client.name}>{op.to} {status} {len(reply)}")
        self.results["ok" if status >= 0 else errno.errorcode.get(-status, str(status))] += 1
        if op.client.dead:
            return
        ran = self.executed[op.number]
        if status >= 0 or status == -errno.EDOM:
            if op.number in self.cut_short:
                raise self.wrong(f"operation {op.number} has a result, and the server could read only its beginning")
            if ran != 1:
                raise self.wrong(f"operation {op.number} has a result and ran {ran} times")
            self._check_reply(op, status, reply)
            return
        if status == -errno.EINTR:
            if op.unblocked is None:
                raise self.wrong(f"operation {op.number}: EINTR, and nobody unblocked it")
            return
        if status not in (-errno.EHOSTDOWN, -errno.EBADF):
            raise self.wrong(f"operation {op.number}: {errno.errorcode.get(-status, status)}")
        self.excused(op.client, op.to, op.starts, f"operation {op.number}: {errno.errorcode[-status]}", status == -errno.EHOSTDOWN)

    def _check_reply(self, op: Op, status: int, reply: Buffer) -> None:
        wanted = {ERROR: -errno.EDOM, STATUS: op.number & 0xFFFF}.get(op.mode, 0)
        if op.mode != HOLD and status != wanted:
            raise self.wrong(f"operation {op.number}: status {status}, not {wanted}")
        data = b"" if op.mode in (ERROR, STATUS, HOLD) else content(-op.number, op.reply_size)
        if bytes(reply) != data:
            raise self.wrong(f"operation {op.number}: reply of {len(reply)} bytes is not what the server gave ({len(data)} bytes)")

    def excused(self, client: SimNode, to: str, starts: int, what: str, down: bool) -> None:
        """A failure needs a reason: the link of the two has ended since *starts*; for EHOSTDOWN, it is down now."""
        node = client.qnet.nodes.get(to)
        if node is None:
            raise self.wrong(f"{what}, and {to} was never met")
        if self.undisturbed:
            raise self.wrong(f"{what}, and nothing was wrong ({to} is {node.state.value})")
        gone = node.state in (NodeState.DOWN, NodeState.CONNECTING)
        if not (gone if down else node.starts > starts or gone):
            raise self.wrong(f"{what}, and {to} is {node.state.value} since {node.since}, {node.starts} starts, {starts} before")


class Server:
    """Answers operations on one boot of a node."""

    def __init__(self, node: SimNode, ledger: Ledger) -> None:
        self.node = node
        self.ledger = ledger
        self.held: dict[Message, None] = {}
        self.last_pulse: dict[tuple[str, int], int] = {}
        """The last pulse of each client's connection. Their values only rise, so order shows."""
        first = random.Random(node.boot).choice([256, 4096, 8192, 65536])
        self.channel: Channel = node.system.kernel.channel(self._message, on_pulse=self._pulse, chid=SERVER_CHID, first_part=first)

    def _pulse(self, pulse: Pulse) -> None:
        if pulse.code >= 0:
            self.ledger.pulses[pulse.value] += 1
            if self.ledger.pulses[pulse.value] > 1:
                raise self.ledger.wrong(f"pulse {pulse.value} came twice")
            connection = pulse.info.node, pulse.info.scoid
            before = self.last_pulse.get(connection, -1)
            self.last_pulse[connection] = max(before, pulse.value)
            if pulse.value < before:
                raise self.ledger.wrong(f"pulse {pulse.value} of a connection from {pulse.info.node} came behind {before}")

    def _message(self, message: Message) -> None:
        number, mode, size, reply_size, delay = HEADER.unpack_from(message.data)
        self.ledger.ran(number)
        if message.msglen != HEADER.size + size:
            raise self.ledger.wrong(f"operation {number}: {message.msglen} bytes instead of {HEADER.size + size}")
        if mode == DEAF:
            message.on_unblock = lambda: None
        elif mode == HOLD:
            self.held[message] = None
            message.on_unblock = partial(self._let_go, message)
        answer = partial(self._answer, message, number, mode, reply_size)
        go_on = partial(self._later, delay / 1000, answer) if delay else answer
        if size + HEADER.size > len(message.data) or delay % 2:
            message.read(0, message.msglen, partial(self._got, number, size, go_on))
        else:
            self._got(number, size, go_on, message.msglen, message.data)

    def _later(self, delay: float, call: Callable[[], None]) -> None:
        self.node.view.call_at(self.node.view.now() + delay, call)

    def _got(self, number: int, size: int, go_on: Callable[[], None], status: int, data: Buffer) -> None:
        if status < 0:
            if status != -errno.ESRCH:
                raise self.ledger.wrong(f"operation {number}: read says {status}")
            go_on()  # the client is gone; whatever is answered is dropped
            return
        wanted = content(number, size)
        if bytes(data[HEADER.size :]) != wanted[: status - HEADER.size]:
            raise self.ledger.wrong(f"operation {number}: the server read {status} bytes that are not what the client sent")
        if status < HEADER.size + size:
            self.ledger.cut_short.add(number)
        go_on()

    def _let_go(self, message: Message) -> None:
        if self.held.pop(message, 0) is None:
            message.error(errno.EINTR)

    def _answer(self, message: Message, number: int, mode: int, reply_size: int) -> None:
        if message.answered or mode == HOLD:
            return
        if mode == ERROR:
            message.error(errno.EDOM)
            return
        if mode == STATUS:
            message.reply(number & 0xFFFF)
            return
        data = content(-number, reply_size)
        if mode == WRITE:
            for start in reversed(range(0, reply_size, 50_000)):
                piece = data[start : start + 50_000]
                wrote = message.write(start, piece)
                if wrote not in (len(piece), -errno.ESRCH):
                    raise self.ledger.wrong(f"operation {number}: write says {wrote}")
            message.reply(0)
        else:
            message.reply(0, data[: reply_size // 3], data[reply_size // 3 :])


class Client:
    """One client program on a node, with one connection to the server of another."""

    def __init__(self, node: SimNode, to: str, ledger: Ledger, chance: random.Random) -> None:
        self.node = node
        self.to = to
        self.ledger = ledger
        self.chance = chance
        self.connection: Connection | None = None
        self.starts = 0
        self.mine: list[Op] = []

    def _connect(self) -> Connection | None:
        if self.connection is None:
            other = self.node.qnet.nodes.get(self.to)
            if other is None:
                return None
            self.connection = self.node.connect(self.to, PID_SYSTEM, SERVER_CHID)
            self.starts = other.starts
        return self.connection

    def send(self, mode: int | None = None, largest: int | None = None) -> Op | None:
        """One operation drawn by chance; with *largest* of at most so many bytes, and answered at once. None while the other node is not
        known yet."""
        chance = self.chance
        draws = chance.random(), chance.choice(SIZES), chance.choice(SIZES), chance.choice([0, 0, 0, 1, 20, 300]), chance.randrange(64)
        connection = self._connect()
        if connection is None:
            return None
        if mode is None:
            mode = (ECHO, ECHO, ECHO, ERROR, WRITE, HOLD, STATUS, DEAF)[int(draws[0] * 8)]
        waiting = sum(op.size + op.reply_size for op in self.ledger.open.values())
        size, reply_size = (draws[1], draws[2]) if waiting < HELD_BYTES_MAX else (64, 64)
        delay = draws[3]
        if largest is not None:
            size, reply_size, delay = min(size, largest), min(reply_size, largest), 0
        number = self.ledger.number()
        op = Op(number, self.node, self.to, mode, size, reply_size, self.starts, self.node.view.now())
        self.ledger.ops[number] = self.ledger.open[number] = op
        self.mine.append(op)
        parts = (HEADER.pack(number, mode, size, reply_size, delay), content(number, size))
        pending = connection.submit(parts, reply_size, partial(self._done, op), priority=draws[4])
        op.pending = None if op.ended else pending
        return op

    def _done(self, op: Op, status: int, reply: Buffer) -> None:
        self.ledger.finish(op, status, reply)
        if status == -errno.EBADF and self.connection is not None:
            # As a program does whose server is gone: connect again.
            self.connection.close()
            self.connection = None

    def pulse(self) -> None:
        """A few pulses on the connection, of different priorities. They arrive in order, unless the link ends."""
        for priority in self.chance.choice([(10,), (10,), (0, 63, 10, 63, 0)]):
            self._pulse(priority)

    def _pulse(self, priority: int) -> None:
        connection = self._connect()
        if connection is not None:
            number = self.ledger.number()
            status = connection.pulse(1, number, priority=priority)
            if status == 0:
                self.ledger.pulses_sent += 1
            elif status == -errno.EBADF:
                self.ledger.excused(self.node, self.to, self.starts, "pulse: EBADF", False)
                connection.close()
                self.connection = None
            elif status == -errno.EHOSTDOWN:
                self.ledger.excused(self.node, self.to, self.starts, "pulse: EHOSTDOWN", True)
            else:
                raise self.ledger.wrong(f"pulse: {status}")

    def unblock(self, op: Op) -> None:
        """As Ctrl-C does."""
        if not op.ended and op.unblocked is None:
            op.unblocked = self.node.view.now()
            if op.pending is not None:
                op.pending.unblock()
            other = self.node.qnet.nodes.get(self.to)
            if op.pending is not None and other is not None and other.state is NodeState.SUSPECT:
                raise self.ledger.wrong(f"operation {op.number}: unblocked while the node is suspect, and still waiting")

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


@attrs.frozen
class Ask:
    """What a file job wants sent where."""

    address: tuple[int, int, int]
    parts: tuple[Buffer, ...]
    reply_len: int


Steps = Generator[Ask, tuple[int, Buffer], None]
Answer = Generator[Ask, tuple[int, Buffer], tuple[int, Buffer]]
Opened = tuple[tuple[int, int, int], Entry]


class FileJob:
    """A program that works with files below /net/NODE: writes, appends, reads back, lists, renames, until it is through or disturbed."""

    def __init__(self, node: SimNode, to: str, ledger: Ledger, chance: random.Random) -> None:
        self.node = node
        self.to = to
        self.ledger = ledger
        self.number = ledger.number()
        self.chance = chance
        self.starts = 0
        self.ended = False
        self.failed = 0
        self._connections: dict[tuple[int, int, int], Connection] = {}
        self._kernel: Kernel = node.system.kernel
        self._steps = self._work()
        self._waiting = False

    def start(self) -> None:
        other = self.node.qnet.nodes.get(self.to)
        if other is None:
            return
        self.starts = other.starts
        self.ledger.jobs[self.number] = self
        self._go_on(None)

    def _go_on(self, answer: tuple[int, Buffer] | None) -> None:
        """Run the job until it has to wait."""
        while True:
            try:
                ask = next(self._steps) if answer is None else self._steps.send(answer)
            except StopIteration:
                self._end(0)
                return
            except OSError as error:
                self._end(error.errno or errno.EIO)
                return
            got: list[tuple[int, Buffer]] = []
            self._waiting = False

            def done(status: int, reply: Buffer, got: list[tuple[int, Buffer]] = got) -> None:
                if self._waiting:
                    self._go_on((status, reply))
                else:
                    got.append((status, reply))

            connection = self._connections.get(ask.address)
            if connection is None:
                nd, pid, chid = ask.address
                connection = self._connections[ask.address] = self._kernel.connect(Nd(nd), pid, chid, Credentials(0, 0))
            connection.submit(ask.parts, ask.reply_len, done)
            if not got:
                self._waiting = True
                return
            answer = got[0]

    def _end(self, code: int) -> None:
        self.ended = True
        self.failed = code
        self.ledger.jobs.pop(self.number, None)
        self.ledger.results["job ok" if code == 0 else "job " + errno.errorcode.get(code, str(code))] += 1
        self.ledger.note(f"job {self.number} {self.node.name}>{self.to} {code}")
        for connection in self._connections.values():
            connection.close()
        if code and not self.node.dead:
            self.ledger.excused(self.node, self.to, self.starts, f"file job {self.number}: {errno.errorcode.get(code, code)}", False)

    # What it does

    def _ask(self, address: tuple[int, int, int], *parts: Buffer, reply_len: int = REPLY_MAX) -> Answer:
        status, reply = yield Ask(address, parts, reply_len)
        if status < 0:
            raise ResmgrError(-status)
        return status, reply

    def _connect(self, request: ConnectRequest) -> Generator[Ask, tuple[int, Buffer], tuple[tuple[int, int, int], Buffer]]:
        asked = (0, PID_SYSTEM, CHID_PATHMGR)
        for _ in range(8):
            status, reply = yield from self._ask(asked, request.pack())
            if status != STATUS_REDIRECT:
                return asked, reply
            entry = Entry.parse(reply)
            target = entry.target
            asked = translate(asked[0], (target.nd, target.pid, target.chid))
            request.handle, request.path = entry.handle, entry.rest or b""
        raise ResmgrError(errno.ELOOP)

    def _open(self, path: bytes, flags: int) -> Generator[Ask, tuple[int, Buffer], Opened]:
        asked, reply = yield from self._connect(ConnectRequest(Connect.OPEN, flags, 0, path, 0o644))
        entry = Entry.parse(reply)
        return translate(asked[0], (entry.target.nd, entry.target.pid, entry.target.chid)), entry

    def _name(self, kind: Connect, path: bytes, path2: bytes = b"") -> Generator[Ask, tuple[int, Buffer], None]:
        """A message with one name, or with two below the same node."""
        if path2:
            asked, entry = yield from self._lookup(self._base)
            request = ConnectRequest(kind, 0, entry.handle, path, handle2=entry.handle, path2=path2)
            yield from self._ask(asked, request.pack())
            yield from self._ask(asked, pack_close(entry.handle))
        else:
            yield from self._connect(ConnectRequest(kind, 0, 0, self._base + path, 0o755))

    def _lookup(self, path: bytes) -> Generator[Ask, tuple[int, Buffer], Opened]:
        asked, reply = yield from self._connect(ConnectRequest(Connect.LOOKUP, 0, 0, path))
        entry = Entry.parse(reply)
        return translate(asked[0], (entry.target.nd, entry.target.pid, entry.target.chid)), entry

    @property
    def _base(self) -> bytes:
        return f"net/{self.to}/job{self.number}".encode()

    def _work(self) -> Steps:
        chance = self.chance
        yield from self._name(Connect.MKDIR, b"")
        pieces = [content(self.number * 1000 + index, chance.choice([1, 100, 5000, 40_000])) for index in range(chance.randrange(1, 5))]
        whole = b"".join(pieces)
        address, entry = yield from self._open(self._base + b"/one", os.O_CREAT | os.O_RDWR)
        offset = 0
        for piece in pieces:
            at = OFFSET_APPEND if chance.random() < 0.5 else offset
            count, _ = yield from self._ask(address, pack_write(entry.ocb, at, len(piece)), piece)
            if count != len(piece):
                raise self.ledger.wrong(f"file job {self.number}: wrote {count} of {len(piece)}")
            offset += count
        yield from self._compare(address, entry.ocb, whole)
        yield from self._ask(address, pack_close(entry.ocb))
        # MemFs takes both names relative to one directory's handle, as rename(2) with descriptors does.
        yield from self._name(Connect.RENAME, b"one", b"two")
        address, entry = yield from self._open(self._base, os.O_RDONLY | os.O_DIRECTORY)
        _, listed = yield from self._ask(address, pack_readdir(entry.ocb, 0, 65536), reply_len=65536)
        names = {found.name for found in parse_dirents(listed, False)} - {b".", b".."}
        if names != {b"two"}:
            raise self.ledger.wrong(f"file job {self.number}: the directory holds {names}")
        yield from self._ask(address, pack_close(entry.ocb))
        address, entry = yield from self._open(self._base + b"/two", os.O_RDONLY)
        yield from self._compare(address, entry.ocb, whole)
        yield from self._ask(address, pack_close(entry.ocb))
        yield from self._name(Connect.UNLINK, b"/two")
        yield from self._name(Connect.RMDIR, b"")
        try:
            yield from self._lookup(self._base + b"/two")
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
        else:
            raise self.ledger.wrong(f"file job {self.number}: a file that was removed is there")

    def _compare(self, address: tuple[int, int, int], ocb: int, whole: bytes) -> Steps:
        data = b""
        while True:
            _, piece = yield from self._ask(address, pack_read(ocb, len(data), 30_000), reply_len=30_000)
            if not len(piece):
                break
            data += bytes(piece)
        if data != whole:
            raise self.ledger.wrong(f"file job {self.number}: read back {len(data)} bytes, wrote {len(whole)}")
