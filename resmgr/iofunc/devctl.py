"""Commands of devices (devctl; a program's ioctl), declared once with the layout of their data.

    GET_SPEED = command_from("s", 1, "I")     # gives one unsigned int
    SET_SPEED = command_to("s", 2, "I")       # takes one

    class Port(Node):
        @answers(GET_SPEED)
        def get_speed(self, state: object | None, values: Values) -> Values:
            return (self.speed,)

The numbers are what C programs make with _IOR, _IOW and _IOWR, so `ioctl(fd, GET_SPEED.number, ...)` reaches the device on any node: the
kernel takes the size of the data from the number. Layouts are those of `struct`, in this machine's byte order and without padding. What a
device does not declare is ENOTTY, data of another size EINVAL.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from typing import TypeVar

import attrs

from resmgr.dispatch import Buffer

Values = tuple[int | float | bytes, ...]
SIZE_MAX = (1 << 14) - 1
"""Bytes of data that a command's number can tell."""
_TO_DEVICE = 1
FROM_DEVICE = 2
"""Direction of a command that only tells something."""

N = TypeVar("N")
Handler = Callable[[N, object | None, Values], Values]
"""(node, the open's state, what the command takes) -> what it gives."""


@attrs.frozen
class Command:
    """`takes` and `gives`: data from and to the caller; size 0: none."""

    number: int
    takes: struct.Struct
    gives: struct.Struct

    @property
    def size(self) -> int:
        """Bytes of the caller's buffer."""
        return max(self.takes.size, self.gives.size)

    def pack(self, *values: int | float | bytes) -> bytes:
        """What a caller hands over."""
        return self.takes.pack(*values).ljust(self.size, b"\0") if self.takes.size else b""

    def unpack(self, data: Buffer) -> Values:
        """What a caller gets."""
        return self.gives.unpack_from(data)


def _command(kind: str, number: int, takes: str, gives: str, direction: int) -> Command:
    if len(kind) != 1 or not kind.isascii() or not 0 <= number <= 255:
        raise ValueError("a command is one ASCII letter and a number up to 255")
    made = Command(0, struct.Struct("=" + takes), struct.Struct("=" + gives))
    if made.size > SIZE_MAX:
        raise ValueError(f"a command has at most {SIZE_MAX} bytes of data")
    return attrs.evolve(made, number=direction << 30 | made.size << 16 | ord(kind) << 8 | number)


def command(kind: str, number: int) -> Command:
    """Without data (_IO; QNX __DION)."""
    return _command(kind, number, "", "", 0)


def command_from(kind: str, number: int, gives: str) -> Command:
    """Gives data (_IOR; QNX __DIOF)."""
    return _command(kind, number, "", gives, FROM_DEVICE)


def command_to(kind: str, number: int, takes: str) -> Command:
    """Takes data (_IOW; QNX __DIOT)."""
    return _command(kind, number, takes, "", _TO_DEVICE)


def command_both(kind: str, number: int, takes: str, gives: str) -> Command:
    """Takes data and gives some back in their place (_IOWR; QNX __DIOTF)."""
    return _command(kind, number, takes, gives, FROM_DEVICE | _TO_DEVICE)


def answers(command: Command) -> Callable[[Handler[N]], Handler[N]]:
    """Marks the method of a node that carries out *command*."""

    def mark(function: Handler[N]) -> Handler[N]:
        function.__dict__["devctl_command"] = command
        return function

    return mark


def commands_of(kind: type) -> dict[int, tuple[Command, str]]:
    """The commands that *kind* and its bases declare, by number, each with its method's name."""
    found: dict[int, tuple[Command, str]] = {}
    for base in reversed(kind.__mro__):
        for name, value in vars(base).items():
            declared = getattr(value, "devctl_command", None)
            if isinstance(declared, Command):
                found[declared.number] = declared, name
    return found


def carry_out(
    node: object, commands: Mapping[int, tuple[Command, str]], state: object | None, number: int, data: Buffer
) -> tuple[int, bytes]:
    """Answer a command by its method. OSError: ENOTTY, EINVAL, what the method raises."""
    declared = commands.get(number)
    if declared is None:
        raise OSError(errno.ENOTTY, "no such command")
    what, name = declared
    if len(data) < what.takes.size:
        raise OSError(errno.EINVAL, "too little data")
    method: Callable[[object | None, Values], Values] = getattr(node, name)
    values = method(state, what.takes.unpack_from(data) if what.takes.size else ())
    return 0, what.gives.pack(*values) if what.gives.size else b""
