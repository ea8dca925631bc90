"""The end of a stack and of io-pkt: nothing of it stays, whatever a part of the end raises."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import attrs
import pytest

from resmgr.channel import Kernel
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.manager import open_manager
from stack.core.module import Context, Kind, Module
from stack.core.stack import Stack
from stack.managers.iopkt import IoPktManager
from stack.managers.netdir import NetDirectory


@attrs.frozen
class Options:
    pass


class Running:
    """Knows who is running while it is attached."""

    def __init__(self, context: Context, options: Options) -> None:
        self.guard = context.kernel.running()

    def detach(self) -> None: ...


def test_a_system_keeps_nothing_of_stacks_that_were_closed() -> None:
    system = System(VirtualDispatch(1), "n")
    gc.collect()
    before = sum(isinstance(one, Stack) for one in gc.get_objects())
    for number in range(1100):
        stack = Stack(system, random.Random(1).randbytes, f"io-pkt{number}")
        stack.close()
        stack.close()
    del stack
    assert system.kernel.running() is system.shield
    gc.collect()
    assert sum(isinstance(one, Stack) for one in gc.get_objects()) == before


@pytest.mark.parametrize("first", [0, 1])
def test_who_runs_is_known_of_each_stack_of_a_system_whichever_ends_first(first: int) -> None:
    system = System(VirtualDispatch(1), "n")
    stacks = [Stack(system, random.Random(1).randbytes, f"io-pkt{number}") for number in range(2)]
    module = Module("running", Kind.PROTOCOL, Options, Running)
    for _ in range(2):
        for stack in stacks:
            loaded = stack.load(module)
            assert isinstance(loaded.attached, Running)
            assert loaded.attached.guard is loaded.guard
            stack.unload(loaded)
        stacks[first % len(stacks)].close()
        del stacks[first % len(stacks)]
    stacks = []
    assert system.kernel.running() is system.shield


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_an_end_that_raises_keeps_no_other_from_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = str(tmp_path / "socket")

    def broken(directory: NetDirectory) -> None:
        raise OSError(5, "this end is broken")

    monkeypatch.setattr(NetDirectory, "close", broken)
    with pytest.raises(OSError, match="this end is broken"):
        async with open_manager([], socket=socket) as manager:
            assert files(tmp_path)
    assert files(tmp_path) == []
    assert manager.stack.kernel.running() is manager.stack.kernel.running.own, "the stack was closed"


async def test_a_start_that_fails_in_the_middle_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[IoPktManager] = []
    kernels: list[Kernel] = []
    close = IoPktManager.close

    def seen(manager: IoPktManager) -> None:
        closed.append(manager)
        close(manager)

    def broken(directory: NetDirectory, stack: Stack, share: object) -> None:
        kernels.append(stack.kernel)
        raise OSError(5, "no directory")

    monkeypatch.setattr(IoPktManager, "close", seen)
    monkeypatch.setattr(NetDirectory, "__init__", broken)
    with pytest.raises(OSError, match="no directory"):
        async with open_manager([]):
            pass
    assert len(closed) == 1
    assert kernels[0].running() is kernels[0].running.own
