"""An enemy on a hub of a world: hears what goes to groups, and says it again later, in its sender's name, in his own, changed, and in bulk.

He has no key. What he gets is what docs/protocol/attacks.md says of recorded solicitations: calls to where a node was.
"""

from __future__ import annotations

import random

from qnetpy.link import wire
from qnetpy.testing.world import World
from stack.drivers.hub import Hub, HubPort
from stack.frame import Frame
from stack.wire.ethernet import HEADER_SIZE

STATION = bytes.fromhex("02ee00000001")
KEPT = 64
"""Frames that he remembers; of more, one by chance gives way."""
PAUSE = 0.2
"""Seconds between what he says, at most."""
BULK = 20


class Replayer:
    """Plugged into one hub from its making on. `stop` ends him."""

    def __init__(self, world: World, link: str, chance: random.Random) -> None:
        self.said = 0
        hub = world.hubs[link]
        assert isinstance(hub, Hub)
        self._world = world
        self._chance = chance
        self._recorded: list[bytes] = []
        self._stopped = False
        self._port: HubPort = hub.port("enemy", STATION)
        self._port.start(self)
        self._port.accept(None)
        self._later()

    def stop(self) -> None:
        self._stopped = True
        self._port.detach()

    # What the port sees above it

    def deliver(self, frames: list[Frame]) -> None:
        for frame in frames:
            if len(frame) > HEADER_SIZE and frame[HEADER_SIZE] == wire.SOLICITATION:
                if len(self._recorded) == KEPT:
                    del self._recorded[self._chance.randrange(KEPT)]
                self._recorded.append(bytes(frame))

    def changed(self) -> None:
        """`stack.core.driver.Port`."""

    def count(self, reason: str, number: int = 1) -> None:
        """`stack.core.driver.Port`."""

    # What he says

    def _later(self) -> None:
        self._world.at(self._world.now + self._chance.random() * PAUSE, self._say)

    def _say(self) -> None:
        if self._stopped:
            return
        if self._recorded:
            count = BULK if self._chance.random() < 0.1 else 1
            frames = [self._frame() for _ in range(count)]
            self.said += count
            self._port.transmit(list(frames))
        self._later()

    def _frame(self) -> bytes:
        """A recorded one: as it was, from him, from somebody else, to one node only, with a bit flipped, cut, or a mix of two."""
        chance = self._chance
        frame = bytearray(chance.choice(self._recorded))
        other = chance.choice(self._recorded)
        act = chance.randrange(7)
        if act == 1:
            frame[6:12] = STATION
        elif act == 2:
            frame[6:12] = other[6:12]
        elif act == 3:
            frame[:6] = other[6:12]
        elif act == 4:
            place = chance.randrange(HEADER_SIZE, len(frame))
            frame[place] ^= 1 << chance.randrange(8)
        elif act == 5:
            del frame[chance.randrange(HEADER_SIZE, len(frame)) :]
        elif act == 6:
            place = chance.randrange(HEADER_SIZE, len(frame))
            frame[place:] = other[place:]
        return bytes(frame)
