"""Whom a node calls, and when again, in virtual time: after a refusal, where another node may be by now, after a new beginning."""

from __future__ import annotations

from collections import Counter

import attrs
import pytest

from qnetpy.identity.authority import NodeIdentity, issue_certificate, make_authority
from qnetpy.link.calls import RETRY_FIRST, RETRY_KNOWN, RETRY_REFUSED, RETRY_STRANGER, STIR_EVERY, STRANGERS_FEW
from qnetpy.link.constants import ATTEMPT_TIMEOUT
from qnetpy.link.outcome import Reason
from qnetpy.link.wire import FINAL, INITIATION
from qnetpy.testing.links import HEAD, WALL, Net, Station


def kinds(net: Net, since: float) -> Counter[int]:
    return Counter(frame[HEAD] for when, _, _, frame in net.frames if when >= since)


def pair() -> tuple[Net, Station, Station]:
    net = Net()
    a, b = net.add("a", 1), net.add("b", 2)
    net.up(a, b)
    return net, a, b


def of_another_root(net: Net, name: str) -> tuple[NodeIdentity, NodeIdentity]:
    """A node with a certificate under a root that nobody else knows, and the same node with one under theirs."""
    good = net.identity(name)
    other = make_authority("net", WALL, random=net.random.randbytes)
    shown = issue_certificate(other, name, good.certificate.static_key, [], WALL, random=net.random.randbytes)
    return attrs.evolve(good, certificate=shown, roots=(other.root, *good.roots)), good


def test_who_was_refused_for_its_certificate_calls_again_when_it_shows_another() -> None:
    net = Net()
    bad, good = of_another_root(net, "b")
    a, b = net.add("a", 1), net.add("b", 2, identity=bad)
    net.hint(b, a)
    net.run(5.0)
    assert {failed.reason for failed in b.owner.refusals} == {Reason.WRONG_CLUSTER}
    assert not b.owner.links
    b.machine.set_identity(good, net.now)
    assert net.run(1.0, lambda: "b" in a.owner.links and "a" in b.owner.links)


def test_who_is_refused_anyhow_is_called_once_for_each_certificate() -> None:
    net = Net()
    bad, _ = of_another_root(net, "b")
    a, b = net.add("a", 1), net.add("b", 2, identity=bad)
    net.hint(b, a)
    net.run(5.0)
    begin = net.now
    for _ in range(3):
        b.machine.set_identity(bad, net.now)
        net.flush(b)
    net.run(RETRY_REFUSED - 1.0)
    assert kinds(net, begin)[INITIATION] == 2, "one call: without a cookie, and with it"
    assert not a.owner.links


def test_when_a_link_comes_up_strangers_are_called_again_soon() -> None:
    """What kept one away may have kept others: a switch that was off."""
    net = Net()
    a, b, c = (net.add(name, number) for number, name in enumerate("abc", 1))
    b.on = c.on = False
    net.hint(a, c)
    net.run(150.0)
    b.on = c.on = True
    begin = net.now
    net.run(10.0)
    assert kinds(net, begin)[INITIATION] == 0, "a stranger that does not answer is called ever more rarely"
    net.hint(b, a)
    assert net.run(1.0, lambda: "c" in a.owner.links)


def test_links_that_come_up_one_after_another_are_no_way_to_have_strangers_called() -> None:
    net = Net()
    a, c = net.add("a", 1), net.add("c", 3)
    c.on = False
    net.hint(a, c)
    net.run(150.0)
    calls = a.machine._calls
    (stranger,) = calls._strangers.values()
    called = set()
    for _ in range(100):
        calls.link_up(net.now)
        a.machine._handshake_touched = True
        net.run(0.5)
        called.add(stranger.called_at)
    assert 3 <= len(called) <= 1 + 50.0 / STIR_EVERY


def test_another_node_at_a_known_address_is_found_by_who_calls_there() -> None:
    """As behind a translator, from where only one of both can call."""
    net = Net()
    a, b = net.add("a", 1), net.add("b", 2)
    net.up(a, b)
    b.on = False
    c = net.add("c", 2)
    net.block = lambda sender, cable, frame: sender == "c" and frame[HEAD] == INITIATION
    assert net.run(3.0 + ATTEMPT_TIMEOUT + RETRY_FIRST + 1.0, lambda: "c" in a.owner.links and "a" in c.owner.links)
    assert "b" not in a.owner.links


@pytest.mark.parametrize("away", [4.0, 14.0, 24.0, 34.0])
def test_a_node_that_was_away_is_found_again_whatever_the_call_is_for(away: float) -> None:
    net, a, b = pair()
    b.on = False
    net.run(away)
    b.on = True
    net.block = lambda sender, cable, frame: sender == "b" and frame[HEAD] == INITIATION
    assert net.run(RETRY_KNOWN + 2.0, lambda: a.owner.log[-1] == "b up")


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("caller", ["a", "b"])
def test_who_begins_anew_in_mid_handshake_does_not_let_the_other_end_wait(caller: str, number: int) -> None:
    net = Net()
    stations = {"a": net.add("a", 1), "b": net.add("b", 2)}
    calls = stations.pop(caller)
    (called,) = stations.values()
    net.hint(calls, called)
    assert net.run(1.0, lambda: len(net.frames) >= number)
    called.machine.begin_anew(bytes(16), "resumed", net.now)
    net.flush(called)
    assert net.run(1.0, lambda: "b" in calls.owner.links or "a" in calls.owner.links)
    net.run(1.0)
    assert len(called.owner.links) == len(calls.owner.links) == 1
    net.run(10.0)
    assert len(calls.owner.log) <= 3, calls.owner.log


def test_who_begins_anew_calls_each_that_waited_once() -> None:
    net = Net()
    a, b = net.add("a", 1), net.add("b", 2)
    net.block = lambda sender, cable, frame: frame[HEAD] in (FINAL, INITIATION) and len(net.frames) > 4
    net.hint(b, a)
    assert net.run(1.0, lambda: a.machine.sizes()["half_open"] == 1)
    b.on = False
    begin = net.now
    a.machine.begin_anew(bytes(16), "resumed", net.now)
    net.flush(a)
    net.run(60.0)
    sent = [frame for when, sender, _, frame in net.frames if when >= begin and sender == "a"]
    assert 0 < len(sent) <= 16, "one call of 8 s"
    assert a.machine.sizes()["calls"] == a.machine.sizes()["hints"] == 0


@pytest.mark.parametrize("count", [STRANGERS_FEW, 4 * STRANGERS_FEW, 10 * STRANGERS_FEW])
def test_many_strangers_where_a_node_has_no_path_cost_as_much_as_few(count: int) -> None:
    net = Net()
    a, b = net.add("a", 1, ("lan", "other")), net.add("b", 2)
    for number in range(count):
        a.machine.hint(("en1", b"\x02\x07" + number.to_bytes(4, "big")), net.now)
    net.flush(a)
    net.up(a, b)
    net.run(300.0)
    begin = net.now
    net.run(200.0)
    frames = sum(when >= begin and cable == "other" for when, _, cable, _ in net.frames)
    # Those beyond what the wait makes up for are called once a minute, as where no node is up.
    assert frames / 200.0 < max(1.3 * STRANGERS_FEW, 14 * count / (RETRY_STRANGER + ATTEMPT_TIMEOUT) * 1.3)
    assert kinds(net, begin)[INITIATION] > 14 * count
