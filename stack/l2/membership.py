"""What a bridge knows of a member by its name: the settings that last, whether there is such an interface just now or not
(`stack.l2.absent`).

Absent members keep their place: they count as ports, and their number is given to others only when there is no other.
"""

from __future__ import annotations

import attrs

from stack.l2.storm import STORM_RATE
from stack.l2.stp.settings import PortSettings, TreeSettings


@attrs.frozen
class Membership:
    """A member's settings. `number` is its port's, 0 for any; `storm` in frames a second; `statics` are addresses of stations there."""

    number: int = 0
    spans: bool = False
    learn: bool = True
    discover: bool = True
    most: int = 0
    storm: int = STORM_RATE
    tree: bool = False
    """It takes part in the spanning tree."""
    settings: PortSettings = PortSettings()
    """Of the spanning tree."""
    guarded: bool = False
    """BPDU guard has struck: it holds over the absence."""
    statics: tuple[bytes, ...] = ()


@attrs.frozen
class KeptBridge:
    """What a bridge has instead of its options after a restart (`stack.core.module.Keeping`); members by name, absent ones too."""

    mac: bytes
    maxaddr: int
    timeout: float
    ipf: bool
    tree: TreeSettings
    members: tuple[tuple[str, Membership], ...]
