"""A port of a forwarding engine."""

from __future__ import annotations

import attrs

from stack.core.ifnet import Interface
from stack.core.registry import Registration
from stack.l2.forward.carrier import NOTHING, Counts


@attrs.define(eq=False)
class EnginePort:
    """An interface that an engine serves. It is *attached* while `index` is not 0."""

    number: int
    interface: Interface
    index: int = 0
    """Of the Linux interface, while attached."""
    mtu: int = 0
    reasons: dict[str, None] = attrs.Factory(dict)
    """Ours and the bridge's, in order of appearance."""
    hooks: tuple[str, ...] = ()
    """Those of them that hooks are."""
    obstacle: str = ""
    """The one of them for which it is not attached."""
    stations: dict[bytes, None] = attrs.Factory(dict)
    """Behind it, the oldest first."""
    before: Counts = NOTHING
    """Counted while it was attached earlier."""
    claim: Registration | None = None
    """That no other engine carries its frames; from when it was first attached until it is no port any more."""
