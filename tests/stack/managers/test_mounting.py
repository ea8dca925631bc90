"""A module that takes its time to get ready, mounted while frames flow: they do not wait, and it may come too late."""

from __future__ import annotations

import errno
import os
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable

import attrs
import pytest
import trio

from resmgr.channel import ND_LOCAL, PID_SYSTEM, Credentials, Pending
from resmgr.dispatch import Buffer
from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.system import System
from stack.core.errors import ModuleError
from stack.core.ifnet import Interface
from stack.core.module import Context, Kind, Module
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.frame import Frame
from stack.managers.iopkt import PREPARING_EACH, IoPktManager
from stack.managers.protocol import CHID_STACK, pack_request, unpack_reply
from stack.testing.driver import TYPE, frame
from stack.wire.ethernet import BROADCAST

NAME = "slow.module"
ROOT = Credentials(0, 0)


@attrs.frozen
class Options:
    fail: bool = False


class Slow:
    """The module, and what it prepares: for as long as nobody lets it go on."""

    def __init__(self) -> None:
        self.preparing, self.go_on, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        self.prepared = 0
        self.attached_by: threading.Thread | None = None

    def prepare(self, system: System, options: Options) -> Slow:
        self.thread = threading.current_thread()
        self.prepared += 1
        self.preparing.set()
        assert self.go_on.wait(10)
        if options.fail:
            raise ModuleError(errno.ENOENT, "no file to read")
        return self

    def attach(self, context: Context, options: Options) -> Slow:
        assert context.prepared is self
        self.attached_by = threading.current_thread()
        return self

    def close(self) -> None:
        self.closed.set()

    def detach(self) -> None: ...


class Rig:
    def __init__(self, dispatch: TrioDispatch, slow: Slow) -> None:
        self.dispatch, self.slow = dispatch, slow
        self.stack = Stack(System(dispatch, "n"), os.urandom)
        self.manager = IoPktManager(self.stack, os.geteuid())
        self.stack.load(Hub(dispatch).module(), "name=en0,mac=02:00:00:00:00:02")
        self.stack.register_ethertype(TYPE, self.hear)
        self.asking = self.stack.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_STACK, ROOT)
        self.answers: list[dict[str, object]] = []
        self.heard = 0

    def hear(self, interface: Interface, frames: list[Frame]) -> None:
        self.heard += len(frames)

    def mount(self, options: str = "") -> None:
        def answered(status: int, reply: Buffer) -> None:
            self.answers.append(unpack_reply(bytes(reply)) if status == 0 else {"errno": -status})

        self.pending = self.asking.submit([pack_request("mount", module=NAME, options=options)], 65536, answered)

    async def frames_pass(self) -> None:
        """While the module gets ready."""
        with trio.fail_after(10):
            while not self.slow.preparing.is_set():  # noqa: ASYNC110  # what is awaited is a thread
                await trio.sleep(0.001)
        before = self.heard
        interface = self.stack.interface("en0")
        assert interface is not None
        sent: list[Frame] = [frame(BROADCAST, bytes.fromhex("020000000009"), b"x", TYPE)]
        for _ in range(3):
            self.dispatch.enter(lambda: interface.deliver(sent))
        assert self.heard == before + 3
        assert self.answers == []

    async def answer(self) -> dict[str, object]:
        with trio.fail_after(10):
            while not self.answers:  # noqa: ASYNC110  # what is awaited is in the dispatch
                await trio.sleep(0.001)
        return self.answers.pop()


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    slow = Slow()
    module = types.ModuleType(NAME)
    monkeypatch.setattr(module, "MODULE", Module("slow", Kind.PROTOCOL, Options, slow.attach, prepare=slow.prepare), raising=False)
    for name in ("slow", NAME):
        monkeypatch.setitem(sys.modules, name, module)
    async with open_dispatch() as dispatch:
        made = Rig(dispatch, slow)
        yield made
        slow.go_on.set()
        made.manager.close()
        made.stack.close()
        assert dispatch.statistics().descriptors == 0


async def test_frames_do_not_wait_for_a_module_that_gets_ready(rig: Rig) -> None:
    rig.dispatch.enter(rig.mount)
    await rig.frames_pass()
    rig.slow.go_on.set()
    assert (await rig.answer())["name"] == "slow"
    assert rig.slow.thread is not threading.current_thread()
    assert rig.slow.attached_by is threading.current_thread()
    assert not rig.slow.closed.is_set()


