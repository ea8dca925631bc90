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

from qnetpy.channels import CHID_MEMBERS
from qnetpy.identity.authority import NodeIdentity
from qnetpy.identity.certificate import ROLE_ISSUER, Certificate, parse_chain
from qnetpy.identity.trust import Crowded, Revoked, Statement
from qnetpy.members import lifetime, wire
from qnetpy.members.keeper import Keeper
from qnetpy.members.keyring import Keyring
from qnetpy.members.notices import ended, told
from qnetpy.members.office import Office, OfficeError
from qnetpy.members.renewer import RENEW_EVERY, Peers, Renewer
from qnetpy.members.store import Kept, Store
from resmgr.bucket import TokenBucket
from resmgr.channel import ND_LOCAL, PID_SYSTEM, Channel, Connection, Credentials, Kernel, Message, Nd
from resmgr.dispatch import Buffer, Dispatch
from resmgr.errors import BadMessage

log = logging.getLogger(__name__)
Random = Callable[[int], bytes]
Reply = Callable[[int, Buffer], None]
RETIRE_CHECK = 2.0
"""Seconds between looks at whether every node has a certificate under the newer root."""
SWITCH_PAUSE = 10.0
"""Seconds for which a certificate is shown before its root may turn out to be unknown. More than a handshake takes."""


