"""How a path stands: whether it is known to lead to the peer, whether both ends' interfaces work, whether it answers; and what of that is
still to be said or asked. `qnetpy.link.transport.path.Path` is this with packets.
"""

from __future__ import annotations

from collections import deque

from qnetpy.link.transport.outmessage import OutMessage
from qnetpy.link.transport.validation import Validation


class Standing:
    """State only."""

    __slots__ = (
        "control_due", "copies", "copies_dropped", "hurried", "news_seen", "open", "peer_port", "peer_up", "port", "responses", "suspect",
        "up", "valid", "validation",
    )  # fmt: skip

    def __init__(self) -> None:
        self.suspect = False
        """Several probes in a row were not answered, or its interface was down and no probe was answered since."""
        self.hurried = False
        """There are others that could carry its data."""
        self.valid = False
        """The peer has answered a CHALLENGE here, or the handshake did as much."""
        self.up = True
        """Our interface works."""
        self.peer_up = True
        """The peer's does, as it told."""
        self.open = False
        """All three: packets may carry data."""
        self.port = 0
        """Number of our interface; 0: without."""
        self.peer_port = 0
        """The peer's number of its."""
        self.control_due = False
        """There is a validation or a response to look at before sending."""
        self.validation: Validation | None = None
        """Our CHALLENGE, until it is answered."""
        self.responses: list[bytes] = []
        """Tokens of the peer's CHALLENGEs, to be answered."""
        self.news_seen = 0
        """PATH items of the peer about this path that count."""
        self.copies: deque[tuple[OutMessage, int, int]] = deque()
        """Redundant fragments that went over another path and are to go over this one too."""
        self.copies_dropped = 0

    @property
    def state(self) -> str:
        """For people."""
        if not self.valid:
            return "opening"
        if not self.up:
            return "down"
        if not self.peer_up:
            return "peer down"
        return "suspect" if self.suspect else "usable"
