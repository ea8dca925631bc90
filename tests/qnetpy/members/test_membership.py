"""Whole nodes in virtual time: revocation, renewal, change of roots, leaving; over bad cables, with nodes off, and with wrong clocks."""

from __future__ import annotations

import errno

import attrs
import pytest

from qnetpy.channels import CHID_MEMBERS
from qnetpy.identity.authority import NODE_VALIDITY, issue_certificate
from qnetpy.identity.certificate import parse_chain, verify
from qnetpy.identity.trust import Kind, Revoked, make_statement
from qnetpy.link.session import RekeyPolicy
from qnetpy.members import wire
from qnetpy.members.commands import Issuing
from qnetpy.members.office import OfficeError
from qnetpy.members.renewer import Peers
from qnetpy.parameters import QnetSettings
from qnetpy.testing.members import MemoryStore, enrolled
from qnetpy.testing.membership import Cluster
from resmgr.channel import PID_SYSTEM, Credentials
from resmgr.dispatch import Buffer

FAST_REKEY = QnetSettings(rekey=RekeyPolicy(after=10.0))


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
    assert not cluster.member("b").keyring.trust.accepts(cluster.shown("c"))
    assert cluster.stores["b"].kept.statements == cluster.stores["a"].kept.statements


@pytest.mark.parametrize("seed", range(4))
def test_it_spreads_over_bad_cables_and_past_broken_ones(seed: int) -> None:
    cluster = Cluster(seed, "a", "b", "c", fault="drop=20%,dup=10%,reorder=20%")
    cluster.member("issuer").revoke("c")
    cluster.until(lambda: all(not cluster.member(name).keyring.trust.accepts(cluster.shown("c")) for name in ("root", "a", "b")), 10.0)
    cluster.until(lambda: not any("c" in pair for pair in cluster.links()), 10.0)


def test_two_issuers_at_the_same_moment() -> None:
    cluster = Cluster(3, "a", "b", "c", "d")
    cluster.member("issuer").revoke("c")
    cluster.member("root").revoke("d")
    cluster.until(lambda: len({cluster.member(name).keyring.trust.digest() for name in ("root", "issuer", "a", "b")}) == 1, 2.0)
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
    assert cluster.member("root").keyring.trust.accepts(cluster.shown("b"))


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
    assert member.keyring.trust.accepts(parse_chain(grant.chain))
    verify(parse_chain(grant.chain), cluster.member("a").keyring.trust.roots, second.view.wall(), "new")


def test_whose_key_it_is_is_known_of_nodes_that_are_up_and_of_those_in_the_register() -> None:
    cluster = Cluster(21, "a", "b")
    desk = Issuing(cluster.member("issuer"), cluster.world.nodes["issuer"].view)
    keys = {name: cluster.shown(name).static_key for name in ("issuer", "root", "a", "b")}
    cluster.world.nodes["b"].crash()
    cluster.world.run(30.0)
    assert {name: desk.holder(key) for name, key in keys.items()} == {name: name for name in keys}
    assert desk.holder(bytes(range(32))) == ""
    register = cluster.member("issuer").keyring.register
    register.forget("a")
    register.forget("b")
    assert (desk.holder(keys["a"]), desk.holder(keys["b"])) == ("a", "")


def test_another_root_without_an_interruption() -> None:
    cluster = Cluster(12, "a", "b", settings=FAST_REKEY)
    starts = {(node.name, other.name): other.starts for node in cluster.world.live for other in node.qnet.nodes}
    old = cluster.world.authority.root.key_id
    cluster.member("root").rotate()

    def done() -> bool:
        return all(old not in {root.key_id for root in cluster.member(name).keyring.trust.roots} for name in cluster.stores)

    took = cluster.until(done, 60.0)
    cluster.world.run(60.0)
    new = cluster.stores["root"].root_key
    assert new is not None
    for name in cluster.stores:
        assert cluster.shown(name).root_id == new.root.key_id
        assert cluster.member(name).keyring.next is None
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
    assert len(cluster.member("root").keyring.trust.roots) == 2
    newest = cluster.member("root").keyring.newest_root_id
    wall = cluster.world.dispatch.wall()
    assert cluster.member("root").keyring.register.lacking(newest, cluster.member("root").keyring.trust, wall) == ["b"]
    assert cluster.shown("a").root_id != newest, "the older is shown, which b trusts"
    cluster.start("b")
    cluster.until(lambda: len(cluster.member("root").keyring.trust.roots) == 1, 60.0)
    cluster.until(cluster.world.settled)


