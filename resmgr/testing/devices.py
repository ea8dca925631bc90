"""Devices for tests: a pipe with limited room, with commands, and one that answers later."""

from __future__ import annotations

import errno
from stat import S_IFCHR

from resmgr.dispatch import Buffer
from resmgr.iofunc import terminal
from resmgr.iofunc.devctl import Values, answers, command, command_both, command_from, command_to
from resmgr.iofunc.nodes import Node
from resmgr.iofunc.waiting import Later
from resmgr.iomsg import POLL_HUP, POLL_IN, POLL_OUT, POLL_PRI

GET_ROOM = command_from("q", 1, "I")
SET_ROOM = command_to("q", 2, "I")
SWAP = command_both("q", 3, "HH", "HH")
CLEAR = command("q", 4)


class Pipe(Node):
    """What is written can be read. `urgent` is out-of-band news; `ended`: nothing more comes."""

    mode = S_IFCHR | 0o666

    def __init__(self, room: int = 16) -> None:
        self.room = room
        self.data = bytearray()
        self.urgent = False
        self.ended = False

    def read(self, state: object | None, offset: int, size: int) -> Buffer | None:
        if not self.data and not self.ended:
            return None
        taken = bytes(self.data[:size])
        del self.data[:size]
        self.notify()
        return taken

    def write(self, state: object | None, offset: int, data: Buffer) -> int | None:
        count = min(len(data), self.room - len(self.data))
        if count <= 0:
            return None
        self.data += memoryview(data)[:count]
        self.notify()
        return count

    def poll(self, state: object | None) -> int:
        return (
            (POLL_IN if self.data else 0)
            | (POLL_OUT if len(self.data) < self.room else 0)
            | (POLL_PRI if self.urgent else 0)
            | (POLL_HUP if self.ended else 0)
        )

    @answers(GET_ROOM)
    def get_room(self, state: object | None, values: Values) -> Values:
        return (self.room,)

    @answers(SET_ROOM)
    def set_room(self, state: object | None, values: Values) -> Values:
        (room,) = values
        if not isinstance(room, int) or not 0 < room <= 1 << 16:
            raise OSError(errno.EINVAL, "room")
        self.room = room
        self.notify()
        return ()

    @answers(SWAP)
    def swap(self, state: object | None, values: Values) -> Values:
        return values[::-1]

    @answers(CLEAR)
    def clear(self, state: object | None, values: Values) -> Values:
        self.data.clear()
        self.notify()
        return ()


class Screen(Pipe):
    """One that is a terminal to isatty(3), and has a window."""

    def __init__(self) -> None:
        super().__init__()
        self.settings: Values = (0, 0, 0, 0, 0, bytes(19))
        self.window: Values = (24, 80, 0, 0)

    @answers(terminal.GET_ATTRIBUTES)
    def get_attributes(self, state: object | None, values: Values) -> Values:
        return self.settings

    @answers(terminal.SET_ATTRIBUTES)
    def set_attributes(self, state: object | None, values: Values) -> Values:
        self.settings = values
        return ()

    @answers(terminal.GET_WINDOW)
    def get_window(self, state: object | None, values: Values) -> Values:
        return self.window

    @answers(terminal.SET_WINDOW)
    def set_window(self, state: object | None, values: Values) -> Values:
        self.window = values
        return ()


class Slow(Node):
    """Reading asks somebody who answers later: `asked` are the questions."""

    mode = S_IFCHR | 0o444

    def __init__(self) -> None:
        self.asked: list[Later[Buffer]] = []
        self.given_up = 0

    def read(self, state: object | None, offset: int, size: int) -> Later[Buffer]:
        later: Later[Buffer] = Later(self._gave_up)
        self.asked.append(later)
        return later

    def _gave_up(self) -> None:
        self.given_up += 1
