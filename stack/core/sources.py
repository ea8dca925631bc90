"""Whether code that was imported still is what stands in its files.

A file is imported once in a process. It is not imported again for a mount, even when no module of it is loaded: other Python modules hold
its classes and functions, its neighbours were imported with it, and two versions of one class in a process take each other's objects for
foreign. So whoever mounts what was edited is told that it is the old code.

When a file was imported nobody else knows: what it was like then is noted in the Python module itself, right after the import.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import ModuleType

_NOTED = "__io_pkt_source__"
FILES_SHOWN = 3


def note(path: str) -> None:
    """The Python module at the dotted *path* was imported, and with it others of its package."""
    for module, file in _of_package(path):
        if not hasattr(module, _NOTED):
            setattr(module, _NOTED, _state(file))


def edited(name: str) -> str:
    """A sentence for who mounts *name*, a dotted path, when a file of its package is not any more what was imported; else nothing.
    Blocks."""
    path = name.partition(":")[0]
    if "." not in path:
        return ""
    note(path)
    files = sorted(file for module, file in _of_package(path) if getattr(module, _NOTED) != _state(file))
    if not files:
        return ""
    more = f" and {len(files) - FILES_SHOWN} more" if len(files) > FILES_SHOWN else ""
    return f"{', '.join(files[:FILES_SHOWN])}{more} changed after it was imported, and this is the code from before: start io-pkt again"


def _of_package(path: str) -> Iterator[tuple[ModuleType, str]]:
    """What is imported of the package that *path* is in, with its files."""
    package = path.partition(".")[0]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and (name == package or name.startswith(f"{package}.")):
            yield module, file


def _state(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
