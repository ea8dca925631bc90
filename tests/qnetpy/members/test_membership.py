"""Whole nodes in virtual time: revocation, renewal, change of roots, leaving; over bad cables, with nodes off, and with wrong clocks."""

from __future__ import annotations

import errno
import math
import random
from collections.abc import Callable

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qnetpy.channels import CHID_MEMBERS
from qnetpy.identity.authority import NODE_VALIDITY, IssuingPower, certify_issuer, issue_certificate, make_authority
from qnetpy.identity.certificate import Certificate, parse_chain, verify
from qnetpy.identity.trust import ISSUER_STATEMENTS_MAX, KEPT_MAX, Kind, Revoked, make_statement
from qnetpy.link.session import RekeyPolicy
from qnetpy.members import wire
from qnetpy.members.commands import Issuing
from qnetpy.members.membership import SYNC_BURST, Membership
from qnetpy.members.office import OfficeError
from qnetpy.members.possession import issuing_key, prove
from qnetpy.members.renewal import Want
from qnetpy.members.renewer import Peers
from qnetpy.parameters import QnetSettings
from qnetpy.testing.members import MemoryStore, enrolled
from qnetpy.testing.world import SimNode, World
from resmgr.channel import PID_SYSTEM, Credentials
from resmgr.dispatch import Buffer
from resmgr.ids import CHIDS_DAEMONS

FAST_REKEY = QnetSettings(rekey=RekeyPolicy(after=10.0))


class Cluster:
    """A world with members: `root` has the root key and issues, `issuer` issues, the others were enrolled by `root`'s issuing power."""

    def __init__(
        self, seed: int = 1, *names: str, fault: str = "", validity: float = NODE_VALIDITY, settings: QnetSettings | None = None
    ) -> None:
        self.world = World(seed, fault=fault, settings=settings)
        self.random = random.Random(seed)
        wall = self.world.dispatch.wall()
        authority = self.world.authority
        self.stores: dict[str, MemoryStore] = {}
        for name in ("root", "issuer"):
            self.stores[name] = enrolled(authority, name, wall, self.random.randbytes, roles=["issuer"], validity=validity)
        self.stores["root"].root_key = authority
        (by,) = self.stores["root"].kept.powers
        for name in names:
            self.stores[name] = enrolled(authority, name, wall, self.random.randbytes, by=by, validity=validity)
        self.world.join(*self.stores)
        for name in self.stores:
            self.start(name)
        assert self.world.until(self.world.settled)
        self.world.run(1.0)

    def start(self, name: str, skew: float = 0.0) -> SimNode:
        return self.world.start(name, store=self.stores[name], skew=skew)

    def member(self, name: str) -> Membership:
        membership = self.world.nodes[name].membership
        assert membership is not None
        return membership

    def shown(self, name: str) -> Certificate:
        return self.member(name).standing.identity.certificate

    def links(self) -> set[tuple[str, str]]:
        return {(node.name, name) for node in self.world.live for name in node.qnet.machine.links}

    def until(self, goal: Callable[[], bool], limit: float = 30.0) -> float:
        """Seconds until *goal* came true."""
        begin = self.world.now
        assert self.world.until(goal, limit), "did not come true"
        return self.world.now - begin


def test_a_revocation_reaches_all_in_no_time_and_ends_every_session() -> None:
    cluster = Cluster(1, "a", "b", "c")
    cluster.member("issuer").revoke("c")

    others = {"root", "issuer", "a", "b"}
    took = cluster.until(lambda: not any("c" in pair for pair in cluster.links()))
    assert took < 2.0
    cluster.world.run(60.0)
    assert cluster.links() == {(one, two) for one in others for two in others if one != two}
    assert all(cluster.world.nodes[name].qnet.machine.handshake_counters["refused"] > 0 for name in others)
    assert cluster.member("c").refused_by in others


