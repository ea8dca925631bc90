"""What members that lie cannot do: users of a node that play its daemon, thieves of an issuer, floods."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qnetpy.channels import CHID_MEMBERS
from qnetpy.identity.authority import NODE_VALIDITY, IssuingPower, certify_issuer, issue_certificate, make_authority
from qnetpy.identity.trust import ISSUER_STATEMENTS_MAX, KEPT_MAX, Kind, Revoked, make_statement, serial_id
from qnetpy.members import wire
from qnetpy.members.lifetime import Want
from qnetpy.members.membership import SYNC_BURST
from qnetpy.members.office import OfficeError
from qnetpy.members.possession import issuing_key, prove
from qnetpy.members.renewer import Peers
from qnetpy.testing.members import MemoryStore, enrolled
from qnetpy.testing.membership import Cluster
from resmgr.channel import PID_SYSTEM, Credentials
from resmgr.dispatch import Buffer
from resmgr.ids import CHIDS_DAEMONS


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
        assert not cluster.member(name).keyring.trust.accepts(ghost)
        assert cluster.member(name).believe([lie.data], "issuer") == []


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
    assert cluster.member("root").keyring.trust.statements == []
    assert CHID_MEMBERS in CHIDS_DAEMONS


def test_syncs_neither_fill_the_register_nor_put_off_what_is_due() -> None:
    cluster = Cluster(26, "a", "b", validity=300.0)
    root, a = cluster.member("root"), cluster.world.nodes["a"]
    connection = a.system.kernel.connect(a.nd("root"), PID_SYSTEM, CHID_MEMBERS, Credentials(0, 0))
    statuses: list[int] = []

    wall = cluster.world.dispatch.wall()
    elsewhere = make_authority("sim", wall, random=cluster.random.randbytes)
    (power,) = cluster.stores["root"].kept.powers
    others = [
        cluster.shown("b").chain,
        issue_certificate(elsewhere, "a", cluster.shown("a").static_key, ["issuer"], wall).chain,
        issue_certificate(power, "a", cluster.shown("b").static_key, [], wall).chain,
        issue_certificate(power, "c", cluster.shown("a").static_key, [], wall).chain,
    ]

    def lie() -> None:
        connection.submit((wire.pack_sync(wire.Sync(bytes(32), tuple(others))),), 4096, lambda status, reply: statuses.append(status))

    for _ in range(60):
        lie()
    cluster.world.run(0.5)
    assert 0 < statuses.count(0) <= SYNC_BURST + 2
    assert statuses.count(-errno.EAGAIN) == root.counters["syncs_too_often"] >= 40
    before = cluster.shown("root")
    own = [cluster.shown("a")]
    for _ in range(280):
        lie()
        cluster.world.run(1.0)
        if cluster.shown("a") not in own:
            own.append(cluster.shown("a"))
    member = root.keyring.register.get("a")
    assert member is not None
    assert set(member.ready) == {cluster.world.authority.root.key_id}
    assert {one.serial for one in member.earlier} | {member.serial} <= {serial_id(one) for one in own}
    assert root.keyring.register.get("c") is None
    assert root.keyring.register.get("b").static_key == cluster.shown("b").static_key  # type: ignore[union-attr]
    before_junk = len(statuses)
    connection.submit((wire.pack_sync(wire.Sync(bytes(32), (b"junk",))),), 4096, lambda status, reply: statuses.append(status))
    cluster.world.run(1.0)
    assert statuses[before_junk:] == [-errno.EINVAL]
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
    member = root.keyring.register.get("issuer")
    assert member is not None
    assert member.issuer_ids(root.keyring.trust) == [thief.power.issuer.key_id]
    root.revoke("issuer")
    assert root.office.may_issue
    assert root.keyring.trust.revoked_issuer(thief.power.issuer) is not None


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
            assert not cluster.member(name).keyring.trust.accepts(ghost)
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
        root.keyring.learn([statement.data])
        if root.keyring.trust.room(thief.power.issuer, 0) is False:
            break
    assert not root.keyring.trust.accepts(cluster.shown("a"))
    root.revoke("issuer")
    for name in ("a", *names):
        assert root.keyring.trust.accepts(cluster.shown(name)), name
    assert [one.issuer for one in root.keyring.trust.revocations()] == [None]
    assert "revoke these again" in caplog.text


def test_a_revocation_that_has_no_place_is_no_success() -> None:
    cluster = Cluster(29, "a", "b")
    for name in ("issuer", "root"):
        member = cluster.member(name)
        (power,) = cluster.stores[name].kept.powers
        lies = [
            make_statement(power, Kind.REVOKE, Revoked("x", number.to_bytes(32, "big")), 0.0) for number in range(ISSUER_STATEMENTS_MAX)
        ]
        member.keyring.learn([lie.data for lie in lies])
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
    a._renewer._renew(Want(before.root_id, issuing=False), before, cluster.world.dispatch.wall())
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
    assert cluster.member("root").keyring.trust.accepts(cluster.shown("b"))
    cluster.world.run(60.0)
    tell([statement])
    cluster.world.run(1.0)
    assert not cluster.member("root").keyring.trust.accepts(cluster.shown("b")), "what is true is believed, whoever tells it"
