"""`-d agr`: see `stack.l2.aggregate`."""

from __future__ import annotations

from stack.l2.aggregate import MODULE

__all__ = ["MODULE"]