def test_a_revocation_survives_restarts_and_reaches_who_was_off() -> None:
    cluster = Cluster(2, "a", "b", "c")
    cluster.world.nodes["b"].crash()
    cluster.world.run(5.0)
    cluster.member("root").revoke("c")
    cluster.world.run(2.0)
    for name in ("root", "issuer", "a", "c"):
        cluster.world.nodes[name].crash()
    # Nobody who knows of it is there when b and c are switched on.
    cluster.start("b")
    cluster.start("c")
    cluster.until(lambda: ("b", "c") in cluster.links())
    cluster.start("a")
    took = cluster.until(lambda: ("b", "a") in cluster.links() and ("b", "c") not in cluster.links())
    assert took < 10.0
    assert not cluster.member("b").standing.trust.accepts(cluster.shown("c"))
    assert cluster.stores["b"].kept.statements == cluster.stores["a"].kept.statements


@pytest.mark.parametrize("seed", range(4))
def test_it_spreads_over_bad_cables_and_past_broken_ones(seed: int) -> None:
    cluster = Cluster(seed, "a", "b", "c", fault="drop=20%,dup=10%,reorder=20%")
    cluster.member("issuer").revoke("c")
    cluster.until(lambda: all(not cluster.member(name).standing.trust.accepts(cluster.shown("c")) for name in ("root", "a", "b")), 10.0)
    cluster.until(lambda: not any("c" in pair for pair in cluster.links()), 10.0)


def test_two_issuers_at_the_same_moment() -> None:
    cluster = Cluster(3, "a", "b", "c", "d")
    cluster.member("issuer").revoke("c")
    cluster.member("root").revoke("d")
    cluster.until(lambda: len({cluster.member(name).standing.trust.digest() for name in ("root", "issuer", "a", "b")}) == 1, 2.0)
    cluster.until(lambda: {pair[0] for pair in cluster.links()} == {"root", "issuer", "a", "b"}, 2.0)


def test_clocks_play_no_part_in_it() -> None:
    cluster = Cluster(4, "a", "b", "c")
    for name, skew in (("a", 86400.0), ("b", 20 * 86400.0)):
        cluster.world.nodes[name].stop()
        cluster.start(name, skew)
    cluster.until(cluster.world.settled)
    cluster.member("issuer").revoke("c")
    cluster.until(lambda: not any("c" in pair for pair in cluster.links()), 2.0)


def test_who_may_revoke_whom() -> None:
    cluster = Cluster(5, "a")
    with pytest.raises(OfficeError, match="takes the root key"):
        cluster.member("issuer").revoke("root")
    with pytest.raises(OfficeError, match="takes the root key"):
        cluster.member("a").revoke("issuer")
    with pytest.raises(OfficeError, match="takes the root key"):
        cluster.member("a").revoke("root")
    with pytest.raises(OfficeError, match="never met"):
        cluster.member("issuer").revoke("ghost")
    with pytest.raises(OfficeError, match="qnet leave"):
        cluster.member("issuer").revoke("issuer")


def test_a_node_that_is_off_can_be_revoked() -> None:
    cluster = Cluster(6, "a", "b")
    cluster.world.nodes["b"].crash()
    cluster.world.nodes["root"].stop()
    cluster.start("root")
    cluster.world.run(10.0)
    cluster.member("root").revoke("b")
    cluster.start("b")
    cluster.world.run(20.0)
    assert not any("b" in pair for pair in cluster.links())
    assert not cluster.member("root").taken("b"), "the name is free again"
    assert cluster.member("root").taken("a")


def test_a_stolen_issuer_is_revoked_and_those_whom_it_enrolled_stay() -> None:
    cluster = Cluster(7, "a")
    (stolen,) = cluster.stores["issuer"].kept.powers
    wall = cluster.world.dispatch.wall()
    cluster.stores["guest"] = enrolled(cluster.world.authority, "guest", wall, cluster.random.randbytes, by=stolen)
    cluster.start("guest")
    cluster.until(cluster.world.settled)
    cluster.member("root").revoke("issuer")
    cluster.until(lambda: not any("issuer" in pair for pair in cluster.links()), 2.0)
    cluster.world.run(150.0)
    assert ("a", "guest") in cluster.links(), "beyond the next rekey"
    ghost = issue_certificate(stolen, "ghost", cluster.shown("a").static_key, [], wall)
    lie = make_statement(stolen, Kind.REVOKE, Revoked("a", cluster.shown("a").static_key), wall)
    for name in ("root", "a", "guest"):
        assert not cluster.member(name).standing.trust.accepts(ghost)
        assert cluster.member(name).believe([lie.data], "issuer") == []


