"""The port of a driver that has not been started: it hears nothing. So a driver need not ask at every place whether it has one."""

from __future__ import annotations

from stack.frame import Frame


class SilentPort:
    """A `stack.core.driver.Port`."""

    def deliver(self, frames: list[Frame]) -> None: ...

    def changed(self) -> None: ...

    def count(self, reason: str, number: int = 1) -> None: ...


SILENT = SilentPort()
"""It keeps nothing; a driver whose port it is has not been started."""
