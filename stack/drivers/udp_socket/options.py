"""Options of `-d udp`."""

from __future__ import annotations

from typing import Literal

import attrs

from stack.core.options import Size
from stack.wire.endpoint import DATAGRAM_MAX, MTU_MIN, PORT_DEFAULT, PORT_MAX
from stack.wire.ethernet import ETHERTYPE_EXPERIMENTAL, ETHERTYPE_MIN


@attrs.frozen
class UdpOptions:
    """Options of `-d udp`."""

    bind: tuple[str, ...] = ()
    """Addresses of this machine, IPv6 link-local ones with %interface; may be repeated. None: all."""
    port: int = attrs.field(default=PORT_DEFAULT, validator=[attrs.validators.ge(0), attrs.validators.le(PORT_MAX)])
    """0: any that is free."""
    name: str = "udp0"
    ethertype: int = attrs.field(
        default=ETHERTYPE_EXPERIMENTAL, validator=[attrs.validators.ge(ETHERTYPE_MIN), attrs.validators.le(0xFFFF)]
    )
    mtu: int | None = attrs.field(
        default=None, validator=attrs.validators.optional([attrs.validators.ge(MTU_MIN), attrs.validators.le(DATAGRAM_MAX)])
    )
    """Longest datagram, without headers of IP and UDP. By default what the interfaces take."""
    buffer: Size = attrs.field(default=Size(8 << 20), validator=[attrs.validators.ge(Size(1 << 16)), attrs.validators.le(Size(1 << 30))])
    """Memory for datagrams that were received and not yet handled, per socket; rmem_max limits it without CAP_NET_ADMIN."""
    queue: int = attrs.field(default=512, validator=[attrs.validators.ge(0), attrs.validators.le(65536)])
    """Datagrams that wait when the kernel takes no more."""
    offload: Literal["auto", "off"] = "auto"
    """Segmentation (UDP_SEGMENT) and coalescing (UDP_GRO) by the kernel, where it has them."""
