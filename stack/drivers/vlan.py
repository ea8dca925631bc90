"""`-d vlan`: see `stack.l2.vlan`."""

from __future__ import annotations

from stack.l2.vlan import MODULE

__all__ = ["MODULE"]
