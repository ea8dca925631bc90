"""Congestion controllers, chosen by name. One file each; docs/decisions/congestion.md says why the default is what it is."""

from __future__ import annotations

from qnetpy.link.congestion.base import AckSample, Controller
from qnetpy.link.congestion.cubic import Cubic
from qnetpy.link.congestion.newreno import NewReno
from qnetpy.link.congestion.tolerant import Tolerant

__all__ = ["CONTROLLERS", "AckSample", "Controller", "create"]

CONTROLLERS: dict[str, type[Controller]] = {"tolerant": Tolerant, "cubic": Cubic, "newreno": NewReno}


def create(name: str, mss: int, max_window: int) -> Controller:
    """The controller called *name*. Raises ValueError that lists the names."""
    kind = CONTROLLERS.get(name)
    if kind is None:
        raise ValueError(f"unknown congestion controller {name!r}; there are: {', '.join(CONTROLLERS)}")
    return kind(mss, max_window)
