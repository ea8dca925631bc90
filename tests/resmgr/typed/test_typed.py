"""Interfaces, servers and clients: typed replies, errors, another version, cancellation, and the page docs/howto/messages.md."""

from __future__ import annotations

import errno
import json
import re
import sys
import types
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import attrs
import pytest
import trio
import trio.lowlevel
import trio.testing

from resmgr.aio import ReceiveChannel
from resmgr.channel import ND_LOCAL, Connection, Credentials, Kernel, Message
from resmgr.client import Client
from resmgr.errors import BadMessage, Misuse, ResmgrError
from resmgr.relay import Pending
from resmgr.runner import open_dispatch
from resmgr.server import Message as BlockingMessage
from resmgr.system import System
from resmgr.transport.unix import UnixServer
from resmgr.typed import interface
from resmgr.typed.aio import call, serve
from resmgr.typed.client import answer
from resmgr.typed.description import Described, Description, pack_question, parse_description
from resmgr.typed.fields import Number
from resmgr.typed.head import HEAD, REQUEST_MAX
from resmgr.typed.interface import Interface, OtherVersion, Request, VersionSkew
from resmgr.typed.server import TypedServer, handler

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "messages.md"


@attrs.frozen
class Sum:
    total: int


@attrs.frozen
class Add(Request[Sum]):
    """Adds."""

    numbers: list[int]


@attrs.frozen
class Wait(Request[None]):
    seconds: float


@attrs.frozen
class Fail(Request[None]):
    code: int


ADDER = Interface("adder", 3, {1: Add, 2: Wait, 5: Fail})
NEWER = Interface("adder", 4, {1: Add, 2: Wait, 5: Fail})
OTHER = Interface("subtractor", 1, {1: Add})


class Adder(TypedServer):
    interface = ADDER

    def __init__(self) -> None:
        super().__init__()
        self.cancelled = 0
        self.started = trio.Event()

    @handler
    def add(self, request: Add, message: Message) -> Sum:
        return Sum(sum(request.numbers))

    @handler
    async def wait(self, request: Wait, message: Message) -> None:
        self.started.set()
        try:
            await trio.sleep(request.seconds)
        except trio.Cancelled:
            self.cancelled += 1
            raise

    @handler
    def fail(self, request: Fail, message: Message) -> None:
        if request.code:
            raise ResmgrError(request.code)
        raise RuntimeError("a mistake of the server")


@attrs.frozen
class Town:
    server: Adder
    channel: ReceiveChannel

    def connect(self, uid: int = 0, pid: int = 0) -> Connection:
        channel = self.channel.channel
        return channel.kernel.connect(ND_LOCAL, channel.pid, channel.chid, Credentials(uid, uid, (), pid))


async def running(nursery: trio.Nursery, kernel: Kernel, tasks_max: int = 10) -> Town:
    town = Town(Adder(), ReceiveChannel(kernel))

    async def run() -> None:
        await serve(town.server, town.channel, tasks_max=tasks_max)

    nursery.start_soon(run)
    return town


async def test_requests_replies_errors_and_versions(caplog: pytest.LogCaptureFixture) -> None:
    async with open_dispatch(spin=0) as dispatch, trio.open_nursery() as nursery:
        town = await running(nursery, Kernel(dispatch, "a"))
        connection = town.connect()
        result: Sum = await call(connection, ADDER, Add([1, 2, -5]))
        assert result == Sum(-2)
        await call(connection, ADDER, Wait(0.0))
        for code, expected in ((errno.ENOENT, errno.ENOENT), (0, errno.EIO)):
            with pytest.raises(ResmgrError) as raised:
                await call(connection, ADDER, Fail(code))
            assert raised.value.errno == expected
        assert "a mistake of the server" in caplog.text
        for mine, theirs in ((NEWER, "version 4"), (OTHER, "'subtractor' version 1")):
            with pytest.raises(VersionSkew, match=f"speaks 'adder' version 3, this program .*{theirs}") as skew:
                await call(connection, mine, Add([]))
            assert (skew.value.errno, skew.value.theirs) == (errno.EPROTONOSUPPORT, 3)
        large = list(range(100_000))
        assert (await call(connection, ADDER, Add(large[:60_000]))).total == sum(large[:60_000])
        with pytest.raises(ValueError, match=r"Add.numbers: 100000 items, at most 65536"):
            await call(connection, ADDER, Add(large))
        town.channel.close()


async def test_a_client_that_gives_up_cancels_its_handler_and_tasks_are_bounded() -> None:
    async with open_dispatch(spin=0) as dispatch, trio.open_nursery() as nursery:
        town = await running(nursery, Kernel(dispatch, "a"), tasks_max=1)
        connection = town.connect()
        async with trio.open_nursery() as clients:
            clients.start_soon(call, connection, ADDER, Wait(60))
            await town.server.started.wait()
            clients.cancel_scope.cancel()
        assert town.server.cancelled == 1
        town.server.started = trio.Event()
        nursery.start_soon(call, connection, ADDER, Wait(60))
        await town.server.started.wait()
        with pytest.raises(ResmgrError) as raised:
            await call(connection, ADDER, Wait(60))
        assert raised.value.errno == errno.EAGAIN
        nursery.cancel_scope.cancel()