def test_certificates_renew_themselves_without_an_interruption() -> None:
    cluster = Cluster(8, "a", "b", validity=300.0, settings=FAST_REKEY)
    before = {name: cluster.shown(name).not_after for name in cluster.stores}
    starts = {(node.name, other.name): other.starts for node in cluster.world.live for other in node.qnet.nodes}
    cluster.world.run(1000.0)

    for name, ended in before.items():
        assert ended < cluster.world.dispatch.wall() < cluster.shown(name).not_after
        assert cluster.shown(name).not_after - cluster.shown(name).not_before == pytest.approx(600.0, abs=2.0), "as long as before"
        assert cluster.stores[name].kept.identity.certificate == cluster.shown(name)
    assert starts == {(node.name, other.name): other.starts for node in cluster.world.live for other in node.qnet.nodes}
    assert cluster.shown("a").roles == frozenset()


def test_a_life_shorter_than_the_time_between_handshakes() -> None:
    """The link goes on showing the first certificate; what counts for a renewal is the latest."""
    cluster = Cluster(18, "a", validity=20.0)
    cluster.world.run(100.0)
    assert cluster.shown("a").not_after > cluster.world.dispatch.wall()
    assert cluster.member("a").counters["renewals_failed"] == 0


def test_an_issuer_that_is_off_is_waited_for_and_any_will_do() -> None:
    cluster = Cluster(9, "a", validity=300.0)
    cluster.world.nodes["root"].crash()
    cluster.world.nodes["issuer"].crash()
    cluster.world.run(220.0)
    old = cluster.shown("a")
    cluster.start("issuer")
    cluster.until(lambda: cluster.shown("a") != old, 60.0)
    by = cluster.shown("a").issuer
    assert by is not None
    assert by.node == "issuer"


def test_an_expired_node_is_let_in_nowhere_and_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster(10, "a", validity=300.0)
    cluster.world.nodes["a"].crash()
    cluster.world.run(400.0)
    cluster.start("a")
    cluster.world.run(30.0)
    assert not any("a" in pair for pair in cluster.links())
    assert "qnet join CODE --replace" in caplog.text


def test_only_issuers_issue_and_not_in_a_loop() -> None:
    cluster = Cluster(11, "a", "b")

    def ask(frm: str, to: str, message: bytes) -> int:
        node = cluster.world.nodes[frm]
        statuses: list[int] = []

        def done(status: int, reply: Buffer) -> None:
            statuses.append(status)

        node.system.kernel.connect(node.nd(to), PID_SYSTEM, CHID_MEMBERS, Credentials(0, 0)).submit((message,), 4096, done)
        cluster.until(lambda: bool(statuses), 5.0)
        return statuses[0]

    root_id = cluster.world.authority.root.key_id
    chain = cluster.shown("a").chain
    renew = wire.pack_renew(wire.Renew(root_id, chain))
    assert ask("a", "b", renew) == -errno.EPERM
    assert ask("a", "issuer", renew) == 0
    assert ask("a", "issuer", renew) == -errno.EAGAIN
    cluster.world.run(2.0)
    assert ask("a", "root", wire.pack_renew(wire.Renew(root_id, chain, b"k" * 32))) == -errno.EACCES, (
        "no issuing power for who is no issuer"
    )
    assert ask("a", "issuer", wire.pack_renew(wire.Renew(bytes(20), chain))) == -errno.EPERM, "a root that nobody has"
    cluster.world.run(2.0)
    assert ask("a", "issuer", wire.pack_renew(wire.Renew(root_id, cluster.shown("b").chain))) == -errno.EACCES, "of another node"
    cluster.world.run(2.0)
    assert ask("a", "issuer", wire.pack_renew(wire.Renew(root_id, b"junk"))) == -errno.EINVAL
    for nonsense in (b"", b"\x09", b"\x01", b"\x03abc"):
        assert ask("a", "root", nonsense) in (-errno.EINVAL, -errno.ENOSYS)
    forged = attrs.evolve(
        make_statement(cluster.stores["root"].kept.powers[0], Kind.REVOKE, Revoked("b", cluster.shown("b").static_key), 0.0)
    )
    broken = forged.data[:-1] + bytes((forged.data[-1] ^ 1,))
    assert ask("a", "root", wire.pack_tells([broken])[0]) == 0
    assert cluster.member("root").counters["statements_refused"] == 1
    assert cluster.member("root").standing.trust.accepts(cluster.shown("b"))


