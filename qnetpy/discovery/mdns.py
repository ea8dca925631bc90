"""mDNS on one interface, by python-zeroconf: opened here for all that announce, browse or resolve, on a running asyncio loop.

The library is imported inside the calls: it takes 0.15 s, which threads that need it pay for, and not whoever imports this.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from qnetpy.discovery.addresses import Addresses

if TYPE_CHECKING:
    from zeroconf import Zeroconf
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

RESOLVE_TIMEOUT_MS = 1500

# Linux: <linux/in.h>, <linux/in6.h>.
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29


async def open_mdns(interface: str, places: Addresses) -> AsyncZeroconf:
    """What is heard on *interface*, and only there. OSError or RuntimeError when the addresses cannot be used (yet)."""
    from zeroconf import IPVersion
    from zeroconf.asyncio import AsyncZeroconf

    version = IPVersion.V4Only if places.ipv6 is None else IPVersion.V6Only if places.ipv4 is None else IPVersion.All
    # The interface by IPv4 address and, for IPv6, by index.
    by: list[str | int | tuple[tuple[str, int, int], int]] = [] if places.ipv4 is None else [places.ipv4]
    by += [] if places.ipv6 is None else [places.index]
    opened = AsyncZeroconf(interfaces=by, ip_version=version)
    try:
        library = opened.zeroconf
        await library.async_wait_for_start()
        for reader in library.engine.readers:
            _confine(reader.transport.get_extra_info("socket"), interface)
    except BaseException:
        await opened.async_close()
        raise
    # What came before that may be another interface's: forget it, so that it is not sent along as a known answer, but asked for.
    for known in library.cache.names():
        library.cache.async_remove_records(list(library.cache.async_entries_with_name(known)))
    return opened


async def resolve(library: Zeroconf, info: AsyncServiceInfo) -> bool:
    """Fill *info*, from what was heard or by asking. False when nobody answers within RESOLVE_TIMEOUT_MS."""
    return info.load_from_cache(library) or await info.async_request(library, RESOLVE_TIMEOUT_MS)


def _confine(sock: socket.socket, interface: str) -> None:
    """Hear only *interface*: Linux gives every socket of the port the groups that any other socket joined, unless told not to."""
    levels = [(socket.IPPROTO_IP, _IP_MULTICAST_ALL)] if sock.family == socket.AF_INET else [(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL)]
    if sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        levels.append((socket.IPPROTO_IP, _IP_MULTICAST_ALL))
    for level, option in levels:
        sock.setsockopt(level, option, 0)
    # Refused to an ordinary user on old kernels; then a unicast answer may arrive through another interface, which does no harm.
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
