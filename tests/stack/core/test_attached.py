"""What `attach` returns is looked at when it is returned: what lacks something is refused by name, and nothing of it stays."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

import attrs
import pytest

from resmgr.channel import PID_SYSTEM
from stack.core.errors import ModuleError
from stack.core.module import Context, Kind, Module
from stack.core.stack import Stack
from stack.core.wrapper import Around
from stack.testing.driver import OTHER_TYPE
from stack.testing.machines import World


@attrs.frozen
class Options:
    pass


class Empty:
    pass


class Endless:
    """A driver but for its end."""

    name, mac, mtu, up = "e0", bytes.fromhex("020000000044"), 1500, True

    def start(self, port: object) -> None: ...

    def accept(self, ethertypes: object) -> None: ...

    def transmit(self, frames: object) -> None: ...

    def info(self) -> dict[str, str]:
        return {}


class Blind(Endless):
    """It can end, and cannot send."""

    transmit = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.ended = 0

    def detach(self) -> None:
        self.ended += 1


class Macless:
    name, mtu, up = "e0", 1500, True
    start = accept = transmit = info = detach = Endless.info


def registers(context: Context) -> None:
    """All that a module may leave."""
    context.stack.register_ethertype(OTHER_TYPE, lambda interface, frames: None)
    context.stack.on_interface(lambda event, interface: None)
    context.dispatch.call_at(1e9, lambda: None)
    context.kernel.channel(lambda message: None, pid=PID_SYSTEM, chid=77)


@pytest.mark.parametrize(
    ("kind", "returned", "sentence"),
    [
        (Kind.PROTOCOL, None, "None, lacks detach() of a protocol"),
        (Kind.PROTOCOL, Empty(), "Empty, lacks detach() of a protocol"),
        (Kind.DRIVER, None, "None, lacks name, mac, mtu, up, start(), accept(), transmit(), info(), detach() of a driver"),
        (Kind.DRIVER, Endless(), "Endless, lacks detach() of a driver"),
        (Kind.DRIVER, Macless(), "Macless, lacks mac of a driver"),
    ],
)
def test_what_lacks_something_is_refused_by_name_and_leaves_nothing(
    kind: Kind, returned: object, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    def attach(context: Context, options: Options) -> object:
        registers(context)
        return returned

    with World(1) as world:
        stack = world.machine("a", 0).stack
        before = found(stack)
        with caplog.at_level(logging.WARNING), pytest.raises(ModuleError) as refused:
            stack.load(Module("mine", kind, Options, attach))  # type: ignore[arg-type]  # that is the point
        assert (refused.value.errno, str(refused.value)) == (errno.EINVAL, f"cannot load mine: what its attach returned, {sentence}")
        assert found(stack) == before
        assert caplog.text == ""


def found(stack: Stack) -> object:
    return (
        [one.module.name for one in stack.loaded],
        stack.ethertypes(),
        stack.interfaces,
        dict(stack.failures()),
        stack.kernel.find_channel(PID_SYSTEM, 77),
    )


def test_what_can_end_is_ended() -> None:
    with World(1) as world:
        stack, blind = world.machine("a", 0).stack, Blind()
        with pytest.raises(ModuleError, match=r"Blind, lacks transmit\(\) of a driver$"):
            stack.load(Module("mine", Kind.DRIVER, Options, lambda context, options: blind))
        assert blind.ended == 1


class Odd(Around):
    around = None  # type: ignore[assignment]
    ended = 0

    def detach(self) -> None:
        Odd.ended += 1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [(lambda: None, "None, lacks name, mac, mtu, up, "), (Odd, "Odd, lacks around() of a wrapper")],
)
def test_a_wrapper_that_is_none_takes_the_driver_with_it(
    make: Callable[[], object], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Module("none", Kind.WRAPPER, Options, lambda context, options: make())  # type: ignore[arg-type, return-value]
    monkeypatch.setattr("stack.core.loaded.find_module", lambda name, kind: module)
    monkeypatch.setattr("stack.core.preparation.find_module", lambda name, kind: module)
    with World(1) as world:
        machine, ended = world.machine("a", 0), Odd.ended
        with pytest.raises(ModuleError) as refused:
            machine.stack.load(world.hubs[0].module(), "name=en1,mac=02:00:00:00:00:77", wrap=[("none", "")])
        assert str(refused.value).startswith(f"cannot load none: what its attach returned, {sentence}")
        assert [one.name for one in machine.stack.interfaces] == ["en0"]
        assert Odd.ended - ended == (make is Odd)