def test_a_user_of_a_node_is_not_its_daemon() -> None:
    cluster = Cluster(22, "a")
    a, (power,) = cluster.world.nodes["issuer"], cluster.stores["root"].kept.powers
    chain, own = cluster.shown("issuer").chain, Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
    lie = make_statement(power, Kind.REVOKE, Revoked("a", cluster.shown("a").static_key), 0.0)
    statuses: list[int] = []
    messages = (wire.pack_leave(), wire.pack_renew(wire.Renew(cluster.shown("a").root_id, chain, own)), *wire.pack_tells([lie.data]))
    for who in (Credentials(1000, 1000, (), 77), Credentials(0, 0, (), 77), Credentials(1000, 1000)):
        for message in messages:
            connection = a.system.kernel.connect(a.nd("root"), PID_SYSTEM, CHID_MEMBERS, who)
            connection.submit((message,), 4096, lambda status, reply: statuses.append(status))
            cluster.world.run(1.0)
    assert statuses == [-errno.EPERM] * 9
    assert cluster.member("root").standing.trust.statements == []
    assert CHID_MEMBERS in CHIDS_DAEMONS


def test_syncs_neither_fill_the_register_nor_put_off_what_is_due() -> None:
    cluster = Cluster(26, "a", "b", validity=300.0)
    root, a = cluster.member("root"), cluster.world.nodes["a"]
    connection = a.system.kernel.connect(a.nd("root"), PID_SYSTEM, CHID_MEMBERS, Credentials(0, 0))
    statuses: list[int] = []

    def lie() -> None:
        ids = tuple(cluster.random.randbytes(20) for _ in range(8))
        connection.submit((wire.pack_sync(wire.Sync(bytes(32), ids)),), 4096, lambda status, reply: statuses.append(status))

    for _ in range(60):
        lie()
    cluster.world.run(0.5)
    assert 0 < statuses.count(0) <= SYNC_BURST + 2
    assert statuses.count(-errno.EAGAIN) == root.counters["syncs_too_often"] >= 40
    before = cluster.shown("root")
    for _ in range(280):
        lie()
        cluster.world.run(1.0)
    member = root.standing.register.get("a")
    assert member is not None
    assert member.ready == {cluster.world.authority.root.key_id}
    assert cluster.shown("root").not_after > before.not_after, "renewed all the same"


@pytest.mark.parametrize("news", [0.5, 1.5])
def test_a_look_that_is_due_is_not_put_off(news: float) -> None:
    """By what others say, such as that they have a certificate under another root."""
    cluster = Cluster(27, "a")
    renewer, looks = cluster.member("root")._renewer, list[float]()

    def looked(wall: float) -> float:
        looks.append(cluster.world.now)
        return math.inf

    renewer._looked = looked
    due = cluster.world.now + 1.0
    renewer.look_at(due)
    for _ in range(4):
        renewer.look_at(cluster.world.now + news)
        cluster.world.run(0.3)
    assert looks[0] == pytest.approx(min(due, due - 1.0 + news), abs=0.01)


