"""Two serial ports joined by a cable: what is written to one is read from the other. Reads wait for data and writes for room, unless the
program asks not to (O_NONBLOCK); select, poll and epoll work; ioctl tells and sets the speed.

    python examples/serial.py [PATH1 PATH2]
"""

import errno
import sys
from stat import S_IFCHR

import trio

from qnetpy.manage import POLL_IN, POLL_OUT, Node, Values, answers, command, command_from, command_to, manager
from resmgr.dispatch import Buffer

GET_SPEED = command_from("s", 1, "I")
SET_SPEED = command_to("s", 2, "I")
GET_COUNTS = command_from("s", 3, "QQ")
"""Bytes received and sent."""
FLUSH = command("s", 4)

SPEEDS = (9600, 19200, 38400, 57600, 115200)
ROOM = 4096


class Port(Node):
    mode = S_IFCHR | 0o666

    def __init__(self) -> None:
        self.other = self
        self.arrived = bytearray()
        self.speed = 9600
        self.received = self.sent = 0

    def read(self, state: object | None, offset: int, size: int) -> Buffer | None:
        if not self.arrived:
            return None
        taken = bytes(self.arrived[:size])
        del self.arrived[:size]
        self.other.notify()
        return taken

    def write(self, state: object | None, offset: int, data: Buffer) -> int | None:
        other = self.other
        count = min(len(data), ROOM - len(other.arrived))
        if count <= 0:
            return None
        other.arrived += memoryview(data)[:count]
        other.received += count
        self.sent += count
        other.notify()
        return count

    def poll(self, state: object | None) -> int:
        return (POLL_IN if self.arrived else 0) | (POLL_OUT if len(self.other.arrived) < ROOM else 0)

    @answers(GET_SPEED)
    def get_speed(self, state: object | None, values: Values) -> Values:
        return (self.speed,)

    @answers(SET_SPEED)
    def set_speed(self, state: object | None, values: Values) -> Values:
        (speed,) = values
        if not isinstance(speed, int) or speed not in SPEEDS:
            raise OSError(errno.EINVAL, "no such speed")
        self.speed = speed
        return ()

    @answers(GET_COUNTS)
    def get_counts(self, state: object | None, values: Values) -> Values:
        return self.received, self.sent

    @answers(FLUSH)
    def flush(self, state: object | None, values: Values) -> Values:
        self.arrived.clear()
        self.other.notify()
        return ()


async def main(first: str, second: str) -> None:
    one, two = Port(), Port()
    one.other, two.other = two, one
    async with manager(first, one) as managed, manager(second, two):
        # Both are served by this program, each with a link of its own: their methods run in one thread, so they may share what they like.
        print(f"{first} and {second} are joined", flush=True)
        await managed.ended()


if __name__ == "__main__":
    trio.run(main, *(sys.argv[1:3] if len(sys.argv) > 2 else ("/dev/ser1", "/dev/ser2")))