def test_a_node_with_both_certificates_comes_back_after_the_change() -> None:
    cluster = Cluster(14, "a", "b", "c")
    cluster.world.nodes["c"].crash()
    cluster.member("root").rotate()
    cluster.until(lambda: cluster.member("b").keyring.next is not None, 60.0)
    cluster.world.run(5.0)
    cluster.world.nodes["b"].crash()
    assert len(cluster.member("a").keyring.trust.roots) == 2, "c has no certificate yet"
    cluster.start("c")
    cluster.until(lambda: len(cluster.member("a").keyring.trust.roots) == 1, 90.0)
    cluster.start("b")
    assert len(cluster.member("b").keyring.trust.roots) == 2
    took = cluster.until(lambda: cluster.world.settled() and len(cluster.member("b").keyring.trust.roots) == 1, 60.0)
    assert took < 2.0, "who was refused for the older certificate calls again as soon as it shows the other"


@pytest.mark.parametrize("under", ["the older root", "the newest there is"])
def test_who_is_revoked_while_two_roots_count_stays_out_when_the_older_is_retired(under: str) -> None:
    cluster = Cluster(22, "a", "b", "c")
    cluster.world.nodes["c"].crash()
    old = cluster.member("issuer").keyring.newest_root_id
    cluster.member("root").rotate()
    cluster.until(lambda: cluster.member("b").keyring.next is not None, 60.0)
    cluster.world.run(5.0)
    issuer, victim = cluster.member("issuer"), cluster.shown("b")
    if under == "the older root":
        power = issuer.keyring.power(old)
        assert power is not None
        statement = make_statement(power, Kind.REVOKE, Revoked("b", victim.static_key), cluster.world.dispatch.wall())
        issuer.believe([statement.data])
    else:
        assert issuer.revoke("b").root_id != old
    cluster.until(lambda: not any("b" in pair for pair in cluster.links()), 5.0)
    cluster.start("c")
    cluster.until(lambda: len(cluster.member("a").keyring.trust.roots) == 1, 90.0)
    cluster.world.run(40.0)
    assert not any("b" in pair for pair in cluster.links()), "revoked, and back under the other root"
    for name in ("root", "issuer", "a", "c"):
        assert cluster.member(name).keyring.trust.key_revoked(victim.static_key)


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


def test_a_node_whose_certificate_ends_shows_the_one_that_does_not() -> None:
    """Under the newer root; the one under the older could not be renewed."""
    cluster = Cluster(23, "a", "b")
    cluster.world.nodes["b"].crash()  # who is off is waited for
    old = cluster.member("issuer").keyring.newest_root_id
    cluster.member("root").rotate()
    cluster.until(lambda: cluster.member("a").keyring.next is not None, 60.0)
    cluster.world.nodes["a"].crash()
    store, power = cluster.stores["a"], cluster.member("issuer").keyring.power(old)
    assert power is not None
    own, wall = store.kept.identity.certificate, cluster.world.dispatch.wall()
    ending = issue_certificate(power, "a", own.static_key, [], wall, 40.0, cluster.random.randbytes)
    store.kept = attrs.evolve(store.kept, identity=attrs.evolve(store.kept.identity, certificate=ending))
    cluster.start("a")
    cluster.member("a")._renewer._peers = Peers(list, cluster.member("a")._renewer._peers.send)
    cluster.world.run(20.0)
    assert cluster.shown("a") == ending
    cluster.world.run(150.0)
    keyring = cluster.member("a").keyring
    assert keyring.identity.certificate.root_id == keyring.newest_root_id != old
    assert {pair for pair in cluster.links() if pair[0] == "a"} == {("a", "root"), ("a", "issuer")}
    assert keyring.next == ending
    assert not keyring.show_other(cluster.world.dispatch.wall()), "it has ended"
    root = cluster.member("root")
    with pytest.raises(OfficeError, match="has not ended"):
        root.office.retire(wall + 2 * NODE_VALIDITY)


def test_a_node_leaves() -> None:
    cluster = Cluster(16, "a", "b")
    told: list[str] = []
    cluster.member("b").leave(told.append)
    cluster.until(lambda: bool(told), 5.0)
    assert told[0] in ("root", "issuer")
    cluster.until(lambda: not any("b" in pair for pair in cluster.links()), 5.0)
    assert not cluster.member("a").keyring.trust.accepts(cluster.shown("b"))
    alone = Cluster(17, "a")
    alone.world.nodes["root"].crash()
    alone.world.nodes["issuer"].crash()
    alone.world.run(5.0)
    alone.member("a").leave(told.append)
    assert told[-1] == ""
