"""A module at work in a stack, and the chain of wrappers around a driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import attrs

from stack.core.driver import Driver, Wrapper
from stack.core.isolation import Guard, GuardedDispatch
from stack.core.loader import find_module
from stack.core.module import Attached, Context, Kind, Loadable, can_detach, check_attached

if TYPE_CHECKING:
    from stack.core.ifnet import Interface
    from stack.core.restart import Restarts


@attrs.define(eq=False)
class Loaded:
    """A module at work. `interface` is set for drivers; `wrappers` are around the driver, innermost first, as `wrap` asked for.

    `number` is never used twice in a stack's life. `options` are the module's own, without what is io-pkt's. `named`: what it was found by.
    """

    number: int
    module: Loadable
    options: str
    guard: Guard
    dispatch: GuardedDispatch
    attached: Attached
    wrap: Sequence[tuple[str, str]]
    restarts: Restarts | None
    named: str = ""
    interface: Interface | None = None
    wrappers: tuple[Driver, ...] = ()

    def called(self, name: str) -> bool:
        """It is the module that *name* names: by its own name, or by what it was found by."""
        return is_called(name, self.module.name, self.named)


def is_called(name: str, own: str, named: str) -> bool:
    """A module called *own*, found by *named*, is what *name* says: `my.echo` is `my.echo:MODULE`."""
    return name == own or (bool(named) and name.removesuffix(":MODULE") == named.removesuffix(":MODULE"))


def wrapped(innermost: Driver, wrap: Sequence[tuple[str, str]], context: Context) -> Iterator[Driver]:
    """*innermost*, then each wrapper around the one before. The last one yielded is whom to detach, also when the next cannot be made."""
    driver = innermost
    yield driver
    context = attrs.evolve(context, kept=None, prepared=None)
    for name, options in wrap:
        returned = find_module(name, Kind.WRAPPER).attach_text(context, options)
        try:
            check_attached(returned, Kind.WRAPPER, name)
            wrapper = cast(Wrapper, returned)
            wrapper.around(driver)
        except BaseException:
            if can_detach(returned):
                returned.detach()
            raise
        driver = wrapper
        yield driver
