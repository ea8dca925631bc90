"""`-d bridge`: see `stack.l2.bridge_driver`."""

from __future__ import annotations

from stack.l2.bridge_driver import MODULE

__all__ = ["MODULE"]
