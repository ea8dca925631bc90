"""What tells that a session has gone. Not among the compiled modules: objects of compiled classes cannot be referred to weakly."""

from __future__ import annotations


class Lease:
    """Belongs to one session and goes with it: whoever hands out session indices refers to it weakly."""

    __slots__ = ("__weakref__",)
