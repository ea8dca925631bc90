"""The joining machine's side of the socket: one code tried at one place after another. Blocks; used by `qnet join`.

A place that does not know the code gets one guess at it per contact. So contacts in which we confirmed are counted, and after GUESSES_MAX
without success nothing more is tried: somebody is pretending.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable

import attrs

from qnetpy.discovery.lookup import look_up
from qnetpy.enrol.code import Code
from qnetpy.enrol.joiner import Failure, Joiner, Outcome, sentence
from qnetpy.enrol.wire import Denied, Grant, Refusal, Refused
from resmgr.errors import ResmgrError
from stack.wire.endpoint import split_host

GUESSES_MAX = 3
CONTACT_SECONDS = 2.0
"""How long one address may keep us waiting, if there are others."""
READ_MAX = 65536
Random = Callable[[int], bytes]
Clock = Callable[[], float]


@attrs.frozen
class Place:
    """Where to try: an address as the resolver takes it (`fe80::1%eth0`), and a port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@attrs.frozen
class Miss:
    """A place, and why it came to nothing there."""

    place: Place
    why: str
    outcome: Outcome | None
    """What the other end said; None when there was no connection."""


class Seeker:
    """Tries one code. `misses` says what happened at each place."""

    def __init__(self, code: Code, private_key: bytes, name: str, random: Random, clock: Clock, end: float) -> None:
        """*end*: by *clock*, when to give up."""
        self.misses: list[Miss] = []
        self._code = code
        self._key = private_key
        self._name = name
        self._random = random
        self._clock = clock
        self._end = end
        self._guessed = 0

    def seek(self, places: Iterable[Place], store: Callable[[Grant], None]) -> Grant | None:
        """Try *places* until one grants; *store* is called with the grant before the inviter hears of it. None: see `misses`."""
        for place in places:
            if self._clock() >= self._end or self.hopeless:
                return None
            grant = self._try(place, store)
            if grant is not None:
                return grant
            if self.hopeless:
                return None
        return None

    @property
    def hopeless(self) -> bool:
        """Another place would say the same, or too many have had a guess."""
        return self._guessed >= GUESSES_MAX or any(
            isinstance(miss.outcome, Denied)
            or (isinstance(miss.outcome, Refused) and miss.outcome.reason in (Refusal.WRONG, Refusal.KILLED, Refusal.USED))
            for miss in self.misses
        )

    def _try(self, place: Place, store: Callable[[Grant], None]) -> Grant | None:
        deadline = min(self._end, self._clock() + CONTACT_SECONDS)
        try:
            sock = socket.create_connection((place.address, place.port), max(0.01, deadline - self._clock()))
        except OSError as error:
            self.misses.append(Miss(place, (error.strerror or str(error)).lower(), None))
            return None
        with sock:
            joiner = Joiner(self._code, self._key, self._name, self._random)
            outcome = self._talk(sock, joiner, min(self._end, self._clock() + CONTACT_SECONDS))
            if isinstance(outcome, Grant):
                store(outcome)
                try:
                    sock.sendall(joiner.stored())
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # We are a node all the same; the inviter's people do not see that we know.
                return outcome
        self._guessed += joiner.guessed
        self.misses.append(Miss(place, explain(outcome), outcome))
        return None

    def _talk(self, sock: socket.socket, joiner: Joiner, deadline: float) -> Outcome:
        while True:
            try:
                out = b"".join(joiner.out)
                joiner.out.clear()
                sock.settimeout(max(0.01, deadline - self._clock()))
                sock.sendall(out)
                if joiner.outcome is not None:
                    return joiner.outcome
                data = sock.recv(READ_MAX)
            except OSError:
                data = b""
            if data:
                joiner.receive(data)
            else:
                joiner.closed()
            if joiner.outcome is not None:
                return joiner.outcome


def explain(outcome: Outcome) -> str:
    """Why it came to nothing, for people."""
    match outcome:
        case Refused():
            return sentence(outcome)
        case Denied():
            return outcome.detail
        case Failure():
            return outcome.value
        case Grant():
            return "granted"


def resolve(text: str, port: int) -> list[Place]:
    """The places of what people type (`stack.wire.endpoint.split_host`); *port* when it has none. Blocks while a name is looked up.

    ValueError, one sentence, for what is no place; ResmgrError with a sentence when the name is not known.
    """
    host, port = split_host(text, port)
    try:
        return [Place(address, port) for address in look_up(host)]
    except OSError as error:
        raise ResmgrError(error.errno or errno.EIO, f"{host}: {error.strerror or error}".lower()) from error
