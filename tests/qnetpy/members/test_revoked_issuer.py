"""An issuer is revoked whose latest certificates the machine with the root key had not seen: who had one before goes on with that, by
itself, and gets another; what a thief made is neither let in nor renewed."""

from __future__ import annotations

import errno
import logging

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qnetpy.channels import CHID_MEMBERS
from qnetpy.identity.authority import NODE_VALIDITY, IssuingPower, issue_certificate
from qnetpy.identity.certificate import Certificate
from qnetpy.identity.trust import serial_id
from qnetpy.members import wire
from qnetpy.members.keyring import CLOCKS_DIFFER
from qnetpy.members.lifetime import Want
from qnetpy.members.office import OfficeError
from qnetpy.members.renewer import Peers
from qnetpy.testing.members import MemoryStore, enrolled
from qnetpy.testing.membership import Cluster
from resmgr.channel import PID_SYSTEM, Credentials
from resmgr.errors import Misuse

DAY = 86400.0


def signer(certificate: Certificate) -> str:
    return "" if certificate.issuer is None else certificate.issuer.node


def power_of(cluster: Cluster, name: str = "issuer") -> IssuingPower:
    (power,) = cluster.stores[name].kept.powers
    return power


def knowing(seed: int, *names: str, validity: float = NODE_VALIDITY) -> Cluster:
    """A cluster whose root knows the issuing power of `issuer`, as where it was certified."""
    cluster = Cluster(seed, *names, validity=validity)
    cluster.member("root").keyring.register.note(cluster.shown("issuer"), issuers=[power_of(cluster).issuer])
    return cluster


def part(cluster: Cluster, one: str, two: str) -> None:
    """They do not hear each other any more."""
    cluster.world.hub.severed |= {(one, two), (two, one)}
    cluster.until(lambda: not {(one, two), (two, one)} & cluster.links(), 10.0)


def renew(cluster: Cluster, name: str, by: str) -> Certificate:
    """Node *name* has a new certificate by that issuer."""
    member = cluster.member(name)
    peers = member._renewer._peers
    member._renewer._peers = Peers(lambda: [one for one in peers.issuers() if one == by], peers.send)
    before = cluster.shown(name)
    member._renewer._renew(Want(before.root_id, issuing=False), before, cluster.world.dispatch.wall())
    cluster.until(lambda: cluster.shown(name) != before, 5.0)
    member._renewer._peers = peers
    assert signer(cluster.shown(name)) == by
    return cluster.shown(name)


def all_linked(cluster: Cluster, *names: str) -> bool:
    return {(one, two) for one in names for two in names if one != two} <= cluster.links()


@pytest.mark.parametrize("seed", range(3))
def test_a_member_that_it_had_renewed_gets_another_certificate_over_the_links_that_it_has(seed: int) -> None:
    """a and the machine with the root key have not met since; b is up with both."""
    cluster = knowing(seed, "a", "b", validity=1200.0)
    first = cluster.shown("a")
    part(cluster, "root", "a")
    cluster.until(lambda: cluster.shown("a") != first, 850.0)
    lost = cluster.shown("a")
    assert signer(lost) == "issuer", "the only one that is reached"
    cluster.world.run(130.0)
    assert all_linked(cluster, "a", "b"), "the new one is shown"
    cluster.member("root").revoke("issuer")
    cluster.until(lambda: cluster.shown("a") == first, 2.0)
    assert not cluster.member("b").keyring.trust.accepts(lost)
    cluster.until(lambda: all_linked(cluster, "a", "b"), 5.0)
    cluster.world.run(130.0)
    assert all_linked(cluster, "a", "b"), "beyond the next rekey"

    cluster.world.hub.severed = set()
    cluster.until(lambda: signer(cluster.shown("a")) == "root" and cluster.shown("a") != first, 30.0)
    cluster.until(lambda: all_linked(cluster, "root", "a", "b"), 10.0)
    assert cluster.stores["a"].kept.identity.certificate == cluster.shown("a")
    assert cluster.shown("a").roles == first.roles


def test_at_once_where_an_issuer_can_be_reached() -> None:
    cluster = knowing(4, "a", "b")
    part(cluster, "root", "a")
    renew(cluster, "a", "issuer")
    cluster.world.hub.severed = set()
    starts = {(node.name, other.name): other.starts for node in cluster.world.live for other in node.qnet.nodes}
    root = cluster.member("root")
    cluster.until(lambda: all_linked(cluster, "root", "a"), 10.0)
    # As if its link showed the older one.
    root.keyring.register.forget("a")
    root._links.members_up = dict  # type: ignore[method-assign,union-attr]
    root.revoke("issuer")
    del root._links.members_up  # type: ignore[union-attr]
    took = cluster.until(lambda: signer(cluster.shown("a")) == "root" and len(cluster.member("a").keyring.trust.statements) == 1, 10.0)
    assert took < 5.0
    cluster.world.run(150.0)
    assert all_linked(cluster, "root", "a", "b")
    assert starts[("b", "root")] == 1


