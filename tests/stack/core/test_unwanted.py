"""What a module got ready and nobody wants: it is closed, whatever closing it raises, and also when the dispatch ends before it is told."""

from __future__ import annotations

import errno
import logging
import random
import sys
import threading
import types
from collections.abc import Callable
from typing import TypeVar

import attrs
import pytest
import trio

from resmgr.channel import ND_LOCAL, PID_SYSTEM, Credentials
from resmgr.errors import Misuse
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.errors import ModuleError
from stack.core.manager import open_manager
from stack.core.module import Context, Kind, Module
from stack.core.preparation import prepare
from stack.core.stack import Stack
from stack.core.underway import UnderWay
from stack.managers.iopkt import IoPktManager
from stack.managers.protocol import CHID_STACK, pack_request

T = TypeVar("T")
NAME = "unwanted.module"
ROOT = Credentials(0, 0)


@attrs.frozen
class Options:
    fail: bool = False


class Ready:
    """Its end raises *raises*, if it is given."""

    def __init__(self, raises: type[BaseException] | None = None) -> None:
        self.raises = raises
        self.closed: list[threading.Thread] = []

    def close(self) -> None:
        self.closed.append(threading.current_thread())
        if self.raises is not None:
            raise self.raises("it does not close")


class Idle:
    def __init__(self, context: Context, options: Options) -> None:
        if options.fail:
            raise ModuleError(errno.ENODEV, "no such luck")

    def detach(self) -> None: ...


class Threads(VirtualDispatch):
    """Its threads run when they are told to."""

    def __init__(self) -> None:
        super().__init__(1)
        self.work: list[Callable[[], None]] = []

    def call_blocking(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        begin = super().call_blocking
        self.work.append(lambda: begin(work, done))

    def threads(self) -> None:
        while self.work:
            self.work.pop(0)()


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, raises: type[BaseException] | None = None) -> None:
        self.dispatch = Threads()
        self.stack = Stack(System(self.dispatch, "n"), random.Random(1).randbytes)
        self.ready = Ready(raises)
        self.module = Module("unwanted", Kind.PROTOCOL, Options, Idle, prepare=lambda system, options: self.ready)
        file = types.ModuleType(NAME)
        monkeypatch.setattr(file, "MODULE", self.module, raising=False)
        monkeypatch.setitem(sys.modules, NAME, file)

    @property
    def counted(self) -> dict[str, int]:
        return dict(self.stack.failures())


def test_a_load_fails_for_its_own_reason_whatever_the_end_of_what_was_prepared_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, KeyboardInterrupt)
    with pytest.raises(ModuleError, match="no such luck"):
        world.stack.load(world.module, "fail")
    assert world.counted == {"prepared close": 1}
    made = prepare(world.stack.system, world.module, "", None, ())
    world.stack.close()
    with pytest.raises(Misuse, match="closed"):
        world.stack.load_prepared(made)
    assert world.counted == {"prepared close": 2}


def test_a_mount_that_nobody_waits_for_is_closed_and_what_that_raises_ends_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, SystemExit)
    manager = IoPktManager(world.stack, 0)
    client = world.stack.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_STACK, ROOT)
    pending = client.submit([pack_request("mount", module=NAME)], 65536, lambda status, reply: None)
    assert world.dispatch.run_until(lambda: bool(world.dispatch.work), limit=1.0)
    assert pending is not None
    pending.unblock()
    world.dispatch.threads()
    world.dispatch.run_for(0.1)
    assert len(world.ready.closed) == 1
    assert world.counted == {"prepared close": 1}
    assert world.stack.loaded == ()
    manager.close()


def test_a_restart_that_was_given_up_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, SystemExit)
    loaded = world.stack.load(world.module, "restart=3")
    world.stack.restarter.failed(loaded.guard)
    assert world.dispatch.run_until(lambda: bool(world.dispatch.work), limit=1.0)
    world.stack.restarter.give_up("unwanted #1")
    world.dispatch.threads()
    world.dispatch.run_for(0.1)
    assert world.counted == {"prepared close": 1}


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("ready", [False, True])
def test_what_is_under_way_when_the_stack_is_closed(ready: bool, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    """*ready*: before that; *told*: the dispatch goes on."""
    dispatch, made, answers = Threads(), Ready(OSError), list[object]()
    under_way = UnderWay(dispatch)
    under_way.begin(lambda: made, answers.append)
    with caplog.at_level(logging.ERROR):
        if ready:
            dispatch.threads()
        under_way.close()
        assert len(made.closed) == ready
        dispatch.threads()
    assert len(made.closed) == 1
    assert "it does not close" in caplog.text
    if told:
        dispatch.run_for(0.1)
        assert isinstance(answers.pop(), Misuse)
    assert answers == []


def test_what_is_begun_when_the_stack_is_closed() -> None:
    dispatch, made, answers = Threads(), Ready(), list[object]()
    under_way = UnderWay(dispatch)
    under_way.close()
    under_way.begin(lambda: made, answers.append)
    dispatch.threads()
    assert len(made.closed) == 1
    dispatch.run_for(0.1)
    assert isinstance(answers.pop(), Misuse)


async def test_a_mount_that_is_under_way_when_io_pkt_ends_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, begun, go_on = Ready(), threading.Event(), threading.Event()

    def slow(system: System, options: Options) -> Ready:
        begun.set()
        assert go_on.wait(10)
        return ready

    file = types.ModuleType(NAME)
    monkeypatch.setattr(file, "MODULE", Module("unwanted", Kind.PROTOCOL, Options, Idle, prepare=slow), raising=False)
    monkeypatch.setitem(sys.modules, NAME, file)
    whole = Stack.close

    def close(stack: Stack) -> None:
        """The thread is done after the stack is closed, and before anything is told of it."""
        whole(stack)
        go_on.set()

    monkeypatch.setattr(Stack, "close", close)
    with trio.fail_after(10):
        async with open_manager([]) as manager:
            client = manager.stack.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_STACK, ROOT)
            answers: list[int] = []
            client.submit([pack_request("mount", module=NAME)], 65536, lambda status, reply: answers.append(status))
            while not begun.is_set():  # noqa: ASYNC110  # what is awaited is a thread
                await trio.sleep(0.001)
    assert answers == [-errno.ESRCH]
    assert len(ready.closed) == 1
    assert ready.closed[0] is not threading.current_thread()
