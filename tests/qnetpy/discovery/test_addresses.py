"""Which interfaces mDNS is spoken on, and with which addresses: the kernel's, of a namespace made here."""

from __future__ import annotations

import pytest

from qnetpy.discovery.addresses import Addresses, usable_addresses
from qnetpy.discovery.rendezvous import interfaces
from qnetpy.ethernets import ethernets
from stack.testing.namespace import Namespace, Veth

pytestmark = pytest.mark.priv


def usable(namespace: Namespace, *names: str) -> dict[str, Addresses]:
    with namespace.entered():
        return usable_addresses(names)


def test_the_primary_address_and_a_link_local_one(veth: Veth) -> None:
    veth.a.ip("address", "flush", "dev", "va")
    assert usable(veth.a, "va", "gone") == {}
    veth.a.ip("address", "add", "10.2.0.9/24", "dev", "va")
    veth.a.ip("address", "add", "10.2.0.1/24", "dev", "va")
    veth.a.ip("address", "add", "2001:db8::1/64", "dev", "va", "nodad")
    (found,) = usable(veth.a, "va").values()
    assert (found.ipv4, found.ipv6) == ("10.2.0.9", None)
    veth.a.ip("address", "add", "fe80::7/64", "dev", "va", "nodad")
    (found,) = usable(veth.a, "va").values()
    assert found.texts() == ["10.2.0.9", "fe80::7"]


def test_an_interface_without_carrier_is_not_usable(veth: Veth) -> None:
    veth.a.ip("address", "add", "10.1.0.1/24", "dev", "va")
    assert list(usable(veth.a, "va")) == ["va"]
    veth.b.ip("link", "set", "vb", "down")
    veth.a.wait_for("va", "DOWN")
    assert usable(veth.a, "va") == {}


def test_parts_of_a_bridge_loops_and_what_is_off_are_left_alone(namespace: Namespace) -> None:
    with namespace.entered():
        assert ethernets() == []
    namespace.ip("link", "set", "lo", "up")
    namespace.ip("link", "add", "br0", "up", "type", "bridge")
    namespace.ip("link", "add", "two", "type", "veth", "peer", "name", "one")
    namespace.ip("link", "add", "off", "type", "bridge")
    namespace.ip("link", "set", "one", "up", "master", "br0")
    namespace.ip("link", "set", "two", "up")
    with namespace.entered():
        assert ethernets() == interfaces() == ["br0", "two"]
