"""Modules: what `io-pkt -d` and `-p` load. QNX's `iopkt_drvr_entry` and `iopkt_lsm_entry` in one.

A module is a value, `MODULE`, in an importable file: a name, a kind, a class of options and `attach`. Importing the file does nothing.
`attach(context, options)` starts the module and returns what it started; `detach()` of that ends it, synchronously, and leaves nothing
behind: no descriptor, timer, ethertype, hook, channel or network. What it forgot the stack takes away and complains about.

What takes long before that, and needs no stack (files to be read, something to be mounted), a module does in `prepare(system, options)`,
which blocks and runs in a worker thread when frames flow: for a request and for a restart. `attach` finds what it returned as
`Context.prepared`.

A restart (`stack.core.restart`) would undo what was changed of a module at run time. One that has `keep()`, and is then a `Keeping`, is
asked for it before, and is given it as `Context.kept`.

What `attach` returns depends on the kind: DRIVER a `stack.core.driver.Driver`, WRAPPER a `Wrapper`, PROTOCOL anything with `detach`. It is
looked at when it is returned (`check_attached`): what lacks something is refused by name, and nothing of it stays.
"""

from __future__ import annotations

import enum
import errno
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Protocol, TypeGuard, TypeVar

import attrs

from resmgr.channel import Kernel
from resmgr.dispatch import Dispatch
from stack.capability import capability
from stack.core.errors import ModuleError
from stack.core.options import describe_options, parse_options

if TYPE_CHECKING:
    from resmgr.system import System
    from stack.core.stack import Stack

O = TypeVar("O")  # noqa: E741  # the options class
Random = Callable[[int], bytes]


class Kind(enum.Enum):
    DRIVER = "driver"
    PROTOCOL = "protocol"
    WRAPPER = "wrapper"


@attrs.frozen
class Context:
    """What a module is given. `random(n)` yields n bytes; under simulation they come from the seed.

    `dispatch` is the node's with the module's own guard around each callback (`stack.core.isolation`): use it rather than `stack.dispatch`.
    """

    stack: Stack
    dispatch: Dispatch
    kernel: Kernel
    random: Random
    system: System
    """The node's pathname space, policy and managers; `kernel` is its kernel."""
    kept: object = None
    """What `keep` of the same module returned before it was restarted; None: it begins with its options alone. Not for wrappers."""
    prepared: Prepared | None = None
    """What `prepare` of the module returned; None for one without. Not for wrappers."""


class Prepared(Protocol):
    """What a module has got ready before it is attached. From when `attach` has returned it is the module's."""

    def close(self) -> None:
        """Give back what `attach` has not taken: it raised, or was never called. Idempotent; may be called in any thread."""
        ...


class Attached(Protocol):
    """A module at work."""

    def detach(self) -> None:
        """End it, synchronously, leaving nothing behind. Called once. May be called while traffic flows."""
        ...


_FIGURES = ("name", "mac", "mtu", "up")
_CALLS = ("start", "accept", "transmit", "info", "detach")
_HAS = {Kind.PROTOCOL: ((), ("detach",)), Kind.DRIVER: (_FIGURES, _CALLS), Kind.WRAPPER: (_FIGURES, (*_CALLS, "around"))}
_NOTHING = object()


def check_attached(returned: object, kind: Kind, name: str) -> None:
    """ModuleError (EINVAL) unless *returned*, by the `attach` of module *name*, has all that a module of *kind* has. Its figures are not
    asked for yet: that there are some is enough."""
    figures, calls = _HAS[kind]
    lacks = [one for one in figures if inspect.getattr_static(returned, one, _NOTHING) is _NOTHING and not hasattr(returned, one)]
    lacks += [f"{one}()" for one in calls if not callable(getattr(returned, one, None))]
    if lacks:
        what = "None" if returned is None else type(returned).__name__
        raise ModuleError(errno.EINVAL, f"cannot load {name}: what its attach returned, {what}, lacks {', '.join(lacks)} of a {kind.value}")


def can_detach(returned: object) -> TypeGuard[Attached]:
    return callable(getattr(returned, "detach", None))


class Keeping(Attached, Protocol):
    """A module whose settings change at run time."""

    def keep(self) -> object:
        """What `attach` shall have instead of the options, as values that hold nothing of this load. Called before a restart, after a
        callback of the module raised: what cannot be trusted any more is left out."""
        ...


def keeping_module(attached: Attached) -> Keeping | None:
    """*attached*, or the driver that is wrapped in it, if it keeps something."""
    return capability(attached, _keeps)


def _keeps(attached: object) -> TypeGuard[Keeping]:
    return hasattr(attached, "keep")


class Loadable(Protocol):
    """A `Module` of any options: what the loader finds and `Stack.load` takes."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def capabilities(self) -> tuple[str, ...]: ...

    @property
    def prepares(self) -> bool: ...

    def prepare_text(self, system: System, text: str) -> Prepared | None: ...

    def attach_text(self, context: Context, text: str) -> object: ...

    def usage(self) -> list[tuple[str, str]]: ...


@attrs.frozen
class Module(Generic[O]):
    """See the head of this file. `options` is an attrs class; `stack.core.options` says how its fields become keys."""

    name: str
    kind: Kind
    options: type[O]
    attach: Callable[[Context, O], Attached]
    capabilities: tuple[str, ...] = ()
    """Of capabilities(7), without CAP_: what the module needs while it is loaded and at work, for `io-pkt -U`."""
    prepare: Callable[[System, O], Prepared] | None = None
    """Blocks, in any thread, and changes nothing of the system. It may raise what `attach` may."""

    @property
    def prepares(self) -> bool:
        return self.prepare is not None

    def prepare_text(self, system: System, text: str) -> Prepared | None:
        """What `prepare` returns for the options in *text*; None where there is nothing to prepare."""
        return None if self.prepare is None else self.prepare(system, parse_options(self.options, text, self.name))

    def attach_text(self, context: Context, text: str) -> object:
        """Parse *text* as this module's options and attach: what `attach` returns, for `check_attached`. `OptionError`, or what it raises;
        its OSError as ModuleError."""
        try:
            return self.attach(context, parse_options(self.options, text, self.name))
        except ModuleError:
            raise
        except OSError as error:
            raise ModuleError(error.errno or errno.EIO, f"cannot load {self.name}: {error.strerror or error}") from error

    def usage(self) -> list[tuple[str, str]]:
        """The module's options for people: `key=example` and the default."""
        return describe_options(self.options, self.name)
