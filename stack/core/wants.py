"""What drivers are told of what the stack wants from them, so that the rest costs nothing: ethertypes, screens, runs in one piece.

    ethertypes that are registered, hooks, screens  --tell_all-->  accept, screen, whole_runs of each driver

An interface on which a hook wants everything, or below one where it does, gets no filter and no screens: what a protocol sheds, a bridge
forwards. A driver is told only what is news to it, because each word may be a system call; one that raises keeps no other from being told.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from stack.core.hooks import Hooks
from stack.core.ifnet import Interface
from stack.core.interfaces import Interfaces
from stack.core.isolation import RAISED, Guard, Guards
from stack.core.layers import all_below
from stack.core.registry import Ethertypes
from stack.core.runs import carries_runs
from stack.core.screen import Screen, can_screen


@attrs.frozen(eq=False)
class Told:
    """What a driver has been told."""

    ethertypes: frozenset[int] | None
    """None: all."""
    screens: dict[int, Screen]
    runs: bool
    """It hands them up in one piece."""


class Wants:
    """Of one stack; reads its interfaces, hooks and ethertypes, and keeps the screens."""

    def __init__(self, guards: Guards, interfaces: Interfaces, hooks: Hooks, ethertypes: Ethertypes) -> None:
        self._guards = guards
        self._interfaces = interfaces
        self._hooks = hooks
        self._ethertypes = ethertypes
        self._screens: dict[int, Screen] = {}
        self._told: dict[Interface, Told] = {}

    def tell_all(self) -> None:
        """Something that is wanted has come or gone."""
        everything = self._everything()
        for interface in tuple(self._interfaces.by_name.values()):
            self._guards.call(interface.guard, "accept", self._tell, interface, interface.name in everything)

    def tell(self, interface: Interface) -> None:
        """The driver of one that is not in the table yet. What that raises is the caller's; then it counts as not told."""
        name = interface.name
        self._tell(interface, self._hooks.want_everything(name) or name in self._everything())

    def _tell(self, interface: Interface, everything: bool) -> None:
        driver, told = interface.driver, self._told.get(interface)
        if everything:
            wanted: frozenset[int] | None = None
            screens: dict[int, Screen] = {}
        else:
            wanted, screens = self._ethertypes.wanted(), dict(self._screens)
        runs = self._hooks.want_runs(interface.name)
        if told is not None and (told.ethertypes, told.screens, told.runs) == (wanted, screens, runs):
            return
        if can_screen(driver) and (screens if told is None else screens != told.screens):
            driver.screen(screens)
        driver.accept(wanted)
        if carries_runs(driver) and (runs if told is None else runs != told.runs):
            driver.whole_runs(runs)
        self._told[interface] = Told(wanted, screens, runs)

    def forget(self, interface: Interface) -> None:
        """It is gone."""
        self._told.pop(interface, None)

    def screen(self, ethertype: int, screen: Screen | None) -> None:
        """As `stack.core.stack.Stack.screen`."""
        if screen is None:
            if self._screens.pop(ethertype, None) is None:
                return
        else:
            guard = self._guards.current
            self._screens[ethertype] = screen if guard is None else _owned(screen, guard)
        self.tell_all()

    def shed(self) -> int:
        """Frames that drivers have shed by screens, as far as samples tell."""
        return sum(map(_shed, self._interfaces.by_name.values()))

    def _everything(self) -> set[str]:
        """Interfaces where some module wants every frame that comes in, and what they stand on."""
        names: set[str] = set()
        for name in self._interfaces.by_name:
            if self._hooks.want_everything(name):
                names |= {name, *all_below(name, self._interfaces.below)}
        return names


def _owned(screen: Screen, guard: Guard) -> Screen:
    """*screen* with a callback that runs under *guard*: drivers call it, and it is not theirs."""
    pressed: Callable[[], None] = screen.pressed

    def guarded() -> None:
        guard.run("screen pressed", pressed)

    return Screen(screen.main, screen.side, screen.sample_of, guarded)


def _shed(interface: Interface) -> int:
    driver = interface.driver
    if not can_screen(driver):
        return 0
    try:
        return interface.ask("shed", lambda: driver.shed)
    except RAISED:
        return 0
