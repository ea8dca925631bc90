"""What the kernel says of interfaces and addresses, in namespaces that have the ones made here."""

from __future__ import annotations

import errno
import select
import socket

import pytest

from stack.linux import interfaces
from stack.linux.interfaces import LocalAddress, Rtnetlink
from stack.linux.rtnetlink import RECEIVE_MAX
from stack.testing.namespace import Namespace, Veth
from stack.wire.rtnetlink import ARPHRD_ETHER, RTM_GETLINK, dump

pytestmark = pytest.mark.priv


def opened(namespace: Namespace) -> Rtnetlink:
    with namespace.entered():
        return Rtnetlink()


def test_links_and_their_bridge(namespace: Namespace) -> None:
    namespace.ip("link", "add", "br0", "type", "bridge")
    namespace.ip("link", "add", "one", "type", "veth", "peer", "name", "two")
    namespace.ip("link", "set", "one", "master", "br0", "up")
    with opened(namespace) as kernel:
        links = {link.name: link for link in kernel.links()}
    assert set(links) == {"lo", "br0", "one", "two"}
    assert links["lo"].loopback
    assert not links["lo"].multicast
    assert links["one"].master == links["br0"].index
    assert [links[name].master for name in ("lo", "br0", "two")] == [0, 0, 0]
    assert (links["one"].enabled, links["one"].up, links["two"].enabled) == (True, False, False), "no carrier: the other end is off"
    assert {links[name].kind for name in ("br0", "one", "two")} == {ARPHRD_ETHER}
    assert links["one"].multicast


def test_addresses_of_an_interface_primary_first(veth: Veth) -> None:
    for address in ("10.2.0.9/24", "10.2.0.1/24", "10.1.0.1/24"):
        veth.a.ip("address", "add", address, "dev", "va")
    veth.a.ip("address", "add", "fe80::7/64", "dev", "va", "nodad")
    veth.a.ip("address", "add", "2001:db8::1/64", "dev", "va")  # tentative for a second: it cannot be bound
    with opened(veth.a) as kernel:
        index = next(link.index for link in kernel.links() if link.name == "va")
        found = kernel.addresses()
    ipv4 = [one.address for one in found if not one.is_ipv6]
    assert ipv4 == ["10.2.0.9", "10.1.0.1", "10.2.0.1"], "the second of one network comes last"
    assert LocalAddress("fe80::7", "va", index, 1500, up=True, loopback=False) in found
    assert [one.address for one in found if one.link_local] == ["fe80::7"]
    assert not any(one.address == "2001:db8::1" for one in found)


def test_notices_tell_of_links_and_addresses(veth: Veth) -> None:
    with veth.a.entered():
        heard = interfaces.notices()
    with heard:
        for change in (("address", "add", "10.1.0.1/24", "dev", "va"), ("link", "set", "va", "down")):
            while select.select([heard], [], [], 0)[0]:
                heard.recv(RECEIVE_MAX)
            veth.a.ip(*change)
            assert select.select([heard], [], [], 5.0)[0], change


def test_a_list_that_ends_early_is_told(namespace: Namespace, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "dump", lambda kind: dump(kind)[:8])  # the kernel does not answer half a header
    with opened(namespace) as kernel:
        assert kernel.links() == []
    assert "ends early" in caplog.text
    assert dump(RTM_GETLINK)


def test_no_rtnetlink_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "no such family")

    monkeypatch.setattr("stack.linux.interfaces.socket.socket", refuse)
    for ask in (Rtnetlink, interfaces.notices):
        with pytest.raises(OSError) as caught:
            ask()
        assert caught.value.errno == errno.EAFNOSUPPORT
