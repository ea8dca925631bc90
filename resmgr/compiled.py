"""The choice between modules of Python source and the same modules compiled (docs/decisions/compiled-modules.md).

`make compile` puts compiled modules into build/compiled of the source tree, with a manifest that says of which sources they were made.
QNETPY_COMPILED chooses:

    auto (or unset)   compiled if there is a build that fits; why one that does not fit is not used, `problem` tells: io-pkt logs it, qnet
                      status shows it
    on                compiled; ImportError when there is no build or it does not fit
    off               Python source

A build fits when it was made by this Python and none of its sources has changed since, nor any of ours that they import: all or nothing,
because compiled modules call each other without looking names up, and have the constants of others built in. A source is looked at by size
and time, and read only when its time differs.

`choose` runs once, when the first of the three packages is imported. It reads the manifest and the status of the sources; an installed
distribution without a build costs one failed `open`. The choice is a finder in `sys.meta_path`: each module is loaded when it is imported.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # a type checker takes it for true; every command imports this file, and `typing` takes longer than all of it
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

VARIABLE = "QNETPY_COMPILED"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMMAND = "qnet"
"""A program that ends before it would have gained by compiled modules what it costs to load them; they are for daemons."""
BUILD = os.path.join(ROOT, "build", "compiled")


class Unfit(Exception):
    """Why the build cannot be used, in a few words."""


class CompiledFinder:
    """Finds the compiled modules of one build, and nothing else. *files*: of each module, the path of its extension. *problem*: why there
    are none, if a build is there."""

    def __init__(self, files: dict[str, str], shared: str, problem: str = "") -> None:
        self.files = files
        self.problem = problem
        self._shared = shared

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        file = self.files.get(name)
        if file is None:
            return None
        from importlib.machinery import ExtensionFileLoader, ModuleSpec

        spec = ModuleSpec(name, ExtensionFileLoader(name, file), origin=file)
        spec.has_location = True
        return spec

    def names(self) -> list[str]:
        """The modules that the build holds; the library that they share is none."""
        return [name for name in self.files if name != self._shared]


def choose(how: str, root: str = ROOT, build: str = BUILD) -> CompiledFinder | None:
    """The finder for what *how* asks for, None for Python source. One of nothing tells why a build is not used. ImportError for `on`."""
    if how == "off":
        return None
    if how not in ("", "auto", "on"):
        raise ImportError(f"{VARIABLE} is auto, on or off, not {how}")
    try:
        return load(root, build)
    except FileNotFoundError:
        if how == "on":
            raise ImportError(f"{VARIABLE} is on, but nothing is built in {build}: run make compile, or set it to off") from None
    except Unfit as error:
        if how == "on":
            raise ImportError(f"{VARIABLE} is on, but the compiled modules cannot be used: {error}; run make compile again") from None
        return CompiledFinder({}, "", f"{error}; run make compile again, or set {VARIABLE}=off")
    return None


def load(root: str, build: str) -> CompiledFinder:
    """A finder for the build in *build*, made of the sources below *root*. FileNotFoundError: there is none. Unfit: it cannot be used."""
    with open(os.path.join(build, "manifest.json"), "rb") as file:
        text = file.read()
    import json

    try:
        manifest = json.loads(text)
        python, shared, files, sources = (manifest[name] for name in ("python", "shared", "files", "sources"))
        if python != sys.version:
            raise Unfit("they were made for another Python")
        for name, size, time, digest in sources:
            check(os.path.join(root, name), name, size, time, digest)
        paths = {module: os.path.join(build, name) for module, name in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Unfit("manifest.json is damaged") from None
    missing = next((path for path in paths.values() if not os.path.exists(path)), None)
    if missing is not None:
        raise Unfit(f"{missing} is missing")
    return CompiledFinder(paths, shared)


def check(path: str, name: str, size: int, time: int, digest: str) -> None:
    """Unfit unless the source at *path* is the one that was compiled."""
    try:
        status = os.stat(path)
        if status.st_size == size and status.st_mtime_ns == time:
            return
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise Unfit(f"{name}: {error.strerror}") from None
    import hashlib

    if hashlib.sha256(data).hexdigest() != digest:
        raise Unfit(f"{name} has changed since")


def install() -> None:
    """Put the choice of the environment in force for this process. For the packages, when they are imported."""
    if not any(isinstance(finder, CompiledFinder) for finder in sys.meta_path):
        how = os.environ.get(VARIABLE, "")
        if how in ("", "auto") and os.path.basename(getattr(sys, "argv", [""])[0] or "") == COMMAND:
            return
        finder = choose(how)
        if finder is not None:
            sys.meta_path.insert(0, finder)


def running() -> list[str]:
    """Names of the compiled modules that this process has loaded: what it runs, not what was asked for."""
    finder = _installed()
    if finder is None:
        return []
    loaded = {name: sys.modules.get(name) for name in finder.names()}
    return [name for name, module in loaded.items() if module is not None and getattr(module, "__file__", None) == finder.files[name]]


def problem() -> str:
    """Why this process does not use the build that is there; "" if it does, or there is none, or nobody wants it."""
    finder = _installed()
    return "" if finder is None else finder.problem


def _installed() -> CompiledFinder | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, CompiledFinder)), None)


def describe(count: int, problem: str = "") -> str:
    """What a process runs, for people: the number of compiled modules, or why there are none."""
    if count:
        return f"compiled, {count} modules"
    return f"pure Python; the compiled modules are not used: {problem}" if problem else "pure Python"
