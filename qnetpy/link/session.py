"""A session: the keys that one handshake gave, sealing and opening DATA frames by the batch. The hot path of a link.

Nonces are path and packet number, the additional data is the DATA header (docs/protocol/link.md). Numbers belong to the transport, one
space per path, and go on across sessions; a session seals only numbers above the last it sealed on that path, so no key ever sees a
nonce twice. Keys live in memory only and are forgotten by `close`: a process that starts again has none. Order when opening: replay
window, decryption, replay window again (a peer that updates it first can be made to drop good packets by a forger).

A peer has a `Sessions`: the current one, those before it for a grace time, and those that come, so that a rekey loses nothing that is in
flight and nobody seals what the other end cannot open.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import ClassVar

import attrs

from qnetpy.link.constants import (
    ATTEMPT_TIMEOUT,
    COMING_MAX,
    DONE_LIFETIME,
    OLDER_MAX,
    PACKET_NUMBER_MAX,
    PREVIOUS_GRACE,
    REJECT_AFTER,
    REKEY_AFTER,
    REKEY_FAILURES,
    REKEY_PART,
    REKEY_STAGGER,
    TAG_SIZE,
)
from qnetpy.link.lease import Lease
from qnetpy.link.replay import ReplayWindow
from qnetpy.link.wire import DATA, DATA_HEADER, NONCE, Arrivals
from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto.api import AeadSession


class Role(enum.Enum):
    """Which end of the handshake this node was."""

    INITIATOR = "initiator"
    RESPONDER = "responder"


class KeysExhausted(Misuse):
    """Sealing would pass what one key may seal. Ask `Session.left` first and rekey when `Sessions.rekey_due` says so."""


class SessionCounters:
    """Frames, in both directions."""

    NAMES: ClassVar = ("sealed", "opened", "replayed", "bad_tag")
    __slots__ = NAMES

    def __init__(self) -> None:
        self.sealed = 0
        self.opened = 0
        self.replayed = 0
        """Copies, and numbers older than the window."""
        self.bad_tag = 0
        """Failed authentication: forged, corrupted or cut short."""


class Session:
    """One handshake's keys. `local_index` is in the headers of frames to us, `remote_index` in those we seal."""

    __slots__ = (
        "_last", "_rx", "_tx", "_windows", "counters", "established", "failures_limit", "lease", "local_index", "remote_index", "role",
        "seal_limit",
    )  # fmt: skip

    def __init__(self, tx: AeadSession, rx: AeadSession, local_index: int, remote_index: int, role: Role, now: float) -> None:
        self._tx = tx
        self._rx = rx
        self.local_index = local_index
        self.remote_index = remote_index
        self.role = role
        self.lease = Lease()
        self.established = now
        self.seal_limit = tx.algorithm.seal_limit
        """Frames one key may seal."""
        self.failures_limit = rx.algorithm.open_failures_limit
        """Frames that may fail authentication under one key."""
        self.counters = SessionCounters()
        self._last: dict[int, int] = {}
        """Last packet number sealed, by path."""
        self._windows: dict[int, ReplayWindow] = {}

    @property
    def suite(self) -> str:
        """Name of the AEAD."""
        return self._tx.algorithm.name

    @property
    def left(self) -> int:
        """Frames that may still be sealed."""
        return self.seal_limit - self.counters.sealed

    def refused(self) -> dict[str, int]:
        """Frames that were not opened, by reason."""
        counted = {"replayed": self.counters.replayed, "bad_tag": self.counters.bad_tag}
        return {reason: count for reason, count in counted.items() if count}

    def sealed_on(self, path: int) -> bool:
        """Whether something was sealed on that path."""
        return path in self._last

    def knows(self, path: int) -> bool:
        """Whether something was sealed or opened on that path."""
        return path in self._last or path in self._windows

    def paths_seen(self) -> int:
        """Path numbers that are used up under these keys."""
        return len(self._last.keys() | self._windows.keys())

    def seal(self, prefix: bytes, path: int, first_number: int, plaintexts: Sequence[Buffer]) -> list[bytes]:
        """Whole frames: *prefix* (the Ethernet header), DATA header, ciphertext and tag. Packets are numbered from *first_number* on.

        Plaintexts are borrowed until the return. Misuse when *first_number* is not above the last number sealed on *path*; KeysExhausted.
        Each plaintext fits the length field (65,519 bytes).
        """
        count = len(plaintexts)
        end = first_number + count
        if first_number <= self._last.get(path, -1) or end > PACKET_NUMBER_MAX:
            raise Misuse(f"packet number {first_number} on path {path} was sealed already or is no number")
        if self.counters.sealed + count > self.seal_limit:
            raise KeysExhausted(f"{count} frames more would pass {self.seal_limit} under one key of {self.suite}")
        if not count:
            return []
        # Counted before sealing: a failure half way must not make a number usable again.
        self._last[path] = end - 1
        self.counters.sealed += count
        pack, index = DATA_HEADER.pack, self.remote_index
        if count == 1:
            header = pack(DATA, path, len(plaintexts[0]) + TAG_SIZE, index, first_number)
            return [prefix + header + self._tx.seal_many((NONCE.pack(path, first_number),), plaintexts, (header,))[0]]
        headers = [
            pack(DATA, path, len(plaintext) + TAG_SIZE, index, number)
            for plaintext, number in zip(plaintexts, range(first_number, end), strict=True)
        ]
        salt = path.to_bytes(4, "big")
        nonces = [salt + header[8:] for header in headers]
        sealed = self._tx.seal_many(nonces, plaintexts, headers)
        return list(map(b"".join, zip([prefix] * count, headers, sealed, strict=True)))

    def open(self, arrivals: Arrivals) -> list[tuple[int, bytes]]:
        """(packet number, plaintext) of what is authentic and was not seen before, in order of arrival; the rest is counted."""
        numbers, headers, bodies = arrivals.numbers, arrivals.headers, arrivals.bodies
        path = arrivals.path
        window = self._windows.get(path)
        if window is None:
            # Kept only once something on this path was authentic.
            window = ReplayWindow()
        count = len(numbers)
        first = numbers[0]
        if count == 1 and first > window.highest and first <= PACKET_NUMBER_MAX and self.counters.bad_tag < self.failures_limit:
            opened_one = self._rx.open_many((NONCE.pack(path, first),), bodies, headers)[0]
            if opened_one is None:
                self.counters.bad_tag += 1
                return []
            window.accept(first)
            self._windows[path] = window
            self.counters.opened += 1
            return [(first, opened_one)]
        in_order = (
            first > window.highest
            and numbers[-1] == first + count - 1 <= PACKET_NUMBER_MAX
            and list(numbers) == list(range(first, first + count))
        )
        if not in_order:
            fresh = [place for place, number in enumerate(numbers) if number <= PACKET_NUMBER_MAX and window.fresh(number)]
            if len(fresh) != count:
                self.counters.replayed += count - len(fresh)
                numbers = [numbers[place] for place in fresh]
                headers = [headers[place] for place in fresh]
                bodies = [bodies[place] for place in fresh]
        if self.counters.bad_tag + len(numbers) > self.failures_limit:
            self.counters.bad_tag += len(numbers)
            return []
        pack = NONCE.pack
        plaintexts = self._rx.open_many([pack(path, number) for number in numbers], bodies, headers)
        if in_order and None not in plaintexts:
            window.accept_run(first, count)
            self._windows[path] = window
            self.counters.opened += count
            return list(zip(numbers, plaintexts, strict=True))  # type: ignore[arg-type]  # the condition says there is no None
        opened = []
        for number, plaintext in zip(numbers, plaintexts, strict=True):
            if plaintext is None:
                self.counters.bad_tag += 1
            elif window.accept(number):
                opened.append((number, plaintext))
            else:
                # Its copy is in the same batch.
                self.counters.replayed += 1
        if opened:
            self._windows[path] = window
            self.counters.opened += len(opened)
        return opened

    def floors(self, reorder: int) -> dict[int, int]:
        """By path, the oldest packet number that is taken to be new: what is below was received, or is more than *reorder* late."""
        return {path: max(window.oldest_fresh, window.highest + 1 - reorder) for path, window in self._windows.items()}

    def close(self) -> None:
        """Forget the keys. Idempotent; sealing and opening afterwards is Misuse."""
        self._tx.close()
        self._rx.close()