class Thief:
    """Who has the files of the issuer node of a cluster, and asks the machine with the root key for more."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.node = cluster.world.nodes["issuer"]
        self.own = cluster.shown("issuer")
        (self.power,) = cluster.stores["issuer"].kept.powers

    def ask(self, private: bytes, proof: bytes | None = None, public: bytes = b"") -> int:
        """The status of a RENEW with another key to issue with."""
        statuses: list[int] = []
        root_id = self.own.root_id
        key = public or Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        shown = prove(private, self.own, root_id) if proof is None else proof
        message = wire.pack_renew(wire.Renew(root_id, self.own.chain, key, shown))
        connection = self.node.system.kernel.connect(self.node.nd("root"), PID_SYSTEM, CHID_MEMBERS, Credentials(0, 0))
        connection.submit((message,), 4096, lambda status, reply: statuses.append(status))
        self.cluster.world.run(2.0)
        return statuses[0]


def test_an_issuer_gets_no_second_issuing_key_and_none_of_others() -> None:
    cluster = Cluster(23, "a")
    thief = Thief(cluster)
    root = cluster.member("root")
    assert thief.ask(thief.power.private) == 0, "its own, which the root's machine certified and remembers"
    for number in range(1, 4):
        assert thief.ask(bytes((number,)) * 32) == -errno.EACCES, "another beside the one that counts"
    (victim,) = cluster.stores["root"].kept.powers
    for private, public in ((bytes(32), victim.issuer.key), (victim.private, b""), (cluster.world.authority.root_private, b"")):
        assert thief.ask(private, public=public) == -errno.EACCES, "not proven, or another's"
    assert thief.ask(thief.power.private, bytes(64)) == -errno.EACCES
    member = root.standing.register.get("issuer")
    assert member is not None
    assert member.issuer_ids(root.standing.trust) == [thief.power.issuer.key_id]
    root.revoke("issuer")
    assert root.office.may_issue
    assert root.standing.trust.revoked_issuer(thief.power.issuer) is not None


def test_a_revocation_ends_every_issuing_power_that_was_seen() -> None:
    """Also those of before this node had its key, and of before the machine had its name."""
    cluster = Cluster(24, "a")
    root, wall = cluster.member("root"), cluster.world.dispatch.wall()
    more = [
        IssuingPower(
            certify_issuer(
                cluster.world.authority, "issuer", Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw(), wall
            ),
            private,
        )
        for private in (b"1" * 32, b"2" * 32)
    ]
    for number, power in enumerate(more):
        cluster.stores[f"guest{number}"] = enrolled(cluster.world.authority, f"guest{number}", wall, cluster.random.randbytes, by=power)
        cluster.start(f"guest{number}")
    cluster.until(cluster.world.settled)
    root.revoke("issuer")
    cluster.until(lambda: not any("issuer" in pair for pair in cluster.links()), 2.0)
    cluster.world.run(5.0)
    for power in more:
        ghost = issue_certificate(power, "ghost", cluster.shown("a").static_key, [], wall)
        for name in ("root", "a", "guest0"):
            assert not cluster.member(name).standing.trust.accepts(ghost)
    assert ("a", "guest1") in cluster.links()


def test_the_lies_of_a_stolen_issuer_go_with_it_and_its_honest_nodes_stay(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster(28, "a")
    thief, wall = Thief(cluster), cluster.world.dispatch.wall()
    names = ["guest0", "guest1"]
    for name in names:
        cluster.stores[name] = enrolled(cluster.world.authority, name, wall, cluster.random.randbytes, by=thief.power)
        cluster.start(name)
    cluster.until(cluster.world.settled)
    cluster.world.run(3.0)
    root = cluster.member("root")
    victims = [(f"x{number}", number.to_bytes(32, "big")) for number in range(1, KEPT_MAX + 1)]
    for name, key in [(name, cluster.shown(name).static_key) for name in ("a", "guest0")] + victims:
        statement = make_statement(thief.power, Kind.REVOKE, Revoked(name, key), wall)
        root.standing.learn([statement.data])
        if root.standing.trust.room(thief.power.issuer, 0) is False:
            break
    assert not root.standing.trust.accepts(cluster.shown("a"))
    root.revoke("issuer")
    for name in ("a", *names):
        assert root.standing.trust.accepts(cluster.shown(name)), name
    assert [one.issuer for one in root.standing.trust.revocations()] == [None]
    assert "revoke these again" in caplog.text


def test_a_revocation_that_has_no_place_is_no_success() -> None:
    cluster = Cluster(29, "a", "b")
    for name in ("issuer", "root"):
        member = cluster.member(name)
        (power,) = cluster.stores[name].kept.powers
        lies = [
            make_statement(power, Kind.REVOKE, Revoked("x", number.to_bytes(32, "big")), 0.0) for number in range(ISSUER_STATEMENTS_MAX)
        ]
        member.standing.learn([lie.data for lie in lies])
    with pytest.raises(OfficeError, match="no room"):
        cluster.member("issuer").revoke("a")
    assert cluster.member("root").revoke("a").issuer is None, "the root speaks in its place"
    cluster.until(lambda: not any("a" in pair for pair in cluster.links()), 2.0)
    told: list[str] = []
    cluster.world.nodes["root"].crash()
    cluster.until(lambda: ("b", "root") not in cluster.links(), 30.0)
    cluster.member("b").leave(told.append)
    cluster.until(lambda: bool(told), 5.0)
    assert told == [""], "nobody says that it did"


def lying(cluster: Cluster, how: str) -> Callable[..., wire.Renewed]:
    """What the node `root` answers to RENEW when it lies in this way."""
    authority, wall = cluster.world.authority, cluster.world.dispatch.wall
    (power,) = cluster.stores["root"].kept.powers

    def renew(name: str, static_key: bytes, wanted: wire.Renew, now: float) -> wire.Renewed:
        roles = ["user"] if how == "roles" else []
        length = NODE_VALIDITY - 600.0 if how == "life" else NODE_VALIDITY
        key = cluster.shown("b").static_key if how == "key" else static_key
        signer = make_authority("sim", wall()) if how == "root" else power
        chain = issue_certificate(signer, name, key, roles, wall(), 300.0 if how == "end" else length).chain
        if how == "issuer":
            return wire.Renewed(chain, certify_issuer(authority, name, power.issuer.key, wall()).der)
        return wire.Renewed(b"junk" if how == "junk" else chain)

    return renew


@pytest.mark.parametrize("how", ["roles", "life", "end", "key", "root", "issuer", "junk"])
def test_after_an_issuer_that_lies_the_next_is_asked(how: str) -> None:
    cluster = Cluster(30, "a", "b")
    root, a = cluster.member("root"), cluster.member("a")
    root.office.renew = lying(cluster, how)  # type: ignore[method-assign]  # a stolen issuer
    asked: list[str] = []
    order = a._renewer._peers

    def send(name: str, message: bytes, reply_len: int, done: Callable[[int, Buffer], None]) -> None:
        asked.append(name)
        order.send(name, message, reply_len, done)

    a._renewer._peers = Peers(lambda: sorted(order.issuers(), reverse=True), send)
    a._renewer._chance = lambda: 0.0  # type: ignore[method-assign]  # `root` is asked first
    before = cluster.shown("a")
    cluster.world.run(3.0)
    a._renewer._renew(Want(before.root_id, issuing=False), cluster.world.dispatch.wall())
    cluster.world.run(3.0)
    assert asked == ["root", "issuer"]
    after = cluster.shown("a")
    assert after.issuer is not None
    assert after.issuer.node == "issuer"
    assert (after.roles, after.static_key) == (before.roles, before.static_key)
    assert not a._renewer._asking
    assert a.counters["renewals_failed"] == 1


def test_an_issuer_whose_answer_was_lost_asks_with_the_same_key() -> None:
    cluster = Cluster(25)
    wall = cluster.world.dispatch.wall()
    bare = enrolled(cluster.world.authority, "second", wall, cluster.random.randbytes, roles=["issuer"])
    cluster.stores["second"] = MemoryStore(attrs.evolve(bare.kept, powers=()))
    root = cluster.member("root")
    own = bare.kept.identity.certificate
    private = issuing_key(bare.kept.identity.static_private)
    key = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    root.office.renew("second", own.static_key, wire.Renew(own.root_id, own.chain, key, prove(private, own, own.root_id)), wall)
    cluster.start("second")
    cluster.until(lambda: cluster.member("second").office.may_issue, 30.0)


def test_a_member_that_tells_nonsense_in_a_loop_is_not_heard_for_a_while() -> None:
    cluster = Cluster(19, "a", "b")
    a = cluster.world.nodes["a"]
    statement = make_statement(cluster.stores["root"].kept.powers[0], Kind.REVOKE, Revoked("b", cluster.shown("b").static_key), 0.0).data
    broken = [statement[:-1] + bytes((number,)) for number in range(256) if number != statement[-1]]
    statuses: list[int] = []
    connection = a.system.kernel.connect(a.nd("root"), PID_SYSTEM, CHID_MEMBERS, Credentials(0, 0))

    def tell(data: list[bytes]) -> None:
        connection.submit((wire.pack_tells(data)[0],), 0, lambda status, reply: statuses.append(status))

    for first in range(0, 200, 40):
        tell(broken[first : first + 40])
    cluster.until(lambda: len(statuses) == 5, 5.0)
    assert statuses == [0, 0, -errno.EAGAIN, -errno.EAGAIN, -errno.EAGAIN]
    tell([statement])
    cluster.world.run(1.0)
    assert cluster.member("root").standing.trust.accepts(cluster.shown("b"))
    cluster.world.run(60.0)
    tell([statement])
    cluster.world.run(1.0)
    assert not cluster.member("root").standing.trust.accepts(cluster.shown("b")), "what is true is believed, whoever tells it"


def test_a_node_that_gets_the_role_becomes_an_issuer_by_itself() -> None:
    cluster = Cluster(20, "a")
    bare = enrolled(cluster.world.authority, "second", cluster.world.dispatch.wall(), cluster.random.randbytes, roles=["issuer"])
    cluster.stores["second"] = MemoryStore(attrs.evolve(bare.kept, powers=()))
    second = cluster.start("second")
    cluster.until(lambda: cluster.member("second").office.may_issue, 30.0)
    cluster.world.nodes["root"].crash()
    cluster.world.nodes["issuer"].crash()
    member = cluster.member("second")
    grant = member.office.grant("new", bytes(range(1, 33)), frozenset(), 1000.0, cluster.world.dispatch.wall())
    assert member.standing.trust.accepts(parse_chain(grant.chain))
    verify(parse_chain(grant.chain), cluster.member("a").standing.trust.roots, second.view.wall(), "new")


def test_whose_key_it_is_is_known_of_nodes_that_are_up_and_of_those_in_the_register() -> None:
    cluster = Cluster(21, "a", "b")
    desk = Issuing(cluster.member("issuer"), cluster.world.nodes["issuer"].view)
    keys = {name: cluster.shown(name).static_key for name in ("issuer", "root", "a", "b")}
    cluster.world.nodes["b"].crash()
    cluster.world.run(30.0)
    assert {name: desk.holder(key) for name, key in keys.items()} == {name: name for name in keys}
    assert desk.holder(bytes(range(32))) == ""
    register = cluster.member("issuer").standing.register
    register.forget("a")
    register.forget("b")
    assert (desk.holder(keys["a"]), desk.holder(keys["b"])) == ("a", "")


def test_another_root_without_an_interruption() -> None:
    cluster = Cluster(12, "a", "b", settings=FAST_REKEY)
    starts = {(node.name, other.name): other.starts for node in cluster.world.live for other in node.qnet.nodes}
    old = cluster.world.authority.root.key_id
    cluster.member("root").rotate()

    def done() -> bool:
        return all(old not in {root.key_id for root in cluster.member(name).standing.trust.roots} for name in cluster.stores)

    took = cluster.until(done, 60.0)
    cluster.world.run(60.0)
    new = cluster.stores["root"].root_key
    assert new is not None
    for name in cluster.stores:
        assert cluster.shown(name).root_id == new.root.key_id
        assert cluster.member(name).standing.next is None
        assert cluster.stores[name].kept.identity.roots == (new.root,)
    assert starts == {(node.name, other.name): other.starts for node in cluster.world.live for other in node.qnet.nodes}
    assert cluster.world.settled()
    assert took < 60.0
    cluster.member("issuer").office.check(frozenset())
    for name in cluster.stores:
        cluster.world.nodes[name].stop()
    for name in cluster.stores:
        cluster.start(name)
    cluster.until(cluster.world.settled)


def test_a_root_waits_for_a_node_that_is_off() -> None:
    cluster = Cluster(13, "a", "b")
    cluster.world.nodes["b"].crash()
    cluster.world.run(5.0)
    cluster.member("root").rotate()
    cluster.world.run(60.0)
    assert len(cluster.member("root").standing.trust.roots) == 2
    newest = cluster.member("root").standing.newest_root_id
    wall = cluster.world.dispatch.wall()
    assert cluster.member("root").standing.register.lacking(newest, cluster.member("root").standing.trust, wall) == ["b"]
    assert cluster.shown("a").root_id != newest, "the older is shown, which b trusts"
    cluster.start("b")
    cluster.until(lambda: len(cluster.member("root").standing.trust.roots) == 1, 60.0)
    cluster.until(cluster.world.settled)


def test_a_node_with_both_certificates_comes_back_after_the_change() -> None:
    cluster = Cluster(14, "a", "b", "c")
    cluster.world.nodes["c"].crash()
    cluster.member("root").rotate()
    cluster.until(lambda: cluster.member("b").standing.next is not None, 60.0)
    cluster.world.run(5.0)
    cluster.world.nodes["b"].crash()
    assert len(cluster.member("a").standing.trust.roots) == 2, "c has no certificate yet"
    cluster.start("c")
    cluster.until(lambda: len(cluster.member("a").standing.trust.roots) == 1, 90.0)
    cluster.start("b")
    assert len(cluster.member("b").standing.trust.roots) == 2
    cluster.until(lambda: cluster.world.settled() and len(cluster.member("b").standing.trust.roots) == 1, 60.0)


def test_a_root_that_is_retired_by_hand_leaves_the_others_out() -> None:
    cluster = Cluster(15, "a", "b")
    cluster.world.nodes["b"].crash()
    cluster.world.run(5.0)
    with pytest.raises(OfficeError, match="only one root"):
        cluster.member("root").retire()
    cluster.member("root").rotate()
    with pytest.raises(OfficeError, match="overlap already"):
        cluster.member("root").rotate()
    with pytest.raises(OfficeError, match="not on this machine"):
        cluster.member("issuer").retire()
    cluster.world.run(30.0)
    cluster.member("root").retire()
    cluster.start("b")
    cluster.world.run(30.0)
    assert not any("b" in pair for pair in cluster.links())
    assert ("a", "issuer") in cluster.links()


def test_a_node_leaves() -> None:
    cluster = Cluster(16, "a", "b")
    told: list[str] = []
    cluster.member("b").leave(told.append)
    cluster.until(lambda: bool(told), 5.0)
    assert told[0] in ("root", "issuer")
    cluster.until(lambda: not any("b" in pair for pair in cluster.links()), 5.0)
    assert not cluster.member("a").standing.trust.accepts(cluster.shown("b"))
    alone = Cluster(17, "a")
    alone.world.nodes["root"].crash()
    alone.world.nodes["issuer"].crash()
    alone.world.run(5.0)
    alone.member("a").leave(told.append)
    assert told[-1] == ""
