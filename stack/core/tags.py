"""What becomes of VLAN tags that no VLAN interface has taken (IEEE 802.1Q, as Linux does it; docs/stack/layer2.md, VLANs).

no tag                        the interface's own, by its ethertype
0x8100, id 0                  a priority tag: the interface's own; the tag is taken off
0x8100, another id            of a VLAN that this interface is not in: only for protocols that registered with `vlans=True`
0x8100 behind a priority tag  the same
0x88a8, 0x9100                a provider's: an ethertype of its own, which is not looked behind; no protocol can have it, hooks see it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from stack.core.statistics import Drop
from stack.frame import BadFrame, Frame
from stack.wire.ethernet import HEADER_SIZE, TPID_8021Q, ethertype_of, unpack_type
from stack.wire.vlan import untagged, vlan_of


@attrs.frozen(eq=False)
class Sorted:
    """A batch by ethertype, in order within each: `own` is the interface's, `foreign` of VLANs. `bad`: frames without one, by drop."""

    own: Mapping[int, list[Frame]]
    foreign: Mapping[int, list[Frame]]
    bad: Mapping[str, int]


def sort_out(frames: Sequence[Frame]) -> Sorted:
    """Priority tags are taken off by a copy of the frame."""
    own: dict[int, list[Frame]] = {}
    foreign: dict[int, list[Frame]] = {}
    bad: dict[str, int] = {}
    for frame in frames:
        if len(frame) < HEADER_SIZE:
            bad[Drop.TOO_SHORT] = bad.get(Drop.TOO_SHORT, 0) + 1
            continue
        if vlan_of(frame) == 0:
            frame = untagged(frame)  # what is looked at from here on
        kind: int = unpack_type(frame)[0]
        if kind != TPID_8021Q:
            own.setdefault(kind, []).append(frame)
            continue
        try:
            foreign.setdefault(ethertype_of(frame), []).append(frame)
        except BadFrame:
            bad[Drop.BAD_TAGS] = bad.get(Drop.BAD_TAGS, 0) + 1
    return Sorted(own, foreign, bad)
