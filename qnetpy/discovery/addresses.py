"""The kernel's addresses of interfaces, as mDNS needs them."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from stack.linux.interfaces import LocalAddress, Rtnetlink


@attrs.frozen
class Addresses:
    """The kernel's addresses of one interface that is up and has carrier."""

    index: int
    ipv4: str | None
    ipv6: str | None
    """Link-local."""

    def texts(self) -> list[str]:
        return [address for address in (self.ipv4, self.ipv6) if address is not None]


def usable_addresses(names: Iterable[str]) -> dict[str, Addresses]:
    """Of those interfaces in *names* that are up, have carrier and have an address that mDNS can use now. OSError when there is no
    rtnetlink."""
    with Rtnetlink() as kernel:
        local = kernel.addresses()
    found: dict[str, Addresses] = {}
    for name in names:
        own = [one for one in local if one.interface == name and one.up]
        ipv4 = _first(one for one in own if not one.is_ipv6)
        ipv6 = _first(one for one in own if one.is_ipv6 and one.link_local)
        if ipv4 is not None or ipv6 is not None:
            found[name] = Addresses(own[0].index, ipv4, ipv6)
    return found


def _first(addresses: Iterable[LocalAddress]) -> str | None:
    return next((one.address for one in addresses), None)