def test_a_member_that_was_off_comes_back_and_gets_one() -> None:
    """Nobody lets it in with what it has, and nobody who does not can tell it why."""
    cluster = knowing(5, "a", "b")
    part(cluster, "root", "a")
    lost = renew(cluster, "a", "issuer")
    cluster.world.nodes["a"].crash()
    cluster.world.hub.severed = set()
    cluster.member("root").revoke("issuer")
    cluster.world.run(30.0)
    cluster.start("a")
    assert cluster.shown("a") == lost
    took = cluster.until(lambda: all_linked(cluster, "root", "a", "b"), 30.0)
    assert took < 20.0
    assert signer(cluster.shown("a")) == "root"
    assert cluster.member("a").keyring.trust.accepts(cluster.shown("a"))
    cluster.world.run(150.0)
    assert all_linked(cluster, "root", "a", "b")


def test_renewed_twice_by_it_the_one_of_another_signer_is_kept() -> None:
    cluster = knowing(6, "a")
    keyring, issuer, wall = cluster.member("a").keyring, power_of(cluster), cluster.world.dispatch.wall()
    first = cluster.shown("a")
    key = first.static_key
    for _ in range(3):
        keyring.install(issue_certificate(issuer, "a", key, [], wall), None, b"", wall)
        assert keyring.before == first
    by_root = issue_certificate(power_of(cluster, "root"), "a", key, [], wall)
    last = cluster.shown("a")
    keyring.install(by_root, None, b"", wall)
    assert keyring.before == last, "who signed this one may be the next"
    keyring.install(issue_certificate(issuer, "a", key, [], wall), None, b"", wall + NODE_VALIDITY - 1.0)
    assert keyring.before == by_root
    assert not keyring.show_before(wall + NODE_VALIDITY + 1.0), "it has ended"
    keyring.drop_ended(wall + NODE_VALIDITY + CLOCKS_DIFFER + 1.0)
    assert keyring.before is None


def test_what_the_thief_of_an_issuer_made_is_neither_let_in_nor_renewed(caplog: pytest.LogCaptureFixture) -> None:
    cluster = knowing(7, "a", "b")
    stolen, wall = power_of(cluster), cluster.world.dispatch.wall()
    first = cluster.shown("a")
    root = cluster.member("root")
    root.revoke("issuer")
    cluster.world.run(3.0)

    # A station of his own, alone and under the name of a member that is off.
    private = X25519PrivateKey.from_private_bytes(cluster.random.randbytes(32))
    own = issue_certificate(stolen, "ghost", private.public_key().public_bytes_raw(), [], wall)
    identity = attrs.evolve(cluster.stores["b"].kept.identity, certificate=own, static_private=private.private_bytes_raw())
    kept = attrs.evolve(cluster.stores["b"].kept, identity=identity, before=own)
    cluster.stores["ghost"] = MemoryStore(kept)
    cluster.world.join("ghost")
    cluster.start("ghost")
    cluster.world.run(60.0)
    assert not any("ghost" in pair for pair in cluster.links())
    with pytest.raises(OfficeError, match="was revoked"):
        root.office.renew("ghost", own.static_key, wire.Renew(own.root_id, own.chain), wall)

    # A member that is on his side shows one for its own key, with more rights and a longer life.
    more = issue_certificate(stolen, "a", first.static_key, ["admin"], wall, 2 * NODE_VALIDITY)
    statuses: list[int] = []
    a = cluster.world.nodes["a"]
    connection = a.system.kernel.connect(a.nd("root"), PID_SYSTEM, CHID_MEMBERS, Credentials(0, 0))
    connection.submit((wire.pack_renew(wire.Renew(more.root_id, more.chain)),), 4096, lambda status, reply: statuses.append(status))
    cluster.world.run(1.0)
    assert statuses == [-errno.EACCES]

    # And what he answers to who asks for one is not taken.
    with pytest.raises(Misuse, match="revoked"):
        cluster.member("a").keyring.install(more, None, b"", wall)
    assert cluster.shown("a") == first
    assert "may not" not in caplog.text


def test_a_member_that_he_enrolled_and_nobody_saw_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing tells it from one of the thief's."""
    cluster = knowing(8, "a")
    wall = cluster.world.dispatch.wall()
    part(cluster, "root", "a")
    a = cluster.member("a")
    by_issuer = issue_certificate(power_of(cluster), "a", cluster.shown("a").static_key, [], wall)
    a.keyring.identity = attrs.evolve(a.keyring.identity, certificate=by_issuer)
    a._use_identity()
    part(cluster, "issuer", "a")
    statement = cluster.member("root").revoke("issuer")
    with caplog.at_level(logging.ERROR):
        a.believe([statement.data], "root")
    assert "qnet invite --name a on a node that may, and here: qnet join CODE --replace" in caplog.text
    assert a.keyring.proof(0.0) is None
    cluster.world.hub.severed = set()
    cluster.world.run(30.0)
    assert not any("a" in pair for pair in cluster.links())


