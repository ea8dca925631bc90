"""What a transport tells its user, drained as a list by `Transport.events`."""

from __future__ import annotations

import enum

import attrs

from qnetpy.link.transport.items import PathState
from resmgr.dispatch import Buffer


class CloseCode(enum.IntEnum):
    """Why a transport ended (CLOSE item). Unknown codes of a newer peer are shown as PROTOCOL_ERROR."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    CREDIT_EXCEEDED = 2
    TOO_MANY_MESSAGES = 3
    TOO_MANY_HOLES = 4


class MessageReceived:
    """A whole message, once, in the order of its stream. The receiver of the event owns *data*; its credit has been given back.

    Not of attrs, as the others are: there is one for each message.
    """

    __slots__ = ("data", "priority", "route", "stream")

    def __init__(self, stream: int, priority: int, data: Buffer, route: int = 0) -> None:
        self.stream = stream
        self.priority = priority
        self.data = data
        self.route = route
        """For an answer to go the way the message came (`qnetpy.link.transport.routes`); 0: by the node's policy."""


@attrs.define
class PathLost:
    """No answer to several probes on *path*: its unacknowledged data goes over another path as soon as there is one. Probing goes on."""

    path: int


@attrs.define
class PathFound:
    """A path that was lost answers again."""

    path: int


@attrs.define
class PathValid:
    """The peer has answered our CHALLENGE on *path*: it carries packets both ways, and the peer is where we think."""

    path: int


@attrs.define
class PathRefused:
    """Nobody has answered our CHALLENGEs on *path*."""

    path: int


@attrs.define
class Challenged:
    """A CHALLENGE came on *path*. `station` is where the peer believes to be (empty: it does not know); the answer goes out by itself."""

    path: int
    station: bytes


@attrs.define
class PathTold:
    """The peer's own state of *path*."""

    path: int
    state: PathState


@attrs.define
class MtuChanged:
    """*payload* is now the largest plaintext that is sent on *path*."""

    path: int
    payload: int


@attrs.define
class Closed:
    """The transport is over: nothing is sent or delivered any more, and messages not yet acknowledged may or may not have arrived."""

    by_peer: bool
    code: CloseCode
    reason: str


Event = MessageReceived | PathLost | PathFound | PathValid | PathRefused | Challenged | PathTold | MtuChanged | Closed
