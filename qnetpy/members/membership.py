"""The membership manager of a node: keeps what all nodes must know equal, gets certificates renewed, and answers those who ask for them.

It is a manager like others, on `(0, PID_SYSTEM, CHID_MEMBERS)`; other nodes' daemons send to it, and are who their certificates say.

    link up             SYNC both ways; each tells the other what that lacks
    a statement         believed, stored, told to every other node that is up; links of whom it revokes end
    2/3 of a life       RENEW to a node that may issue
    two roots           a certificate under the newer one is fetched; the machine with the root key retires the older when all have one

Nothing is on the path of a message between programs.
"""

from __future__ import annotations

import errno
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qnetpy.identity.authority import NodeIdentity
from qnetpy.identity.certificate import ROLE_ISSUER, Certificate, CertificateError, date, parse_chain, parse_issuer
from qnetpy.identity.trust import Kind, Revoked, Statement
from qnetpy.members import renewal, wire
from qnetpy.members.office import Office, OfficeError
from qnetpy.members.standing import Standing
from qnetpy.members.store import Kept, Store
from resmgr.channel import ND_LOCAL, PID_SYSTEM, Channel, Connection, Credentials, Kernel, Message, Nd
from resmgr.dispatch import Buffer, Dispatch, Timer
from resmgr.errors import BadMessage, Misuse

log = logging.getLogger(__name__)
Random = Callable[[int], bytes]
Reply = Callable[[int, Buffer], None]
RENEW_EVERY = 1.0
"""Seconds between two certificates for one node. Stops a node that asks in a loop from using our time for signing."""
SPREAD = 2.0
"""Seconds within which nodes ask after something has changed for all of them, each at its own moment."""
RETIRE_CHECK = 2.0
"""Seconds between looks at whether every node has a certificate under the newer root."""
SWITCH_PAUSE = 10.0
"""Seconds for which a certificate is shown before its root may turn out to be unknown. More than a handshake takes."""


class Links(Protocol):
    """What membership needs of the links."""

    def members_up(self) -> Mapping[str, Certificate]:
        """Nodes that are up, with the certificate each has shown."""
        ...

    def member_nd(self, name: str) -> Nd: ...

    def end_link(self, name: str, reason: str) -> None: ...

    def set_identity(self, identity: NodeIdentity) -> None: ...


