"""The part of a load that may take long: a module is found, imported, and prepares itself. The rest, `Stack.load_prepared`, only attaches.

    prepare            blocks: find, import, wrappers too -> options -> the module's own `prepare`: files that it reads, what it mounts
    load_prepared      in dispatch context: attach, and all that `stack.core.modules` tells

While frames flow the first belongs into a worker thread (`stack.core.underway`): it needs nothing of the stack. What was prepared and is
not loaded is closed: in dispatch context by `Stack.discard`, and what gets ready when its stack is closed already, by its thread.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import attrs

from resmgr.system import System
from stack.core.errors import ModuleError
from stack.core.loader import find_module
from stack.core.module import Kind, Loadable, Prepared
from stack.core.options import take_common


@attrs.define(eq=False)
class Preparation:
    """A module that can be attached. `options` are its own, without what is io-pkt's; `restart` is that. `named`: what it was found by;
    "" for one that was given."""

    module: Loadable
    options: str
    wrap: tuple[tuple[str, str], ...]
    restart: int
    prepared: Prepared | None
    named: str = ""

    def close(self) -> None:
        """It will not be loaded. Idempotent."""
        prepared, self.prepared = self.prepared, None
        if prepared is not None:
            prepared.close()


def prepare(system: System, module: Loadable | str, options: str, kind: Kind | None, wrap: Sequence[tuple[str, str]]) -> Preparation:
    """Arguments, and errors, as of `stack.core.stack.Stack.load`. Blocks; any thread, but not while *system* is being closed."""
    found = find_module(module, kind) if isinstance(module, str) else module
    if wrap and found.kind is not Kind.DRIVER:
        raise ModuleError(errno.EINVAL, f"{found.name} is no driver: nothing can be wrapped around it")
    if found.kind is Kind.WRAPPER:
        raise ModuleError(errno.EINVAL, f"{found.name} needs a driver to be wrapped around")
    for name, _ in wrap:
        find_module(name, Kind.WRAPPER)
    common, own = take_common(options, found.name)
    named = module if isinstance(module, str) else ""
    return Preparation(found, own, tuple(wrap), common.restart, found.prepare_text(system, own), named)
