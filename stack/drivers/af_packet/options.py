"""Options of `-d packet`. Not among the compiled modules: the parser of options reads the annotations, and compiled classes keep none."""

from __future__ import annotations

from typing import Literal

import attrs

from stack.core.options import Size


@attrs.frozen
class PacketOptions:
    """Options of `-d packet`."""

    ifname: str
    """The Linux interface."""
    name: str | None = None
    """Name of the interface in the stack; the Linux name by default."""
    rx: Literal["auto", "ring", "recv"] = "auto"
    """How to receive; auto takes the ring where the processor allows it."""
    ring: Size = attrs.field(default=Size(4 << 20), validator=[attrs.validators.ge(Size(1 << 16)), attrs.validators.le(Size(1 << 30))])
    """Memory for frames that were received and not yet handled."""
    queue: int = attrs.field(default=512, validator=[attrs.validators.ge(0), attrs.validators.le(65536)])
    """Frames that wait when the kernel takes no more."""