SYNC_EVERY = 1.0
SYNC_BURST = 16
"""SYNCs of one node: so many at once, then one in so many seconds. An honest one sends one for each link and each certificate."""
PATIENCE = 64
PATIENCE_SECONDS = 60.0
PATIENCE_NODES = 256
"""A node whose statements were refused so often within that time is not heard until it is over: each costs a signature to check. Honest
ones are refused a few when roots change."""


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
        self.keyring = Keyring(kept)
        self.office = Office(self.keyring, store, random)
        self.counters: Counter[str] = Counter()
        """What other nodes said that was not done or believed, by reason."""
        self.channel: Channel = kernel.channel(self._handle, chid=CHID_MEMBERS)
        self._dispatch = dispatch
        self._kernel = kernel
        self._store = store
        self._links: Links | None = None
        self._connections: dict[str, Connection] = {}
        self._renewed: dict[str, float] = {}
        self._syncs: dict[str, TokenBucket] = {}
        """Until when a node's SYNCs are used up, one after the other."""
        self._patience: dict[str, tuple[float, int]] = {}
        """Of nodes that told us what we do not believe: since when, and how often."""
        self._keeper = Keeper(dispatch, self.keyring.kept, store, self.counters)
        self._renewer = Renewer(
            dispatch, self.keyring, self.office, random, self.counters, Peers(self._issuers_up, self._send), self._renewal, self._looked
        )
        self._told: dict[str, tuple[bytes, tuple[bytes, ...]]] = {}
        """Which statements we knew, and which certificates we had, when a node last heard it that knew the same."""
        self._switched_at = -math.inf
        self.refused_by = ""
        """A node that refuses this one; empty when none did, or when one has let us in since."""
        self._closed = False

    # Life

    def start(self, links: Links) -> None:
        """The links are there. Nothing of theirs is used before."""
        self._links = links
        self._note_self()
        self._renewer.look_at(self._dispatch.now())

    def close(self) -> None:
        """Idempotent. What is not stored yet is stored now."""
        if self._closed:
            return
        self._closed = True
        self._renewer.close()
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self.channel.destroy()
        self._keeper.close()

    def link_up(self, name: str) -> None:
        """A link to *name* has come up."""
        if self._links is None or self._closed:
            return
        certificate = self._links.members_up()[name]
        if name == self.refused_by:
            self.refused_by = ""
        if self._keeps_register and self.keyring.register.note(certificate):
            self._keeper.save()
        self._drop_connection(name)
        self._connections[name] = self._kernel.connect(self._links.member_nd(name), PID_SYSTEM, CHID_MEMBERS, Credentials(0, 0))
        self._sync(name)
        if ROLE_ISSUER in certificate.roles and lifetime.wants(self.keyring, self._dispatch.wall()):
            self._renewer.soon()

    def link_down(self, name: str) -> None:
        self._drop_connection(name)

    def root_unknown(self) -> None:
        """Somebody does not know the root of the certificate that we show: show the other, if there is one. Several say so at once, of the
        same certificate, so the next one is heard only after a while."""
        now = self._dispatch.now()
        if now >= self._switched_at + SWITCH_PAUSE and self.keyring.show_other(self._dispatch.wall()):
            self._switched_at = now
            self._use_identity()

    def refused(self, name: str) -> None:
        """*name* has refused us: we were revoked and had not heard of it, or who signed our certificate was. Who does not let us in does
        not tell, so we show the one before. Links that are up say nothing against that: they may be those of whoever was revoked."""
        if any(isinstance(one.subject, Revoked) and one.subject.name == name for one in self.keyring.trust.revocations()):
            return
        self.refused_by = name
        now = self._dispatch.now()
        if now >= self._switched_at + SWITCH_PAUSE and self.keyring.show_before(self._dispatch.wall()):
            self._switched_at = now
            self._use_identity()
            self._renewer.soon()

    def _drop_connection(self, name: str) -> None:
        self._told.pop(name, None)
        connection = self._connections.pop(name, None)
        if connection is not None:
            connection.close()

    @property
    def _keeps_register(self) -> bool:
        return ROLE_ISSUER in self.keyring.identity.roles

    def _note_self(self) -> None:
        if self._keeps_register:
            powers = [power.issuer for power in self.keyring.powers]
            if self.keyring.register.note(self.keyring.identity.certificate, self.keyring.ready(), powers):
                self._keeper.save()

    # Knowing the same

    def _sync(self, name: str) -> None:
        """Tell *name* what we know, and then what it lacks."""
        state = self._state_told()
        digest, chains = state
        message = wire.pack_sync(wire.Sync(digest, chains))

        def answered(status: int, reply: Buffer) -> None:
            if status < 0:
                return
            try:
                known = wire.parse_known(bytes(reply))
            except BadMessage:
                self.counters["malformed"] += 1
                return
            if known.digest == digest:
                self._told[name] = state
            if known.digest != self.keyring.trust.digest():
                self._tell(name, self.keyring.trust.unknown_to(known.ids))

        self._send(name, message, wire.REPLY_MAX, answered)

    def _state_told(self) -> tuple[bytes, tuple[bytes, ...]]:
        """What a SYNC says."""
        return self.keyring.trust.digest(), tuple(one.chain for one in self.keyring.certificates() if self.keyring.trust.accepts(one))

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
        before = self.keyring.identity
        fresh, refused = self.keyring.learn(statements)
        for why in refused:
            if isinstance(why, Crowded):
                self.counters["statements_crowded"] += 1
                log.debug("a statement of node %s has no place", source or "this one")
                continue
            self.counters["statements_refused"] += 1
            log.warning("a statement of node %s is not believed: %s", source or "this one", why)
        if not fresh:
            return []
        for statement in fresh:
            log.warning("%s", told(statement))
        self._note_self()
        self._keeper.save()
        for name in list(self._connections):
            if name != source:
                self._tell(name, fresh)
        self._end_revoked()
        if self.keyring.identity != before:
            self._use_identity()
        self._renewer.soon()
        return fresh

    def _end_revoked(self) -> None:
        if self._links is None:
            return
        for name, certificate in list(self._links.members_up().items()):
            statement = self.keyring.trust.revoked(certificate)
            if statement is not None:
                self._links.end_link(name, f"revoked by {statement.by}")
        own = self.keyring.trust.revoked(self.keyring.identity.certificate)
        if own is not None:
            log.error("%s", ended(own, self.keyring.identity.certificate))

    def _use_identity(self) -> None:
        if self._links is not None:
            self._links.set_identity(self.keyring.identity)
        self._keeper.save()

    # Answers

    def _handle(self, message: Message) -> None:
        """The channel's handler: daemons of other nodes, and nobody else."""
        if message.info.nd == ND_LOCAL or not message.info.credentials.of_daemon or self._links is None:
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
                    self._answer_tell(message, node, wire.parse_tell(data))
                case wire.Op.RENEW:
                    self._answer_renew(message, node, shown, wire.parse_renew(data))
                case wire.Op.LEAVE:
                    wire.parse_leave(data)
                    self._answer_leave(message, node, shown)
                case _:
                    message.error(errno.ENOSYS)
        except BadMessage:
            self.counters["malformed"] += 1
            if not message.answered:
                message.error(errno.EINVAL)

    def _may_sync(self, node: str) -> bool:
        now = self._dispatch.now()
        if len(self._syncs) >= PATIENCE_NODES:
            self._syncs = {name: bucket for name, bucket in self._syncs.items() if not bucket.full(now)}
        return self._syncs.setdefault(node, TokenBucket(1 / SYNC_EVERY, SYNC_BURST)).take(now)

    def _answer_sync(self, message: Message, node: str, shown: Certificate, sync: wire.Sync) -> None:
        if not self._may_sync(node):
            self.counters["syncs_too_often"] += 1
            message.error(errno.EAGAIN)
            return
        certificates = [parse_chain(chain) for chain in sync.chains] if self._keeps_register else []
        trust = self.keyring.trust
        digest = trust.digest()
        message.reply(0, wire.pack_known(wire.Known(digest, () if sync.digest == digest else tuple(trust.ids()))))
        if self._keeps_register and self._note(shown, certificates):
            self._keeper.save()
            self._renewer.look_at(self._dispatch.now() + RETIRE_CHECK)

    def _note(self, shown: Certificate, certificates: Iterable[Certificate]) -> bool:
        """The node that has shown the one certificate says that it has these. Whether anything is new. Those that are not its own, or do
        not count, are nothing."""
        fresh = self.keyring.register.note(shown)
        for certificate in certificates:
            if (certificate.name, certificate.static_key) == (shown.name, shown.static_key) and self.keyring.good(certificate):
                fresh |= self.keyring.register.note(certificate)
        return fresh

    def _answer_tell(self, message: Message, node: str, statements: list[bytes]) -> None:
        since, count = self._patience.get(node, (-math.inf, 0))
        now = self._dispatch.now()
        if now >= since + PATIENCE_SECONDS:
            since, count = now, 0
        if count >= PATIENCE:
            self.counters["tells_ignored"] += 1
            message.error(errno.EAGAIN)
            return
        message.reply(0)
        before = self.counters["statements_refused"]
        self.believe(statements[:PATIENCE] if count else statements, node)
        refused = self.counters["statements_refused"] - before
        if refused:
            if len(self._patience) >= PATIENCE_NODES:
                del self._patience[next(iter(self._patience))]
            self._patience[node] = since, count + refused

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
        self._keeper.save()

    def _answer_leave(self, message: Message, node: str, shown: Certificate) -> None:
        try:
            statements = self.office.revoke(node, shown, self._dispatch.wall())
        except OfficeError as error:
            message.error(error.errno)
            return
        message.reply(0)
        log.info("node %s leaves the cluster", node)
        self.keyring.register.forget(node)
        # Its answer first: believing ends the link.
        self._dispatch.call_soon(lambda: self._believe_later(statements))

    def _believe_later(self, statements: list[Statement]) -> None:
        self._dispatch.call_at(self._dispatch.now() + 0.1, lambda: None if self._closed else self._believed(statements))

    def _believed(self, statements: list[Statement]) -> None:
        self.believe([statement.data for statement in statements])

    # Renewal, two roots

    def _issuers_up(self) -> list[str]:
        """Nodes that may issue and can be asked."""
        up = {} if self._links is None else self._links.members_up()
        return [name for name, one in up.items() if ROLE_ISSUER in one.roles and name in self._connections]

    def _renewal(self) -> None:
        """We have a new certificate."""
        self._note_self()
        self._use_identity()
        for name in list(self._connections):
            self._sync(name)

    def _looked(self, wall: float) -> float:
        """Beside renewal, at each look; returns the longest pause until the next."""
        self._retire_when_ready(wall)
        if self.keyring.identity.certificate.not_after <= wall and (self.keyring.show_other(wall) or self.keyring.show_before(wall)):
            self._use_identity()
        state = self._state_told()
        for name in self._issuers_up():
            if self._told.get(name) != state:
                self._sync(name)
        return RETIRE_CHECK if len(self.keyring.trust.roots) > 1 else math.inf

    def _retire_when_ready(self, wall: float) -> None:
        """The machine with the root key retires the older root when every node has a certificate under the newer."""
        keyring = self.keyring
        if len(keyring.trust.roots) < 2 or not self._keeps_register or keyring.under(keyring.newest_root_id) is None:
            return
        if keyring.register.lacking(keyring.newest_root_id, keyring.trust, wall):
            return
        try:
            statements = self.office.retire(wall)
        except OfficeError:
            return
        self.believe([statement.data for statement in statements])

    # What people ask for

    def revoke(self, name: str) -> Statement:
        """End a node, and every issuing power that it has. The first of the statements by which that is done. OfficeError."""
        assert self._links is not None
        up = self._links.members_up()
        for certificate in up.values():
            # A link may show a later one than when it came up, and what was seen of an issuer's stays.
            self.keyring.register.note(certificate)
        statements = self.office.revoke(name, up.get(name), self._dispatch.wall())
        said = self.office.said_by(name)
        self._state(statements)
        again = sorted(said - self.office.revoked_names())
        if again:
            log.warning("what node %s said counts no more; revoke these again if that was right: %s", name, ", ".join(again))
        return statements[0]

    def rotate(self) -> Statement:
        """Begin to use another root. OfficeError. Blocks on the disk: first it is stored that it is trusted, then its key takes its
        place."""
        statement, authority = self.office.rotate(self._dispatch.wall())
        self._state([statement])
        self._store.save(self.keyring.kept())
        self._store.replace_authority(authority)
        self._renewer.look_at(self._dispatch.now())
        return statement

    def retire(self) -> Statement:
        """End the overlap of two roots now. OfficeError."""
        statements = self.office.retire(self._dispatch.wall())
        self._state(statements)
        return statements[-1]

    def _state(self, statements: list[Statement]) -> None:
        """Statements of this node's own. OfficeError when one of them is not believed, even here."""
        self.believe([statement.data for statement in statements])
        if not all(map(self.keyring.trust.knows, statements)):
            raise OfficeError(errno.ENOSPC, "the statement was not accepted here and nobody was told; the log says why")

    def leave(self, done: Callable[[str], None]) -> None:
        """Ask nodes that may issue to revoke this one, until one does: *done* with its name, or "" when none did."""
        assert self._links is not None
        able = self._issuers_up()

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
        keyring = self.keyring
        return (
            name == keyring.name or name in self._links.members_up() or keyring.register.taken(name, keyring.trust, self._dispatch.wall())
        )

    def holder(self, static_key: bytes) -> str:
        """The node that has that public key: this one, one that is up, or one whose certificate may be in use; empty: none of them."""
        assert self._links is not None
        own, wall = self.keyring.identity.certificate, self._dispatch.wall()
        met = {one.static_key: one.name for one in (own, *self._links.members_up().values())}
        if static_key in met:
            return met[static_key]
        return next((one.name for one in self.keyring.register if one.static_key == static_key and one.not_after >= wall), "")

    def save(self) -> None:
        """Something was changed from outside, such as the register."""
        self._keeper.save()
