"""Settings of one transport, validated once."""

from __future__ import annotations

import attrs

from qnetpy.link.transport.constants import MAX_MESSAGE, SMALL_RESERVE


def _window(_: object, __: object, value: int) -> None:
    if value < MAX_MESSAGE + SMALL_RESERVE:
        raise ValueError(f"receive_window must be at least {MAX_MESSAGE + SMALL_RESERVE}, the largest message and a reserve; got {value}")


def _positive(_: object, attribute: attrs.Attribute[int] | attrs.Attribute[float], value: float) -> None:
    if value <= 0:
        raise ValueError(f"{attribute.name} must be positive; got {value}")


@attrs.frozen
class TransportConfig:
    """One per peer connection. Both ends may differ in all of it."""

    congestion: str = "tolerant"
    """Congestion controller: tolerant, cubic or newreno (docs/decisions/congestion.md)."""
    receive_window: int = attrs.field(default=72 << 20, validator=_window)
    """Bytes of undelivered messages that the peer may make us hold."""
    initial_rtt: float = attrs.field(default=0.05, validator=_positive)
    """Round trip time assumed before the first sample; the handshake usually knows better (`add_path`)."""
    max_pto: float = attrs.field(default=0.5, validator=_positive)
    """Longest pause between probes of a silent path: how soon it is noticed again after it heals."""
    max_window: int = attrs.field(default=16 << 20, validator=_positive)
    """Bytes in flight per path, whatever the controller thinks."""
    mtu_probe: bool = True
    """Search for larger packets than the base."""
    mtu_retry: float = attrs.field(default=30.0, validator=_positive)
    """Seconds until sizes that failed are tried again (RFC 8899 PMTU_RAISE_TIMER is 600; a bridge port is changed by a person who
    waits)."""
