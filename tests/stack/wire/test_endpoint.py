"""Endpoints: one spelling for each, what can be called, and what people may type."""

from __future__ import annotations

import pytest

from stack.wire.endpoint import Endpoint, endpoint, from_sockaddr, split_host


@pytest.mark.parametrize(
    ("address", "scope", "expected", "sockaddr"),
    [
        ("10.0.0.1", 0, "10.0.0.1:9", ("10.0.0.1", 9)),
        (b"\x0a\0\0\1", 3, "10.0.0.1:9", ("10.0.0.1", 9)),
        ("::ffff:10.0.0.1", 0, "10.0.0.1:9", ("10.0.0.1", 9)),
        ("2001:DB8::0:1", 7, "[2001:db8::1]:9", ("2001:db8::1", 9, 0, 0)),
        ("fe80::1", 7, "[fe80::1%7]:9", ("fe80::1", 9, 0, 7)),
    ],
)
def test_one_spelling(address: str | bytes, scope: int, expected: str, sockaddr: object) -> None:
    made = endpoint(address, 9, scope)
    assert str(made) == expected
    assert made.sockaddr == sockaddr
    assert from_sockaddr(made.sockaddr) == made
    assert endpoint(made.packed, 9, scope) == made


@pytest.mark.parametrize("address", ["", "10.0.0", "host", "fe80::1%eth0", b"", b"12345"])
def test_what_is_no_address(address: str | bytes) -> None:
    with pytest.raises(ValueError):
        endpoint(address, 9)


@pytest.mark.parametrize(
    ("made", "callable_", "routable"),
    [
        (Endpoint("10.0.0.1", 9), True, True),
        (Endpoint("2001:db8::1", 9), True, True),
        (Endpoint("127.0.0.1", 9), True, False),
        (Endpoint("169.254.0.1", 9), True, False),
        (Endpoint("fe80::1", 9, 2), True, False),
        (Endpoint("fe80::1", 9), False, False),
        (Endpoint("10.0.0.1", 0), False, False),
        (Endpoint("224.0.0.1", 9), False, False),
        (Endpoint("255.255.255.255", 9), False, False),
        (Endpoint("0.0.0.0", 9), False, False),
        (Endpoint("240.0.0.1", 9), True, False),
        (Endpoint("ff02::1", 9, 2), False, False),
        (Endpoint("::", 9), False, False),
    ],
)
def test_what_can_be_called(made: Endpoint, callable_: bool, routable: bool) -> None:
    assert (made.is_callable(), made.is_routable()) == (callable_, routable)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("fe80::1", True), ("fe9a::1", True), ("febf::1", True), ("fec0::1", False), ("2001:db8::1", False), ("169.254.0.1", False)],
)
def test_what_needs_a_scope(address: str, expected: bool) -> None:
    assert endpoint(address, 9, 3).is_link_local is expected
    assert endpoint(address, 9, 3).scope == (3 if expected else 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gate.example.org", ("gate.example.org", 5)),
        ("gate:77", ("gate", 77)),
        ("10.0.0.1:77", ("10.0.0.1", 77)),
        ("[2001:db8::1]", ("2001:db8::1", 5)),
        ("[fe80::1%eth0]:77", ("fe80::1%eth0", 77)),
        ("2001:db8::1", ("2001:db8::1", 5)),
        ("fe80::1%eth0", ("fe80::1%eth0", 5)),
    ],
)
def test_what_people_type(text: str, expected: tuple[str, int]) -> None:
    assert split_host(text, 5) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":77",
        "a b",
        "2001:db8::x",
        "gate:0",
        "gate:65536",
        "gate:x",
        "[gate]:7",
        "[::1",
        "[::1]x",
        "[[::1]]",
        "fe80::1%",
        "-x-/y",
        "a..b",
    ],
)
def test_what_people_mistype(text: str) -> None:
    with pytest.raises(ValueError) as raised:
        split_host(text, 5)
    assert "\n" not in str(raised.value)