@attrs.frozen
class RekeyPolicy:
    """When new keys are due. Seconds; `frames` caps what one key seals or opens below the suite's own limit, for tests and the cautious."""

    after: float = REKEY_AFTER
    stagger: float = REKEY_STAGGER
    failures: int = REKEY_FAILURES
    frames: int = 2**62
    reject_after: float = REJECT_AFTER
    grace: float = PREVIOUS_GRACE

    def due(self, session: Session, now: float) -> str:
        """Why new keys are due: "time", "frames", "failures"; "" when they are not."""
        counters = session.counters
        part = 1.0 if session.role is Role.INITIATOR else 1.0 + (1.0 - REKEY_PART) / 4
        frames = min(session.seal_limit * REKEY_PART, self.frames) * part
        if max(counters.sealed, counters.opened) >= frames:
            return "frames"
        if counters.bad_tag >= min(session.failures_limit * REKEY_PART, self.failures):
            return "failures"
        if now - session.established >= self.after + (0.0 if session.role is Role.INITIATOR else self.stagger):
            return "time"
        return ""


class Sessions:
    """The sessions of one peer.

    `current` seals and opens. `coming` holds keys that the peer, who called for them, may not know to be good yet: they open, and the first
    packet under them makes them current. `older` opens what is still in flight under the keys before. Newest last, in both.
    """

    def __init__(self, policy: RekeyPolicy | None = None) -> None:
        self.policy = policy if policy is not None else RekeyPolicy()
        self.current: Session | None = None
        self.coming: list[Session] = []
        self.older: list[Session] = []
        self._until: dict[Session, float] = {}
        """When those of `coming` and `older` end."""
        self._asked = ""

    def renew(self, reason: str) -> None:
        """Have new keys made at the next occasion, for a reason in a word: "suite"."""
        self._asked = reason

    @property
    def held(self) -> list[Session]:
        """All that open, the likeliest first."""
        current = [self.current] if self.current is not None else []
        return [*current, *self.coming, *self.older]

    def install(self, session: Session, now: float) -> list[Session]:
        """A handshake gave *session*. Returns the sessions that ended by this (closed): forget their indices.

        The caller of the handshake uses it at once. Who was called goes on with the keys before, if they are good, until a packet under the
        new ones comes: the confirmation may be lost, and the caller would hear nothing that is sealed with them.
        """
        self._asked = ""
        if session.role is Role.RESPONDER and self.usable(now):
            self.coming.append(session)
            # The caller may hear the confirmation for as long as it is repeated.
            self._until[session] = now + DONE_LIFETIME
            if len(self.coming) > COMING_MAX:
                self._put_aside([self.coming.pop(0)], now)
        else:
            coming, self.coming = self.coming, []
            self._put_aside([*([self.current] if self.current is not None else []), *coming], now)
            self.current = session
        return self._surplus()

    def heard(self, index: int, now: float) -> list[Session]:
        """A packet opened under the session with that index of ours. Returns the sessions that ended by this (closed)."""
        for place, session in enumerate(self.coming):
            if session.local_index == index:
                before = [*([self.current] if self.current is not None else []), *self.coming[:place]]
                self.coming = self.coming[place + 1 :]
                self._until.pop(session)
                self._put_aside(before, now)
                self.current = session
                return self._surplus()
        return []

    def _put_aside(self, sessions: list[Session], now: float) -> None:
        self.older += sessions
        for session in sessions:
            self._until[session] = now + self.policy.grace

    def _surplus(self) -> list[Session]:
        ended, self.older = self.older[:-OLDER_MAX], self.older[-OLDER_MAX:]
        return self._end(ended)

    def _end(self, ended: list[Session]) -> list[Session]:
        for session in ended:
            self._until.pop(session, None)
            session.close()
        return ended

    def knows(self, path: int) -> bool:
        """Whether a key in use has seen that path number."""
        return any(session.knows(path) for session in self.held)

    def usable(self, now: float) -> bool:
        """Whether there is a session that may still seal."""
        return self.current is not None and self.current.left > 0 and now - self.current.established < self.policy.reject_after

    def rekey_due(self, now: float) -> str:
        """Why a new handshake is due; "" when it is not (or there is nothing to renew). Ask about once per heartbeat and batch."""
        if self.current is None or (self.coming and self.current.left > 0 and now - self.coming[-1].established < ATTEMPT_TIMEOUT):
            return ""
        return self._asked or self.policy.due(self.current, now)

    def next_timeout(self) -> float | None:
        """When `expire` has something to do."""
        return min(self._until.values()) if self._until else None

    def expire(self, now: float) -> list[Session]:
        """End sessions whose time is over. Returns what ended (closed): forget the indices."""
        if not self._until:
            return []
        ended = [session for session, until in self._until.items() if until <= now]
        if ended:
            self.coming = [session for session in self.coming if session not in ended]
            self.older = [session for session in self.older if session not in ended]
        return self._end(ended)

    def close(self) -> list[Session]:
        """End all. Returns what ended (closed): forget their indices."""
        ended = self.held
        self.current, self.coming, self.older = None, [], []
        return self._end(ended)
