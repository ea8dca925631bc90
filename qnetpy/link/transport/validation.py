"""Showing that a path carries packets both ways and that the peer is where it says: our CHALLENGE, until it is answered.

As in RFC 9000 section 8.2, with two differences: the packets are sealed, so nobody without the keys can make an answer, and a CHALLENGE
names the address that its sender believes to have, so that a frame which somebody else sent on from elsewhere is noticed. Both packets are
padded to BASE_PAYLOAD: a path that does not carry that much is not one.
"""

from __future__ import annotations

from qnetpy.link.transport.constants import BASE_PAYLOAD, CHALLENGE_FIRST, CHALLENGE_TRIES, MAX_STATION, TOKEN_SIZE
from qnetpy.link.transport.items import Challenge, Response
from resmgr.errors import Misuse


class Validation:
    """One path's. *token* is drawn at random by the caller; *station* is our address on that path."""

    __slots__ = ("again_at", "due", "port", "sent", "station", "token", "tries")

    def __init__(self, token: bytes, port: int, station: bytes, now: float) -> None:
        if len(token) != TOKEN_SIZE or len(station) > MAX_STATION or not 0 <= port <= 255:
            raise Misuse("a token, port or address that does not fit a CHALLENGE")
        self.token = token
        self.port = port
        self.station = station
        self.tries = 0
        self.sent = now
        self.due = True
        """It should be sent now."""
        self.again_at = now

    def challenge(self, now: float) -> bytes:
        """The item to send now."""
        self.due = False
        self.sent = now
        self.again_at = now + CHALLENGE_FIRST * (1 << self.tries)
        self.tries += 1
        return Challenge(self.port, self.token, self.station).pack()

    def round_trip(self, now: float) -> float | None:
        """From CHALLENGE to RESPONSE; None when it cannot be known which one was answered."""
        return now - self.sent if self.tries == 1 else None

    def on_timeout(self, now: float) -> bool:
        """Send it once more when it is time; True when it has been sent often enough."""
        if self.due or now < self.again_at:
            return False
        if self.tries >= CHALLENGE_TRIES:
            return True
        self.due = True
        return False


def padded(items: list[bytes]) -> bytes:
    return b"".join(items).ljust(BASE_PAYLOAD, b"\0")


def response(token: bytes) -> bytes:
    return Response(token).pack()
