"""The inviting end of one enrolment, as a machine on a byte stream. Sans-IO; docs/protocol/enrolment.md is the page.

    HELLO        a public part and a key exchange message; the invitation is looked up
    COMPUTING    the key exchange is under way in a worker thread (`job`, then `computed`)
    CONFIRM      we said CHALLENGE; the joiner confirms, or has spent a try
    REQUEST      we said ACCEPT; the joiner tells its public key and proves to have the private one, under the keys of the exchange
    GRANTED      we said GRANT; the joiner says when it has stored it
    ENDED

Whatever is not expected in a state ends the exchange. Nothing secret is said before REQUEST.
"""

from __future__ import annotations

import enum
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial

from qnetpy.enrol.invitation import Invitation, Invitations
from qnetpy.enrol.pake import Keys, Pake, Random
from qnetpy.enrol.possession import Question
from qnetpy.enrol.wire import (
    VERSION,
    Accept,
    Denial,
    Denied,
    Frames,
    Grant,
    Kind,
    Refusal,
    Refused,
    Request,
    frame,
    pack_accept,
    pack_denied,
    pack_grant,
    pack_refused,
    parse_hello,
    parse_request,
)
from resmgr.errors import BadMessage

log = logging.getLogger(__name__)
SECONDS = 10.0
"""A whole enrolment takes this long at most. Stops connections that are opened and left."""
BYTES_MAX = 2048
"""What a joiner may send in all; an honest one sends 250. Stops a stream without end."""

Job = Callable[[], tuple[bytes, Keys]]
Issue = Callable[[Invitation, Request], Grant | Denied]
"""Makes the certificate. Called for a request that has shown the right code, and once for each use."""
Tell = Callable[[str, Invitation, str, str], None]
"""What happened ("wrong", "granted", "denied", "joined"), to which invitation, from where, and more of it. For people."""


class Step(enum.Enum):
    HELLO = "hello"
    COMPUTING = "computing"
    CONFIRM = "confirm"
    REQUEST = "request"
    GRANTED = "granted"
    ENDED = "ended"


class Exchange:
    """See the head of this file. `out` collects what to send; `job` is work for a thread, whose result goes to `computed`."""

    def __init__(
        self, invitations: Invitations, issue: Issue, tell: Tell, random: Random, counters: Counter[str], source: str, now: float
    ) -> None:
        self.source = source
        self.expires = now + SECONDS
        self.step = Step.HELLO
        self.out: list[bytes] = []
        self.job: Job | None = None
        self._invitations = invitations
        self._issue = issue
        self._tell = tell
        self._random = random
        self._counters = counters
        self._frames = Frames()
        self._received = 0
        self._invitation: Invitation | None = None
        self._keys: Keys | None = None
        self._question: Question | None = None
        self._name = ""

    @property
    def ended(self) -> bool:
        """Nothing more will come out or is wanted: send `out`, then close."""
        return self.step is Step.ENDED

    def receive(self, data: bytes, now: float) -> None:
        """Bytes from the joiner. Raises nothing for what they are."""
        self._received += len(data)
        try:
            if self._received > BYTES_MAX:
                raise BadMessage("enrolment: too much")
            for kind, body in self._frames.feed(data):
                self._frame(kind, body, now)
        except BadMessage:
            self._counters["malformed"] += 1
            if self.step is not Step.ENDED:
                self._refuse(Refused(Refusal.MALFORMED, 0))

    def timeout(self, now: float) -> None:
        """Its time may be over."""
        if now >= self.expires and not self.ended:
            self._counters["exchange_expired"] += 1
            self.step = Step.ENDED

    def closed(self) -> None:
        """The joiner is gone."""
        if not self.ended:
            self._counters["broken_off"] += 1
            self.step = Step.ENDED

    def computed(self, result: tuple[bytes, Keys] | BaseException) -> None:
        """What `job` returned or raised."""
        if self.step is not Step.COMPUTING:
            return
        if isinstance(result, BadMessage):
            self._counters["malformed"] += 1
            self._refuse(Refused(Refusal.MALFORMED, 0))
            return
        if isinstance(result, BaseException):
            # A bug of ours or of the library, reached from outside: it must not end the daemon.
            self._counters["exchange_failed"] += 1
            log.error("enrolment: the key exchange failed", exc_info=result)
            self._refuse(Refused(Refusal.MALFORMED, 0))
            return
        message, self._keys = result
        self.out.append(frame(Kind.CHALLENGE, message))
        self.step = Step.CONFIRM

    def _frame(self, kind: Kind, body: bytes, now: float) -> None:
        if self.step is Step.HELLO and kind is Kind.HELLO:
            self._hello(body, now)
        elif self.step is Step.CONFIRM and kind is Kind.CONFIRM:
            self._confirm(body, now)
        elif self.step is Step.REQUEST and kind is Kind.REQUEST:
            self._request(body)
        elif self.step is Step.GRANTED and kind is Kind.DONE:
            self._done(body)
        else:
            raise BadMessage("enrolment: not expected now")

    def _hello(self, body: bytes, now: float) -> None:
        hello = parse_hello(body)
        if hello.version != VERSION:
            self._counters["bad_version"] += 1
            self._refuse(Refused(Refusal.VERSION, 0))
            return
        found = self._invitations.begin(hello.public, self.source, now)
        if isinstance(found, Refused):
            self._refuse(found)
            return
        self._invitation = found
        self.job = partial(_compute, found, hello.pake, frame(Kind.HELLO, body), self._random)
        self.step = Step.COMPUTING

    def _confirm(self, body: bytes, now: float) -> None:
        invitation, keys = self._invitation, self._keys
        assert invitation is not None
        assert keys is not None
        if not keys.confirmed(body):
            refused = self._invitations.wrong(invitation, self.source, now)
            self._tell("wrong", invitation, self.source, "")
            self._refuse(refused)
            return
        ended = self._invitations.right(invitation)
        if ended is not None:
            self._refuse(ended)
            return
        self._question = Question(self._random)
        self.out.append(frame(Kind.ACCEPT, pack_accept(Accept(keys.own, self._question.public))))
        self.step = Step.REQUEST

    def _request(self, body: bytes) -> None:
        invitation, keys, question = self._invitation, self._keys, self._question
        assert invitation is not None
        assert keys is not None
        assert question is not None
        request = parse_request(keys.receive.open(Kind.REQUEST, body))
        if question.answered(request.proof, request.static_key, keys.binding):
            granted = self._issue(invitation, request)
        else:
            granted = Denied(Denial.CANNOT_ISSUE, "this machine has not shown that the key is its own; try: the same code again")
        if isinstance(granted, Denied):
            self._counters["denied"] += 1
            self._tell("denied", invitation, self.source, granted.detail)
            self.out.append(keys.send.seal(Kind.DENIED, pack_denied(granted)))
            self.step = Step.ENDED
            return
        self._name = invitation.granted[request.static_key]
        self._counters["granted"] += 1
        self._tell("granted", invitation, self.source, self._name)
        self.out.append(keys.send.seal(Kind.GRANT, pack_grant(granted)))
        self.step = Step.GRANTED

    def _done(self, body: bytes) -> None:
        invitation, keys = self._invitation, self._keys
        assert invitation is not None
        assert keys is not None
        if keys.receive.open(Kind.DONE, body):
            raise BadMessage("done: not empty")
        if self._name not in invitation.joined:
            invitation.joined.append(self._name)
        self._counters["joined"] += 1
        self._tell("joined", invitation, self.source, self._name)
        self.step = Step.ENDED

    def _refuse(self, refused: Refused) -> None:
        self.out.append(frame(Kind.REFUSED, pack_refused(refused)))
        self.step = Step.ENDED