class Membership:
    """See the head of this file. Used from dispatch context; `close` ends it."""

    def __init__(self, dispatch: Dispatch, kernel: Kernel, kept: Kept, store: Store, random: Random) -> None:
        self.standing = Standing(kept)
        self.office = Office(self.standing, store, random)
        self.counters: Counter[str] = Counter()
        """What other nodes said that was not done or believed, by reason."""
        self.channel: Channel = kernel.channel(self._handle, chid=wire.CHID_MEMBERS)
        self._dispatch = dispatch
        self._kernel = kernel
        self._store = store
        self._random = random
        self._links: Links | None = None
        self._connections: dict[str, Connection] = {}
        self._renewed: dict[str, float] = {}
        self._asking = False
        self._asked_at = -math.inf
        self._saving = False
        self._dirty = False
        self._warned = math.inf
        self._switched_at = -math.inf
        self.refused_by = ""
        """A node that refuses this one; empty when none did, or when one has let us in since."""
        self._timer: Timer | None = None
        self._closed = False

    # Life

    def start(self, links: Links) -> None:
        """The links are there. Nothing of theirs is used before."""
        self._links = links
        self._note_self()
        self._look_at(self._dispatch.now())

    def close(self) -> None:
        """Idempotent. What is not stored yet is stored now."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self.channel.destroy()
        if self._dirty:
            self._store.save(self.standing.kept())

    def link_up(self, name: str) -> None:
        """A link to *name* has come up."""
        if self._links is None or self._closed:
            return
        certificate = self._links.members_up()[name]
        if name == self.refused_by:
            self.refused_by = ""
        if self._keeps_register and self.standing.register.note(certificate):
            self._save()
        self._drop_connection(name)
        self._connections[name] = self._kernel.connect(self._links.member_nd(name), PID_SYSTEM, wire.CHID_MEMBERS, Credentials(0, 0))
        self._sync(name)
        if ROLE_ISSUER in certificate.roles and renewal.wants(self.standing, self._dispatch.wall()):
            self._look_at(self._dispatch.now() + self._chance() * SPREAD)

    def link_down(self, name: str) -> None:
        self._drop_connection(name)

    def root_unknown(self) -> None:
        """Somebody does not know the root of the certificate that we show: show the other, if there is one. Several say so at once, of the
        same certificate, so the next one is heard only after a while."""
        now = self._dispatch.now()
        if now >= self._switched_at + SWITCH_PAUSE and self.standing.show_other():
            self._switched_at = now
            self._use_identity()

    def refused(self, name: str) -> None:
        """A call to *name* was refused, there or here: when it was not us, we were revoked and had not heard of it."""
        if not any(isinstance(one.subject, Revoked) and one.subject.name == name for one in self.standing.trust.revocations()):
            self.refused_by = name

    def _drop_connection(self, name: str) -> None:
        connection = self._connections.pop(name, None)
        if connection is not None:
            connection.close()

    @property
    def _keeps_register(self) -> bool:
        return ROLE_ISSUER in self.standing.identity.roles

    def _note_self(self) -> None:
        if self._keeps_register:
            power = self.standing.any_power()
            issuer_id = b"" if power is None else power.issuer.key_id
            if self.standing.register.note(self.standing.identity.certificate, self.standing.ready(), issuer_id):
                self._save()

    # Knowing the same

    def _sync(self, name: str) -> None:
        """Tell *name* what we know, and then what it lacks."""
        message = wire.pack_sync(wire.Sync(self.standing.trust.digest(), self.standing.ready()))

        def answered(status: int, reply: Buffer) -> None:
            if status < 0:
                return
            try:
                known = wire.parse_known(bytes(reply))
            except BadMessage:
                self.counters["malformed"] += 1
                return
            if known.digest != self.standing.trust.digest():
                self._tell(name, self.standing.trust.unknown_to(known.ids))

        self._send(name, message, wire.REPLY_MAX, answered)

    def _tell(self, name: str, statements: Iterable[Statement]) -> None:
        for message in wire.pack_tells([statement.data for statement in statements]):
            self._send(name, message, 0, lambda status, reply: None)

    def _send(self, name: str, message: bytes, reply_len: int, done: Reply) -> None:
        connection = self._connections.get(name)
        if connection is None:
            done(-errno.EHOSTDOWN, b"")
        else:
            connection.submit((message,), reply_len, done)

    def believe(self, statements: Iterable[bytes], source: str = "") -> list[Statement]:
        """Statements from node *source*, or from this one. What is new is acted on, stored and told on; returns it."""
        before = self.standing.identity
        fresh, refused = self.standing.learn(statements)
        for why in refused:
            self.counters["statements_refused"] += 1
            log.warning("a statement of node %s is not believed: %s", source or "this one", why)
        if not fresh:
            return []
        for statement in fresh:
            log.warning("%s", told(statement))
        self._save()
        for name in list(self._connections):
            if name != source:
                self._tell(name, fresh)
        self._end_revoked()
        if self.standing.identity != before:
            self._use_identity()
        self._look_at(self._dispatch.now() + self._chance() * SPREAD)
        return fresh

    def _end_revoked(self) -> None:
        if self._links is None:
            return
        for name, certificate in list(self._links.members_up().items()):
            statement = self.standing.trust.revoked(certificate)
            if statement is not None:
                self._links.end_link(name, f"revoked by {statement.by}")
        own = self.standing.trust.revoked(self.standing.identity.certificate)
        if own is not None:
            log.error(
                "this node was revoked by %s on %s: the others refuse it; try: qnet leave, then qnet join CODE", own.by, date(own.time)
            )

    def _use_identity(self) -> None:
        if self._links is not None:
            self._links.set_identity(self.standing.identity)
        self._save()

    # Answers

    def _handle(self, message: Message) -> None:
        """The channel's handler: nodes of the cluster, and this node itself."""
        if message.info.nd == ND_LOCAL or self._links is None:
            message.error(errno.EPERM)
            return
        if message.msglen > wire.REQUEST_MAX:
            message.error(errno.EMSGSIZE)
            return
        if message.msglen == len(message.data):
            self._request(message, bytes(message.data))
            return

        def pulled(status: int, data: Buffer) -> None:
            if not message.answered:
                self._request(message, bytes(data)) if status == message.msglen else message.error(errno.EIO)

        message.read(0, message.msglen, pulled)

    def _request(self, message: Message, data: bytes) -> None:
        assert self._links is not None
        node = message.info.node
        shown = self._links.members_up().get(node)
        if shown is None:
            message.error(errno.ESRCH)
            return
        try:
            match data[0] if data else 0:
                case wire.Op.SYNC:
                    self._answer_sync(message, node, shown, wire.parse_sync(data))
                case wire.Op.TELL:
                    statements = wire.parse_tell(data)
                    message.reply(0)
                    self.believe(statements, node)
                case wire.Op.RENEW:
                    self._answer_renew(message, node, shown, wire.parse_renew(data))
                case wire.Op.LEAVE:
                    self._answer_leave(message, node, shown)
                case _:
                    message.error(errno.ENOSYS)
        except BadMessage:
            self.counters["malformed"] += 1
            if not message.answered:
                message.error(errno.EINVAL)

    def _answer_sync(self, message: Message, node: str, shown: Certificate, sync: wire.Sync) -> None:
        trust = self.standing.trust
        digest = trust.digest()
        message.reply(0, wire.pack_known(wire.Known(digest, () if sync.digest == digest else tuple(trust.ids()))))
        if self._keeps_register and self.standing.register.note(shown, sync.ready):
            self._save()
            self._look_at(self._dispatch.now() + RETIRE_CHECK)

    def _answer_renew(self, message: Message, node: str, shown: Certificate, wanted: wire.Renew) -> None:
        now = self._dispatch.now()
        if now < self._renewed.get(node, -math.inf) + RENEW_EVERY:
            self.counters["renewals_too_often"] += 1
            message.error(errno.EAGAIN)
            return
        self._renewed = {name: when for name, when in self._renewed.items() if now < when + RENEW_EVERY} | {node: now}
        try:
            renewed = self.office.renew(node, shown.static_key, wanted, self._dispatch.wall())
        except OfficeError as error:
            self.counters["renewals_refused"] += 1
            log.info("node %s asked for a certificate and got none: %s", node, error)
            message.error(error.errno)
            return
        log.info("certificate of node %s renewed", node)
        message.reply(0, wire.pack_renewed(renewed))
        self._save()

    def _answer_leave(self, message: Message, node: str, shown: Certificate) -> None:
        try:
            statement = self.office.revoke(node, shown, self._dispatch.wall())
        except OfficeError as error:
            message.error(error.errno)
            return
        message.reply(0)
        log.info("node %s leaves the cluster", node)
        self.standing.register.forget(node)
        # Its answer first: believing ends the link.
        self._dispatch.call_soon(lambda: self._believe_later(statement))

    def _believe_later(self, statement: Statement) -> None:
        self._dispatch.call_at(self._dispatch.now() + 0.1, lambda: None if self._closed else self._believed(statement))

    def _believed(self, statement: Statement) -> None:
        self.believe([statement.data])

    # Renewal

    def _look_at(self, when: float) -> None:
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._dispatch.call_at(when, self._look)

    def _look(self) -> None:
        """Everything that is done because of time."""
        self._timer = None
        wall = self._dispatch.wall()
        self._warn(wall)
        self._retire_when_ready(wall)
        pause = renewal.pause(self.standing)
        wants = renewal.wants(self.standing, wall)
        if wants and not self._asking and self.standing.trust.accepts(self.standing.identity.certificate):
            self._renew(wants[0], wall)
        if len(self.standing.trust.roots) > 1:
            pause = min(pause, RETIRE_CHECK)
        if self._timer is None:
            self._look_at(self._dispatch.now() + pause * (0.75 + self._chance() / 2))

    def _renew(self, want: renewal.Want, wall: float) -> None:
        private = self.standing.powers[0].private if self.standing.powers else b""
        if want.issuing and not private:
            private = self._random(32)
        public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw() if want.issuing else wire.NO_KEY
        own = self.standing.identity.certificate
        request = wire.Renew(want.root_id, own.chain, public)
        try:
            renewed = self.office.renew(own.name, own.static_key, request, wall)
        except OfficeError:
            assert self._links is not None
            able = [name for name, one in self._links.members_up().items() if ROLE_ISSUER in one.roles and name in self._connections]
            self._asking = bool(able)
            self._ask(able, request, private)
        else:
            self._install(renewed, private, self.standing.name)

    def _ask(self, able: list[str], request: wire.Renew, private: bytes) -> None:
        """Ask nodes that may issue, one after another in random order, until one does."""
        if not able or self._closed:
            self._asking = False
            return
        name = able.pop(int(self._chance() * len(able)))

        def answered(status: int, reply: Buffer) -> None:
            if status < 0:
                self.counters["renewals_failed"] += 1
                self._ask(able, request, private)
                return
            self._asking = False
            try:
                self._install(wire.parse_renewed(bytes(reply)), private, name)
            except BadMessage as error:
                self.counters["malformed"] += 1
                log.warning("node %s issued a certificate that is no good: %s", name, error)

        self._send(name, wire.pack_renew(request), 2048, answered)

    def _install(self, renewed: wire.Renewed, private: bytes, by: str) -> None:
        try:
            certificate = parse_chain(renewed.chain)
            issuer = parse_issuer(renewed.issuer) if renewed.issuer else None
            self.standing.install(certificate, issuer, private, self._dispatch.wall())
        except (CertificateError, Misuse) as error:
            self.counters["renewals_failed"] += 1
            log.warning("node %s issued a certificate that is no good: %s", by, error)
            return
        self._warned = math.inf
        log.info("new certificate by %s, valid until %s", by, date(certificate.not_after))
        self._note_self()
        self._use_identity()
        for name in list(self._connections):
            self._sync(name)
        self._look_at(self._dispatch.now() + RENEW_EVERY + self._chance())

    def _warn(self, wall: float) -> None:
        certificate = self.standing.identity.certificate
        mark = renewal.warning(certificate, self._warned, wall)
        if mark is not None:
            self._warned = mark
            log.warning("%s", ends(certificate, wall))

    def _retire_when_ready(self, wall: float) -> None:
        """The machine with the root key retires the older root when every node has a certificate under the newer."""
        standing = self.standing
        if len(standing.trust.roots) < 2 or not self._keeps_register or standing.under(standing.newest_root_id) is None:
            return
        if standing.register.lacking(standing.newest_root_id, standing.trust, wall):
            return
        try:
            statement = self.office.retire(wall)
        except OfficeError:
            return
        self.believe([statement.data])

    # What people ask for

    def revoke(self, name: str) -> Statement:
        """End a node. OfficeError."""
        assert self._links is not None
        statement = self.office.revoke(name, self._links.members_up().get(name), self._dispatch.wall())
        self.believe([statement.data])
        return statement

    def rotate(self) -> Statement:
        """Begin to use another root. OfficeError. Blocks on the disk: first it is stored that it is trusted, then its key takes its
        place."""
        statement, authority = self.office.rotate(self._dispatch.wall())
        self.believe([statement.data])
        self._store.save(self.standing.kept())
        self._store.replace_authority(authority)
        self._look_at(self._dispatch.now())
        return statement

    def retire(self) -> Statement:
        """End the overlap of two roots now. OfficeError."""
        statement = self.office.retire(self._dispatch.wall())
        self.believe([statement.data])
        return statement

    def leave(self, done: Callable[[str], None]) -> None:
        """Ask nodes that may issue to revoke this one, until one does: *done* with its name, or "" when none did."""
        assert self._links is not None
        able = [name for name, one in self._links.members_up().items() if ROLE_ISSUER in one.roles and name in self._connections]

        def ask() -> None:
            if not able:
                done("")
                return
            name = able.pop()
            self._send(name, wire.pack_leave(), 0, lambda status, reply: ask() if status < 0 else done(name))

        ask()

    def taken(self, name: str) -> bool:
        """Whether a node of that name is there, or was given a certificate that may be in use."""
        assert self._links is not None
        standing = self.standing
        return (
            name == standing.name
            or name in self._links.members_up()
            or standing.register.taken(name, standing.trust, self._dispatch.wall())
        )

    def save(self) -> None:
        """Something was changed from outside, such as the register."""
        self._save()

    # Storing

    def _save(self) -> None:
        """Store everything soon. One at a time, so that the latest wins."""
        self._dirty = True
        if self._saving or self._closed:
            return
        self._saving = True
        self._dispatch.call_soon(self._write)

    def _write(self) -> None:
        if self._closed:
            return
        self._dirty = False
        kept = self.standing.kept()
        self._dispatch.call_blocking(lambda: self._store.save(kept), self._written)

    def _written(self, result: BaseException | None) -> None:
        self._saving = False
        if isinstance(result, OSError):
            self.counters["not_stored"] += 1
            log.error("membership is not stored: %s", result.strerror or result)
        elif isinstance(result, BaseException):
            raise result
        if self._dirty and not self._closed:
            self._save()

    def _chance(self) -> float:
        return int.from_bytes(self._random(2), "big") / 65536


def told(statement: Statement) -> str:
    """A statement as a sentence."""
    subject = statement.subject
    if isinstance(subject, Revoked):
        return f"node {subject.name} was revoked by {statement.by}"
    if statement.kind is Kind.ROOT:
        return "the cluster gets a new root; both count until every node has a certificate under the new one"
    return "the old root of the cluster was retired"


def ends(certificate: Certificate, wall: float) -> str:
    """What to say of a certificate that ends soon, or has ended."""
    left = certificate.not_after - wall
    if left <= 0:
        return (
            f"the certificate of this node expired on {date(certificate.not_after)}: no other node accepts it; "
            f"try: qnet invite --name {certificate.name} on a node that may, and here: qnet join CODE --replace"
        )
    return (
        f"the certificate of this node ends in {left / 86400:.1f} days ({date(certificate.not_after)}) and could not be renewed: "
        f"a node with the role {ROLE_ISSUER} must be up"
    )
