"""Descriptors that this process owns while a message that carries them is on its way.

Not among the compiled modules: a subclass of a built-in type cannot be compiled.
"""

from __future__ import annotations

import os


class OwnedDescriptors(tuple[int, ...]):
    """Descriptors that close when nobody refers to the sequence any more: received ones, and copies of those that wait to be sent."""

    __slots__ = ()

    def __del__(self) -> None:
        for fd in self:
            try:
                os.close(fd)
            except OSError:
                pass