async def test_a_client_gives_up_before_its_handler_has_begun() -> None:
    async with open_dispatch(spin=0) as dispatch, trio.open_nursery() as nursery:
        town = await running(nursery, Kernel(dispatch, "a"))
        connection = town.connect()
        statuses: list[int] = []
        every = [0, 1, 2, 3, 4] * 10
        for steps in every:
            # The client lets go at each step of Trio's: before the message is received, between that and the task, and behind it.
            sent: list[Pending | None] = []
            dispatch.enter(partial(_submit, sent, connection, ADDER.pack_request(Wait(60)), statuses))
            for _ in range(steps):
                await trio.lowlevel.cancel_shielded_checkpoint()
            pending = sent[0]
            assert pending is not None
            dispatch.enter(pending.unblock)
            with trio.fail_after(5):
                while town.channel.channel.held:  # the handler is not told of
                    await trio.lowlevel.checkpoint()
        assert statuses == [-errno.EINTR] * len(every)
        nursery.cancel_scope.cancel()


def _submit(sent: list[Pending | None], connection: Connection, message: bytes, statuses: list[int]) -> None:
    sent.append(connection.submit((message,), 0, lambda status, reply: statuses.append(status)))


async def test_nobody_has_all_the_tasks() -> None:
    async with open_dispatch(spin=0) as dispatch, trio.open_nursery() as nursery:
        town = await running(nursery, Kernel(dispatch, "a"), tasks_max=16)
        answers: dict[tuple[int, int], list[int]] = {}

        def begin(uid: int, pid: int, count: int) -> None:
            connection = town.connect(uid, pid)
            for _ in range(count):
                said = answers.setdefault((uid, pid), [])
                _submit([], connection, ADDER.pack_request(Wait(60)), said)

        for uid, pid, count in ((5, 1, 3), (5, 2, 2), (5, 3, 2), (5, 4, 2), (5, 5, 1), (6, 6, 2)):
            dispatch.enter(partial(begin, uid, pid, count))
            await trio.testing.wait_all_tasks_blocked()
        full = [-errno.EAGAIN]
        assert answers == {(5, 1): full, (5, 2): [], (5, 3): [], (5, 4): [], (5, 5): full, (6, 6): []}
        nursery.cancel_scope.cancel()


async def test_blocking_programs(tmp_path: Path) -> None:
    async with open_dispatch(spin=0) as dispatch:
        daemon = UnixServer(dispatch, Kernel(dispatch, "a"), tmp_path / "socket")

        class Plain(Adder):
            @handler
            def wait(self, request: Wait, message: Message) -> None:  # type: ignore[override]  # a blocking program's
                return None

        def program() -> None:
            with Client(daemon.path) as client, Client(daemon.path) as other:
                channel = other.channel()
                connection = client.connect(0, channel.pid, channel.chid)
                server = Plain()
                cases: list[tuple[Request[Any], object]] = [(Add([4, 5]), Sum(9)), (Wait(1), None)]
                for request, expected in cases:
                    sent = connection.submit(ADDER.pack_request(request), reply_len=1000)
                    message = channel.receive(5)
                    assert isinstance(message, BlockingMessage)
                    answer(server, message)
                    assert ADDER.unpack_reply(request, sent.wait(5).data) == expected
                sent = connection.submit(ADDER.pack_request(Fail(0)))
                message = channel.receive(5)
                assert isinstance(message, BlockingMessage)
                with pytest.raises(RuntimeError):
                    answer(server, message)
                with pytest.raises(ResmgrError):
                    sent.wait(5)

        with trio.fail_after(20):
            await trio.to_thread.run_sync(program)
        daemon.close()


def test_bytes_of_a_request_and_of_strangers() -> None:
    packed = ADDER.pack_request(Add([1]))
    assert packed.hex() == "716d0100" + f"{ADDER.id:08x}" + "00030001" + "00000001" + "0000000000000001"
    assert ADDER.unpack_request(packed) == Add([1])
    for length in range(len(packed)):
        with pytest.raises(BadMessage):
            ADDER.unpack_request(packed[:length])
    reply = ADDER.pack_reply(Add([]), Sum(7))
    assert ADDER.unpack_reply(Add([]), reply) == Sum(7)
    for length in range(len(reply)):
        with pytest.raises(BadMessage):
            ADDER.unpack_reply(Add([]), reply[:length])
    with pytest.raises(BadMessage):
        ADDER.unpack_reply(Wait(1), reply)
    server = Adder()
    assert server.answer(b"something else", None)[0] == errno.EBADMSG
    assert server.answer(HEAD.pack(0x716D, 1, 0, ADDER.id, 3, 99), None)[0] == errno.ENOSYS
    assert REQUEST_MAX == 1 << 20


