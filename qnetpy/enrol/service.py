"""The enrolment service of a node that may issue: invitations, the door that is open while there are any, and what people hear of them.

It is idle without an invitation: no socket, no announcement, no thread.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from qnetpy.enrol.code import make_code
from qnetpy.enrol.invitation import INVITATIONS_MAX, TTL_MAX, USES_MAX, Invitation, Invitations, State
from qnetpy.enrol.inviter import Exchange, grant_once
from qnetpy.enrol.listener import Listener
from qnetpy.enrol.wire import Denied, Grant, Request
from qnetpy.identity.names import ROLES_MAX, is_name
from resmgr.dispatch import Dispatch, Timer

log = logging.getLogger(__name__)
CODE_TRIES = 16
"""Codes drawn until one has a public part that is free: with 64 of 32,768 taken, one is nearly always enough."""


class Issuing(Protocol):
    """Who makes the certificates. All of it raises ValueError with a sentence for people."""

    def check(self, roles: frozenset[str]) -> None: ...

    def taken(self, name: str) -> bool: ...

    def holder(self, static_key: bytes) -> str:
        """The node that has that public key; empty: none that is known."""
        ...

    def grant(self, name: str, static_key: bytes, roles: frozenset[str], validity: float) -> Grant: ...


class EnrolmentService:
    """See the head of this file. *announce* is told the port while the door is open, then None."""

    def __init__(
        self,
        dispatch: Dispatch,
        issuing: Issuing,
        random: Callable[[int], bytes],
        port: int,
        announce: Callable[[int | None], None],
    ) -> None:
        self.invitations = Invitations()
        self.counters: Counter[str] = self.invitations.counters
        self._dispatch = dispatch
        self._issuing = issuing
        self._random = random
        self._port = port
        self._announce = announce
        self._listener: Listener | None = None
        self._timer: Timer | None = None

    @property
    def port(self) -> int:
        """Where machines join; 0 while nobody can."""
        return 0 if self._listener is None else self._listener.port

    def invite(self, name: str, roles: frozenset[str], uses: int, ttl: float, validity: float) -> Invitation:
        """Open an invitation. ValueError with a sentence when that cannot be; OSError when the port cannot be had."""
        if name and not is_name(name):
            raise ValueError(f"{name!r} is no name for a node: lower-case letters, digits and hyphens, at most 63")
        if len(roles) > ROLES_MAX or not all(map(is_name, roles)):
            raise ValueError(f"roles are names, at most {ROLES_MAX}: {', '.join(sorted(roles))}")
        if not 1 <= uses <= USES_MAX or (name and uses > 1):
            raise ValueError("one name is for one machine" if name else f"an invitation is for 1 to {USES_MAX} machines")
        if not 0 < ttl <= TTL_MAX:
            raise ValueError(f"an invitation lives for up to {TTL_MAX / 3600:g} hours")
        if not 0 < validity < math.inf:
            raise ValueError("certificates are valid for more than nothing, and not for ever")
        if name and self._issuing.taken(name):
            raise ValueError(f"there is a node {name} already; try: qnet revoke {name}, if this is to take its place")
        self._issuing.check(roles)
        now = self._dispatch.now()
        for _ in range(CODE_TRIES):
            invitation = Invitation(make_code(self._random), name, roles, uses, now + ttl, validity)
            if self.invitations.add(invitation, now):
                break
        else:
            raise ValueError(f"there are {INVITATIONS_MAX} invitations already; wait until they are over")
        try:
            self._settle()
        except OSError:
            self.invitations.cancel(invitation.code.public)
            raise
        log.info("invitation %s is open for %g s, for %s", invitation.code.public, ttl, name or f"{uses} machine(s)")
        return invitation

    def cancel(self, public: str) -> bool:
        done = self.invitations.cancel(public)
        self._settle()
        return done

    def close(self) -> None:
        """The door is shut, and every invitation over."""
        if self._timer is not None:
            self._timer.cancel()
        self._shut()

    def _settle(self) -> None:
        """The door is open while somebody may come."""
        now = self._dispatch.now()
        for invitation in self.invitations.expire(now):
            log.info("invitation %s is over: nobody came", invitation.code.public)
        remembered = bool(self.invitations.all())
        if self._listener is None and self.invitations.open:
            self._listener = Listener(self._dispatch, self._port, self._exchange, self.counters)
            self._announce(self._listener.port)
        elif self._listener is not None and not remembered and not self._listener.busy:
            self._shut()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = self.invitations.next_timeout()
        if when is None and self._listener is not None:
            when = now + 1.0
        if when is not None:
            self._timer = self._dispatch.call_at(when, self._settle)

    def _shut(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            self._announce(None)
            listener.close()

    def _exchange(self, source: str) -> Exchange:
        return Exchange(self.invitations, self._issue, self._tell, self._random, self.counters, source, self._dispatch.now())

    def _issue(self, invitation: Invitation, request: Request) -> Grant | Denied:
        def make(name: str) -> Grant:
            return self._issuing.grant(name, request.static_key, invitation.roles, invitation.validity)

        return grant_once(self.invitations, invitation, request, self._issuing.taken, self._issuing.holder, make)

    def _tell(self, what: str, invitation: Invitation, source: str, more: str) -> None:
        public = invitation.code.public
        if what == "wrong":
            if invitation.state is State.KILLED:
                log.error("invitation %s was ended by wrong tries, the last from %s; try: qnet invite", public, source)
            else:
                log.warning("wrong code for invitation %s from %s; %d tries left", public, source, invitation.left)
        elif what == "denied":
            log.warning("a machine at %s had the code of invitation %s, and cannot be taken in: %s", source, public, more)
        elif what == "granted":
            log.info("certificate for node %s issued to %s by invitation %s", more, source, public)
        else:
            log.info("node %s joined (invitation %s, %s)", more, public, source)
