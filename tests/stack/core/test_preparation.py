"""What a module gets ready before it is attached: who has it, and that nobody keeps it when the load fails."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import TypeVar

import attrs
import pytest

from resmgr.errors import Misuse
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.errors import ModuleError, OptionError
from stack.core.module import Context, Kind, Module
from stack.core.preparation import prepare
from stack.core.stack import Stack

T = TypeVar("T")


@attrs.frozen
class Options:
    number: int = 1
    fail: bool = False


class Ready:
    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Idle:
    def __init__(self, context: Context, options: Options) -> None:
        if options.fail:
            raise ModuleError(errno.ENODEV, "no such luck")
        self.context = context

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
        self.run_for(0.1)


class World:
    def __init__(self) -> None:
        self.dispatch = Threads()
        self.refuse = ""
        self.stack = Stack(System(self.dispatch, "n"), random.Random(1).randbytes)
        self.made: list[Ready] = []
        self.module = Module("idle", Kind.PROTOCOL, Options, Idle, prepare=self.prepare)

    def prepare(self, system: System, options: Options) -> Ready:
        assert system is self.stack.system
        if self.refuse:
            raise ModuleError(errno.ENOENT, self.refuse)
        self.made.append(Ready(options.number))
        return self.made[-1]

    @property
    def attached(self) -> Idle:
        (loaded,) = self.stack.loaded
        assert isinstance(loaded.attached, Idle)
        return loaded.attached


def test_what_is_prepared_is_the_modules_once_it_is_attached() -> None:
    world = World()
    made = prepare(world.stack.system, world.module, "number=7,restart=2", None, ())
    assert (made.options, made.restart, world.stack.loaded) == ("number=7", 2, ())
    loaded = world.stack.load_prepared(made)
    assert world.attached.context.prepared is world.made[0]
    assert world.made[0].number == 7
    assert loaded.restarts is not None
    assert loaded.restarts.most == 2
    world.stack.unload(loaded)
    assert world.made[0].closed == 0, "it is the module's to close"


def restarted(world: World) -> None:
    """A module of the world fails, and is unloaded."""
    (loaded,) = world.stack.loaded
    world.stack.restarter.failed(loaded.guard)
    assert world.dispatch.run_until(lambda: bool(world.stack.restarter.absent()), limit=1.0)


def test_a_restart_prepares_in_a_thread_and_not_in_the_dispatch() -> None:
    world = World()
    world.stack.load(world.module, "number=3,restart=2")
    restarted(world)
    assert world.stack.loaded == ()
    assert len(world.made) == 1, "the thread has not begun"
    assert world.stack.restarter.absent() == {"idle #1": "it gets ready"}
    world.dispatch.threads()
    assert [one.number for one in world.made] == [3, 3]
    assert world.attached.context.prepared is world.made[1]
    assert world.stack.restarter.absent() == {}


def test_a_restart_whose_preparation_fails_is_tried_again() -> None:
    world = World()
    world.stack.load(world.module, "restart=3")
    world.refuse = "no file to read"
    restarted(world)
    world.dispatch.threads()
    assert world.stack.restarter.absent() == {"idle #1": "no file to read"}
    world.refuse = ""
    world.dispatch.run_for(1.5)
    world.dispatch.threads()
    assert world.attached.context.prepared is world.made[-1]


def test_a_restart_that_is_given_up_while_it_gets_ready() -> None:
    for close in (False, True):
        world = World()
        world.stack.load(world.module, "restart=3")
        restarted(world)
        if close:
            world.stack.close()
        else:
            (label,) = world.stack.restarter.waiting("idle")
            world.stack.restarter.give_up(label)
        world.dispatch.threads()
        assert world.stack.loaded == ()
        assert [one.closed for one in world.made] == [0, 1]


def test_what_is_not_taken_is_closed() -> None:
    world = World()
    with pytest.raises(ModuleError, match="no such luck"):
        world.stack.load(world.module, "fail")
    assert world.made.pop().closed == 1
    with pytest.raises(OptionError, match="number"):
        world.stack.load(world.module, "number=many")
    assert not world.made
    made = prepare(world.stack.system, world.module, "", None, ())
    world.stack.close()
    with pytest.raises(Misuse, match="closed"):
        world.stack.load_prepared(made)
    made.close()
    assert [one.closed for one in world.made] == [1]
    with pytest.raises(Misuse, match="closed"):
        world.stack.load(world.module)
    assert len(world.made) == 1


def test_wrappers_are_found_before_anything_is_prepared() -> None:
    world = World()
    driver = Module("driver", Kind.DRIVER, Options, Idle, prepare=world.prepare)
    with pytest.raises(ModuleError, match="there is no wrapper called nothing"):
        world.stack.load(driver, wrap=[("fault", ""), ("nothing", "")])
    assert not world.made
