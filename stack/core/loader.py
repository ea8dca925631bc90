"""Find a module by name, as QNX finds `devnp-NAME.so` and `lsm-NAME.so`.

- `-d packet`: `MODULE` of `stack.drivers.packet`; a wrapper, `fault`: of `stack.drivers.wrap.fault`.
- `-p ip`: of `stack.inet.ip`.
- `-p qnet`: the installed entry point `qnet` of group `io_pkt.modules`; drivers of third parties may be installed that way too.
- a name with a dot: `MODULE` (or `:NAME`) of that Python module, for code that is not installed.

Nothing is scanned and nothing registers itself: a module is looked up when somebody names it.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import importlib.util
import pkgutil
import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from stack.core.errors import ModuleError
from stack.core.isolation import RAISED
from stack.core.module import Kind, Module
from stack.core.sources import note

if TYPE_CHECKING:
    from stack.core.module import Loadable

ENTRY_POINT_GROUP = "io_pkt.modules"
_PACKAGES = {Kind.DRIVER: "stack.drivers", Kind.WRAPPER: "stack.drivers.wrap", Kind.PROTOCOL: "stack.inet"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_PATH = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?::(?P<attribute>[A-Za-z_]\w*))?")


_OWN_FILE = "a file of your own goes into a folder on Python's path: FOLDER/NAME.py is FOLDER.NAME"
_LOOKS = "io-pkt looks in the PYTHONPATH that it was started with, where FOLDER/NAME.py is FOLDER.NAME"


def find_module(name: str, kind: Kind | None = None) -> Loadable:
    """The module called *name*; with *kind* it must be of that kind. ModuleError (ENXIO) in one sentence otherwise."""
    module = _by_path(name) if "." in name else _by_name(name, kind)
    if kind is not None and module.kind is not kind:
        option = "-d" if module.kind is Kind.DRIVER else "-p" if module.kind is Kind.PROTOCOL else f"--{name}"
        raise ModuleError(errno.ENXIO, f"{name} is a {module.kind.value}, not a {kind.value}: load it with {option}")
    return module


def _by_path(path: str) -> Loadable:
    match = _PATH.fullmatch(path)
    if match is None:
        raise ModuleError(errno.ENXIO, _no_name(path))
    return _member(match["module"], match["attribute"] or "MODULE", path)


def _by_name(name: str, kind: Kind | None) -> Loadable:
    if _NAME.fullmatch(name) is None:
        raise ModuleError(errno.ENXIO, _no_name(name))
    for group, package in _PACKAGES.items():
        if kind in (None, group):
            path = f"{package}.{name.replace('-', '_')}"
            if importlib.util.find_spec(path) is not None:
                return _member(path, "MODULE", name)
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return _member(entry.module, entry.attr, name)
    what = "module" if kind is None else kind.value
    near = difflib.get_close_matches(name.replace("-", "_"), _names(kind), n=1)
    meant = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
    raise ModuleError(errno.ENXIO, f"there is no {what} called {name}: not {_places(kind)}{meant or f'; {_OWN_FILE}'}")


def _names(kind: Kind | None) -> list[str]:
    """Names that modules may have: what lies in the packages, and what is installed. Nothing is imported but the packages."""
    names = [entry.name.replace("-", "_") for entry in entry_points(group=ENTRY_POINT_GROUP)]
    for group, package in _PACKAGES.items():
        if kind in (None, group):
            spec = importlib.util.find_spec(package)
            places = None if spec is None else spec.submodule_search_locations
            names += [found.name for found in pkgutil.iter_modules(places)]
    return names


def _no_name(text: str) -> str:
    return f"{text!r} is not a module's name and not a dotted path; {_OWN_FILE}"


def _places(kind: Kind | None) -> str:
    packages = [package for group, package in _PACKAGES.items() if kind in (None, group)]
    return " and not ".join([*(f"in {package}" for package in packages), f"among the installed {ENTRY_POINT_GROUP}"])


def _member(path: str, attribute: str, name: str) -> Loadable:
    try:
        module: object = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
            raise ModuleError(errno.ENXIO, f"there is no module {name}: Python finds no {error.name}; {_LOOKS}") from None
        raise ModuleError(errno.ENXIO, f"cannot load {name}: it needs the Python module {error.name}, which is not installed") from error
    except RAISED as error:  # a script that ends ends no stack
        raise ModuleError(errno.ENXIO, f"cannot load {name}: importing {path} raised {type(error).__name__}: {error}") from error
    finally:
        note(path)
    found = getattr(module, attribute, None)
    if not isinstance(found, Module):
        why: object = getattr(module, "NOT_BY_NAME", None)
        if attribute == "MODULE" and isinstance(why, str):
            raise ModuleError(errno.ENXIO, f"{name} cannot be loaded by name: {why}")
        raise ModuleError(errno.ENXIO, f"{name} cannot be loaded: {path} has no {attribute} that is a Module")
    return found
