"""The commands of terminals, with what each takes and gives: Linux's old ioctl numbers (0x54..), which do not tell it, and the newer ones.

Only commands with flat data are here, so whoever carries them can copy bytes without looking at them; commands whose data hold pointers or
descriptors cannot be carried. Numbers and layouts are those that all of Linux's newer machines share (x86, Arm, RISC-V). A manager of a
terminal declares what it answers with `@answers(GET_WINDOW)` and the like.
"""

from __future__ import annotations

import struct

import attrs

from resmgr.iofunc.devctl import Command

_NONE = struct.Struct("")
_INT = struct.Struct("=i")
_TERMIOS = struct.Struct("=4IB19s")
_TERMIO = struct.Struct("=4HB8sx")
_TERMIOS2 = struct.Struct("=4IB19s2I")
_WINDOW = struct.Struct("=4H")
_CHARACTER = struct.Struct("=c")


@attrs.frozen
class TerminalCommand(Command):
    """`by_value`: the number that it takes is the ioctl's argument itself, not what that points at. `waits`: carried out when the output
    has been sent. `sleeps`: the kernel sleeps meanwhile."""

    by_value: bool = False
    waits: bool = False
    sleeps: bool = False


def _takes(number: int, layout: struct.Struct, *, waits: bool = False) -> TerminalCommand:
    return TerminalCommand(number, layout, _NONE, waits=waits)


def _gives(number: int, layout: struct.Struct = _INT) -> TerminalCommand:
    return TerminalCommand(number, _NONE, layout)


def _value(number: int, *, waits: bool = False, sleeps: bool = False) -> TerminalCommand:
    return TerminalCommand(number, _INT, _NONE, True, waits, sleeps)


GET_ATTRIBUTES = _gives(0x5401, _TERMIOS)
"""TCGETS: what isatty(3) asks. Input, output, control, local flags, line discipline, control characters."""
SET_ATTRIBUTES = _takes(0x5402, _TERMIOS)
GET_WINDOW = _gives(0x5413, _WINDOW)
"""TIOCGWINSZ: rows, columns, width, height in pixels."""
SET_WINDOW = _takes(0x5414, _WINDOW)
UNREAD = _gives(0x541B)
"""FIONREAD, TIOCINQ."""
UNSENT = _gives(0x5411)
"""TIOCOUTQ."""

TERMINAL: dict[int, TerminalCommand] = {
    command.number: command
    for command in (
        GET_ATTRIBUTES,
        SET_ATTRIBUTES,
        _takes(0x5403, _TERMIOS, waits=True),  # TCSETSW
        _takes(0x5404, _TERMIOS, waits=True),  # TCSETSF
        _gives(0x5405, _TERMIO),  # TCGETA
        _takes(0x5406, _TERMIO),  # TCSETA
        _takes(0x5407, _TERMIO, waits=True),  # TCSETAW
        _takes(0x5408, _TERMIO, waits=True),  # TCSETAF
        _value(0x5409, waits=True, sleeps=True),  # TCSBRK: tcdrain(3), tcsendbreak(3)
        _value(0x540A),  # TCXONC
        _value(0x540B),  # TCFLSH
        TerminalCommand(0x540C, _NONE, _NONE),  # TIOCEXCL
        TerminalCommand(0x540D, _NONE, _NONE),  # TIOCNXCL
        _gives(0x540F),  # TIOCGPGRP
        UNSENT,
        _takes(0x5412, _CHARACTER),  # TIOCSTI
        GET_WINDOW,
        SET_WINDOW,
        _gives(0x5415),  # TIOCMGET
        _takes(0x5416, _INT),  # TIOCMBIS
        _takes(0x5417, _INT),  # TIOCMBIC
        _takes(0x5418, _INT),  # TIOCMSET
        _gives(0x5419),  # TIOCGSOFTCAR
        _takes(0x541A, _INT),  # TIOCSSOFTCAR
        UNREAD,
        _takes(0x5420, _INT),  # TIOCPKT
        _gives(0x5424),  # TIOCGETD
        _value(0x5425, waits=True, sleeps=True),  # TCSBRKP
        TerminalCommand(0x5427, _NONE, _NONE),  # TIOCSBRK
        TerminalCommand(0x5428, _NONE, _NONE),  # TIOCCBRK
        _gives(0x5429),  # TIOCGSID
        _gives(0x802C542A, _TERMIOS2),  # TCGETS2
        _takes(0x402C542B, _TERMIOS2),  # TCSETS2
        _takes(0x402C542C, _TERMIOS2, waits=True),  # TCSETSW2
        _takes(0x402C542D, _TERMIOS2, waits=True),  # TCSETSF2
        _gives(0x80045430),  # TIOCGPTN
        _takes(0x40045431, _INT),  # TIOCSPTLCK
        _gives(0x80045438),  # TIOCGPKT
        _gives(0x80045439),  # TIOCGPTLCK
        _gives(0x80045440),  # TIOCGEXCL
    )
}
"""By number."""


def changes(command: TerminalCommand) -> bool:
    """Whether it does something to the terminal, so that who may only read it must not."""
    return not command.gives.size