async def test_what_goes_wrong_there_is_told(rig: Rig) -> None:
    rig.dispatch.enter(lambda: rig.mount("fail"))
    await rig.frames_pass()
    rig.slow.go_on.set()
    assert await rig.answer() == {"error": "no file to read", "errno": errno.ENOENT}
    assert [one.module.name for one in rig.stack.loaded] == ["hub"]


async def test_who_gave_up_gets_no_module(rig: Rig) -> None:
    rig.dispatch.enter(rig.mount)
    await rig.frames_pass()
    assert rig.pending is not None
    rig.dispatch.enter(rig.pending.unblock)
    assert await rig.answer() == {"errno": errno.EINTR}
    rig.slow.go_on.set()
    with trio.fail_after(10):
        while not rig.slow.closed.is_set():  # noqa: ASYNC110  # what is awaited is in the dispatch
            await trio.sleep(0.001)
    assert rig.slow.attached_by is None
    assert [one.module.name for one in rig.stack.loaded] == ["hub"]


def ask(rig: Rig, verb: str, **arguments: object) -> list[dict[str, object]]:
    """As another client. Its answers."""
    answers: list[dict[str, object]] = []
    asking = rig.stack.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_STACK, ROOT)

    def answered(status: int, reply: Buffer) -> None:
        answers.append(unpack_reply(bytes(reply)) if status == 0 else {"errno": -status})

    def send() -> None:
        asking.submit([pack_request(verb, **arguments)], 65536, answered)

    rig.dispatch.enter(send)
    return answers


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110  # what is awaited is in the dispatch
            await trio.sleep(0.001)


async def test_others_change_things_while_a_module_gets_ready_and_its_own_client_keeps_its_order(rig: Rig) -> None:
    order: list[str] = []

    def answered(name: str) -> Callable[[int, Buffer], None]:
        return lambda status, reply: order.append(f"{name} {unpack_reply(bytes(reply)).get('errno', 'done')}")

    def send() -> None:
        rig.asking.submit([pack_request("mount", module=NAME)], 65536, answered("mount"))
        rig.asking.submit([pack_request("umount", what="slow")], 65536, answered("umount"))

    rig.dispatch.enter(send)
    await until(rig.slow.preparing.is_set)
    others = ask(rig, "interface", interface="en0", up=False)
    await until(lambda: bool(others))
    assert others == [{"name": "en0", "up": False, "enabled": False, "mtu": 1500}]
    assert order == []
    rig.slow.go_on.set()
    await until(lambda: len(order) == 2)
    assert order == ["mount done", "umount done"]


async def test_who_mounts_much_at_once_waits_and_others_do_not(rig: Rig) -> None:
    mounts = [ask(rig, "mount", module=NAME) for _ in range(PREPARING_EACH + 1)]
    given_up = rig.stack.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_STACK, ROOT)
    gone: list[int] = []
    pending: list[Pending] = []

    def send() -> None:
        sent = given_up.submit([pack_request("mount", module=NAME)], 65536, lambda status, reply: gone.append(status))
        assert sent is not None
        pending.append(sent)

    rig.dispatch.enter(send)
    await until(lambda: rig.slow.prepared == PREPARING_EACH)
    others = ask(rig, "interface", interface="en0", mtu=1000)
    await until(lambda: bool(others))
    rig.dispatch.enter(pending[0].unblock)
    assert gone == [-errno.EINTR]
    assert rig.slow.prepared == PREPARING_EACH
    rig.slow.go_on.set()
    await until(lambda: all(mounts))
    assert [answers[0].get("name") for answers in mounts] == ["slow"] * (PREPARING_EACH + 1)
    assert rig.slow.prepared == PREPARING_EACH + 1, "what its client gave up was begun"


async def test_what_gets_ready_when_the_manager_ends_is_closed(rig: Rig) -> None:
    rig.dispatch.enter(rig.mount)
    await rig.frames_pass()
    rig.dispatch.enter(rig.manager.close)
    assert await rig.answer() == {"errno": errno.ESRCH}
    rig.slow.go_on.set()
    await until(rig.slow.closed.is_set)
    assert rig.slow.attached_by is None