@attrs.frozen
class Size(Request[None]):
    width: int
    height: int


@attrs.frozen
class Turned(Request[None]):
    height: int
    width: int


@attrs.frozen
class Narrow(Request[None]):
    width: Annotated[int, Number("i")]
    height: int


@attrs.frozen
class Answered(Request[Sum]):
    width: int
    height: int


@attrs.frozen
class Again(Request[None]):
    """The same, under another class's name."""

    width: int
    height: int


@attrs.frozen
class Many(Request[None]):
    sizes: list[Size]


@attrs.frozen
class ManyTurned(Request[None]):
    sizes: list[Turned]


def test_other_fields_are_another_version() -> None:
    """Programs that both say version 1, though a class was changed: no field is taken for another."""

    ours = Interface("box", 1, {1: Size})
    for other in (Turned, Narrow, Answered):
        theirs = Interface("box", 1, {1: other})
        with pytest.raises(interface.OtherVersion) as raised:
            theirs.unpack_request(ours.pack_request(Size(1, 2)))
        with pytest.raises(VersionSkew, match="fields of 'box' version 1 are not this program's"):
            ours.unpack_reply(Size(1, 2), raised.value.answer)
    assert Interface("box", 1, {2: Size}).id != ours.id
    assert Interface("box", 1, {1: Again}).id == ours.id

    assert Interface("box", 1, {1: Many}).id != Interface("box", 1, {1: ManyTurned}).id, "also deeper down"


def test_declarations_that_do_not_fit() -> None:
    class Missing(TypedServer):
        interface = ADDER

    class Wrong(Adder):
        @handler
        def add(self, request: Add, message: Message) -> int:  # type: ignore[override]  # that is the mistake
            return 1

    with pytest.raises(Misuse, match="no handler for Add, Wait, Fail"):
        Missing()
    with pytest.raises(Misuse, match=r"Wrong\.add has to return Sum"):
        Wrong()
    with pytest.raises(Misuse):
        Interface("x", 1, {0: Add})
    with pytest.raises(Misuse):
        OTHER.pack_request(Wait(1))


def test_the_page_about_an_interface() -> None:
    text = ADDER.describe()
    assert "# adder, version 3" in text
    assert "## 1: Add\n\nAdds.\n" in text
    assert "| request | numbers | at most 65536 of (I64) |" in text
    assert "| Sum | total | I64 |" in text


def described(view: bytes) -> Description | None:
    try:
        return parse_description(view)
    except BadMessage:
        return None


def test_a_server_tells_what_it_understands() -> None:
    with pytest.raises(OtherVersion) as other:
        ADDER.unpack_request(pack_question())
    told = other.value.answer
    adds = Described(1, "Add", "Adds.", (("numbers", "at most 65536 of (I64)"),), "Sum", (("total", "I64"),))
    waits = Described(2, "Wait", "", (("seconds", "float"),), None, ())
    fails = Described(5, "Fail", "", (("code", "I64"),), None, ())
    assert parse_description(told) == Description("adder", 3, ADDER.id, (adds, waits, fails))
    head = HEAD.size + len("adder")
    assert described(told[:head]) == Description("adder", 3, ADDER.id, None), "what a server says that does not know the question"
    for length in range(len(told)):
        short = described(told[:length])
        assert (short is not None) == (HEAD.size <= length <= head)
    for text in (
        "[]",
        "{}",
        '{"requests":7}',
        '{"requests":[7]}',
        '{"requests":[{}]}',
        "[" * 100_000,
        '{"requests":[' + "7," * 5000 + "7]}",
    ):
        assert described(told[:head] + b"\0" + text.encode()) is None
    for field in ("number", "name", "about", "fields", "reply", "reply_fields"):
        row = adds._asdict() | {field: {"x": 1}}
        assert described(told[:head] + b"\0" + json.dumps({"requests": [row]}).encode()) is None
    assert described(ADDER.pack_reply(Wait(0), None)) is None
    with pytest.raises(Misuse):
        Interface("a\0b", 1, {1: Add})


async def test_the_howto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    assert set(blocks) == {"thermo", "server", "client"}
    modules = {}
    for name in ("thermo", "server", "client"):
        module = modules[name] = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(blocks[name], f"{PAGE}:{name}", "exec"), module.__dict__)
    socket = str(tmp_path / "socket")
    async with open_dispatch(spin=0) as dispatch:
        system = System(dispatch, "a")
        system.serve_names()
        system.listen(socket)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(modules["server"].main, socket)
            with trio.fail_after(20):
                said = await trio.to_thread.run_sync(modules["client"].ask, socket)
            assert f"\n{said}\n```" in PAGE.read_text()
            nursery.cancel_scope.cancel()
        system.close()
    assert "| Reading | degrees | float |" in modules["thermo"].THERMO.describe()