def test_every_certificate_that_a_member_may_show_yet_is_kept() -> None:
    """The answer to a renewal was lost: where it was issued a later one is known, and the node has the earlier."""
    cluster = knowing(9, "a")
    root, wall = cluster.member("root"), cluster.world.dispatch.wall()
    key = cluster.shown("a").static_key
    made = [issue_certificate(power_of(cluster), "a", key, [], wall, NODE_VALIDITY + number) for number in range(3)]
    for certificate in (*made, issue_certificate(power_of(cluster, "root"), "a", key, [], wall, NODE_VALIDITY + 9)):
        root.keyring.register.note(certificate)
    unseen = issue_certificate(power_of(cluster), "a", key, [], wall, NODE_VALIDITY)
    ended = issue_certificate(power_of(cluster), "b", bytes(range(32)), [], wall, DAY)
    root.keyring.register.note(ended)
    root.keyring.register.note(attrs.evolve(ended, serial=ended.serial - 1, not_after=wall + NODE_VALIDITY))
    (statement,) = root.office.revoke("issuer", cluster.shown("issuer"), wall + 3 * DAY)
    root.believe([statement.data])
    subject = statement.subject
    assert {serial_id(one) for one in made} <= subject.kept  # type: ignore[union-attr]
    assert all(root.keyring.trust.accepts(one) for one in made)
    assert not root.keyring.trust.accepts(unseen)
    assert not root.keyring.trust.accepts(ended), "it takes no place"


def test_a_certificate_that_was_never_shown_is_seen_as_well() -> None:
    """Under the newer of two roots; or a link is older than it. Its node says that it has it, at once."""
    cluster = knowing(11, "a", "b")
    renewed = renew(cluster, "a", "issuer")
    cluster.world.run(1.0)
    root = cluster.member("root")
    assert root._links.members_up()["a"] != renewed  # type: ignore[union-attr]
    root.revoke("issuer")
    cluster.world.run(150.0)
    assert cluster.shown("a") == renewed
    assert all_linked(cluster, "root", "a", "b")


def test_a_root_waits_for_who_had_a_certificate_under_it_by_a_revoked_issuer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it made is more than can be kept."""
    monkeypatch.setattr("qnetpy.members.office.KEPT_MAX", 0)
    cluster = knowing(10, "a", "b")
    issuer = cluster.member("issuer")
    cluster.member("a")._renewer._peers = Peers(lambda: ["issuer"], cluster.member("a")._renewer._peers.send)
    cluster.world.nodes["b"].crash()  # who is off is waited for
    root = cluster.member("root")
    root.rotate()
    new = root.keyring.newest_root_id
    cluster.until(lambda: "a" not in root.keyring.register.lacking(new, root.keyring.trust, cluster.world.dispatch.wall()), 20.0)
    lost = cluster.member("a").keyring.under(new)
    assert lost is not None
    assert signer(lost) == issuer.keyring.name
    cluster.member("a")._renewer._peers = Peers(list, cluster.member("a")._renewer._peers.send)
    root.revoke("issuer")
    cluster.world.run(5.0)
    assert not root.keyring.trust.accepts(lost)
    assert "a" in root.keyring.register.lacking(new, root.keyring.trust, cluster.world.dispatch.wall())
    cluster.start("b")
    cluster.world.run(20.0)
    assert len(root.keyring.trust.roots) == 2, "a has none that counts, and asks nobody"
    cluster.member("a")._renewer._peers = Peers(lambda: ["root"], cluster.member("a")._renewer._peers.send)
    cluster.until(lambda: len(root.keyring.trust.roots) == 1, 30.0)
    cluster.world.run(150.0)
    assert all_linked(cluster, "root", "a", "b")


def test_who_is_revoked_does_not_come_back_by_the_certificate_before() -> None:
    """The root signed its first one and an issuer renewed it: to revoke the node takes the root key, and the node itself knows."""
    cluster = Cluster(7, "b")
    world = cluster.world
    cluster.stores["a"] = enrolled(world.authority, "a", world.dispatch.wall(), cluster.random.randbytes)
    world.join("a")
    cluster.start("a")
    cluster.until(lambda: all_linked(cluster, "a", "b", "issuer", "root"), 10.0)
    first = cluster.shown("a")
    renew(cluster, "a", "issuer")
    a = cluster.member("a")
    assert a.keyring.before == first
    with pytest.raises(OfficeError, match="that takes the root key"):
        cluster.member("issuer").revoke("a")
    cluster.member("root").revoke("a")
    world.run(90.0)
    assert not any("a" in pair for pair in cluster.links())
    assert not cluster.member("b").keyring.trust.accepts(first)
    a.keyring.learn([one.data for one in cluster.member("root").keyring.trust.revocations()])
    assert a.keyring.before is None
    assert a.keyring.proof(0.0) is None