def _compute(invitation: Invitation, message: bytes, hello: bytes, random: Random) -> tuple[bytes, Keys]:
    """The expensive part, in a worker thread: our message, and the keys."""
    pake = Pake(invitation.code, joiner=False, random=random)
    return pake.message, pake.finish(message, hello + frame(Kind.CHALLENGE, pake.message))


def grant_once(
    invitations: Invitations,
    invitation: Invitation,
    request: Request,
    name_taken: Callable[[str], bool],
    holder: Callable[[bytes], str],
    make: Callable[[str], Grant],
) -> Grant | Denied:
    """What an `Issue` does around *make*, which issues for the name it is given: the name, whether it and the key are free, and the count
    of uses. *holder*: the node that has a public key; empty: none. *make* may raise ValueError with a sentence for the joiner; the use is
    counted only if it does not."""
    name = invitation.name or request.name
    if not name:
        return Denied(Denial.BAD_NAME, "this machine's host name cannot be the name of a node; try: qnet join CODE --name NAME")
    known = invitation.granted.get(request.static_key)
    if known is not None and known != name:
        return Denied(Denial.CANNOT_ISSUE, f"by this code this machine is node {known}; try: qnet join CODE --name {known}")
    owner = holder(request.static_key)
    if owner not in ("", name):
        return Denied(Denial.CANNOT_ISSUE, f"the key of this machine is that of node {owner}; try: qnet join CODE --name {owner}")
    # Who has used the code may come again as long as nobody else has become the node of that name since.
    if (known is None or owner != name) and name_taken(name):
        return Denied(Denial.NAME_TAKEN, f"there is a node {name} already; try: qnet join CODE --name NAME, or there: qnet revoke {name}")
    if known is None and not invitation.uses:
        return Denied(Denial.CANNOT_ISSUE, "another machine has used this code")
    try:
        grant = make(name)
    except ValueError as error:
        return Denied(Denial.CANNOT_ISSUE, str(error))
    if not invitations.use(invitation, request.static_key, name):
        return Denied(Denial.CANNOT_ISSUE, "another machine has used this code")
    return grant
