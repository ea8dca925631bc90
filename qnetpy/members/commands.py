"""What `qnet invite`, `revoke`, `root` and `leave` ask the daemon: requests and answers that JSON can say. For root and the daemon's own
user."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qnetpy.enrol.invitation import TTL_DEFAULT, Invitation
from qnetpy.enrol.service import EnrolmentService
from qnetpy.enrol.wire import Grant
from qnetpy.identity.authority import NODE_VALIDITY
from qnetpy.identity.certificate import ROLE_ISSUER
from qnetpy.identity.trust import Revoked
from qnetpy.members import lifetime
from qnetpy.members.keyring import problem
from qnetpy.members.membership import Membership
from qnetpy.members.notices import ended
from qnetpy.members.office import OfficeError
from qnetpy.members.renewer import ends
from resmgr.dispatch import Dispatch

Fact = dict[str, object]
Request = Mapping[str, object]
Answer = Callable[[Mapping[str, object]], None]
Verb = Callable[[Request, Answer], None]


class Issuing:
    """What enrolment sees of the membership: `qnetpy.enrol.service.Issuing`."""

    def __init__(self, membership: Membership, dispatch: Dispatch) -> None:
        self._membership = membership
        self._dispatch = dispatch

    def check(self, roles: frozenset[str]) -> None:
        self._membership.office.check(roles)

    def taken(self, name: str) -> bool:
        return self._membership.taken(name)

    def holder(self, static_key: bytes) -> str:
        return self._membership.holder(static_key)

    def grant(self, name: str, static_key: bytes, roles: frozenset[str], validity: float) -> Grant:
        grant = self._membership.office.grant(name, static_key, roles, validity, self._dispatch.wall())
        self._membership.save()
        return grant


def verbs(membership: Membership, enrolment: EnrolmentService, dispatch: Dispatch, announced: bool) -> dict[str, Verb]:
    """The requests by name. An answer with `error` is a sentence for people."""

    def invite(request: Request, answer: Answer) -> None:
        roles = request.get("roles", [])
        days = request.get("days")
        try:
            invitation = enrolment.invite(
                str(request.get("name", "")),
                frozenset(map(str, roles)) if isinstance(roles, list) else frozenset(),
                _number(request, "uses", 1),
                float(_number(request, "ttl", int(TTL_DEFAULT))),
                NODE_VALIDITY if not isinstance(days, int | float) else float(days) * lifetime.DAY,
            )
        except ValueError as error:
            answer({"error": str(error)})
        except OverflowError:
            answer({"error": "that is too long a time: nothing is valid for so many days, and no invitation lives for so many seconds"})
        except OSError as error:
            answer({"error": f"TCP port for joining: {error.strerror}; try: another [enrol] port"})
        else:
            answer(
                {
                    **_invitation(invitation, dispatch.now()),
                    "code": invitation.code.spoken(),
                    "port": enrolment.port,
                    "announced": announced,
                }
            )

    def invitations(request: Request, answer: Answer) -> None:
        now = dispatch.now()
        answer({"invitations": [_invitation(one, now) for one in enrolment.invitations.all()], "counters": dict(enrolment.counters)})

    def uninvite(request: Request, answer: Answer) -> None:
        public = str(request.get("public", ""))
        answer({"cancelled": public} if enrolment.cancel(public) else {"error": f"no invitation {public!r} is open"})

    def revoke(request: Request, answer: Answer) -> None:
        name = str(request.get("node", ""))
        member = membership.keyring.register.get(name)
        issuer = member is not None and ROLE_ISSUER in member.roles
        try:
            statement = membership.revoke(name)
        except OfficeError as error:
            answer({"error": str(error)})
        else:
            subject = statement.subject
            answer({"node": name, "by": statement.by, "issues_on": issuer and isinstance(subject, Revoked) and not subject.issuer_id})

    def root(request: Request, answer: Answer) -> None:
        try:
            match request.get("action"):
                case "rotate":
                    membership.rotate()
                case "retire":
                    membership.retire()
        except OfficeError as error:
            answer({"error": str(error)})
        except OSError as error:
            answer({"error": str(error.strerror or error)})
        else:
            answer(roots(membership, dispatch.wall()))

    def leave(request: Request, answer: Answer) -> None:
        membership.leave(lambda name: answer({"told": name}))

    return {"invite": invite, "invitations": invitations, "uninvite": uninvite, "revoke": revoke, "root": root, "leave": leave}


def _number(request: Request, name: str, default: int) -> int:
    value = request.get(name)
    return value if isinstance(value, int) else default


def _invitation(invitation: Invitation, now: float) -> Fact:
    return {
        "public": invitation.code.public,
        "name": invitation.name,
        "roles": sorted(invitation.roles),
        "state": invitation.state.value,
        "uses_left": invitation.uses,
        "tries_left": invitation.left,
        "seconds_left": max(0, round(invitation.expires - now)),
        "wrong_from": list(invitation.wrong),
        "granted": sorted(invitation.granted.values()),
        "joined": list(invitation.joined),
    }


def roots(membership: Membership, wall: float) -> Fact:
    """The roots of the cluster, older first, and which nodes have no certificate under the newest yet."""
    keyring = membership.keyring
    newest = keyring.trust.roots[-1]
    return {
        "roots": [
            {"key_id": root.key_id.hex(), "not_after": root.not_after, "own": keyring.under(root.key_id) is not None}
            for root in keyring.trust.roots
        ],
        "lacking": keyring.register.lacking(newest.key_id, keyring.trust, wall) if len(keyring.trust.roots) > 1 else [],
    }


def facts(membership: Membership, wall: float) -> Fact:
    """What `qnet status` shows of the membership."""
    keyring = membership.keyring
    certificate = keyring.identity.certificate
    own = keyring.trust.revoked(certificate)
    warning = ""
    if own is not None:
        warning = ended(own, certificate)
    elif lifetime.warning(certificate, float("inf"), wall) is not None or certificate.not_after < wall:
        warning = ends(certificate, wall)
    elif problem(certificate, keyring, wall):
        # Its root was retired while this node was off, or a clock is wrong.
        warning = f"no other node accepts this one: {problem(certificate, keyring, wall)}; try: qnet join CODE --replace"
    elif membership.refused_by:
        warning = (
            f"node {membership.refused_by} refuses this node: it was revoked, or who issued its certificate; "
            "try: qnet leave --force, then qnet join CODE"
        )
    return {
        "roots": len(keyring.trust.roots),
        "issues": membership.office.may_issue,
        "issues_until": max((power.issuer.not_after for power in keyring.powers), default=None),
        "revoked": [
            {"node": one.subject.name, "by": one.by, "time": one.time}
            for one in keyring.trust.revocations()
            if isinstance(one.subject, Revoked)
        ],
        "warning": warning,
        "counters": {name: count for name, count in sorted(membership.counters.items()) if count},
    }
