"""What interfaces have in common whose link lies inside the stack."""

from __future__ import annotations

from stack.core.hooks import Hook, Point
from stack.core.ifnet import Interface
from stack.core.registry import Registration
from stack.core.stack import Stack


def take_over(
    stack: Stack, interface: Interface, name: str, order: int, incoming: Hook, outgoing: Hook, *, runs: bool = False
) -> tuple[Registration, ...]:
    """*interface* serves the pseudo-interface *name* from now on: its input is that one alone's, it is promiscuous, every frame meets the
    hooks, which are on it only; *runs*: runs of segments too (`stack.core.runs`). ModuleError when that cannot be; then nothing has
    changed."""
    taken: list[Registration] = []
    try:
        taken.append(stack.own(interface, name))
        taken.append(stack.promiscuous(interface, name))
        on = (interface.name,)
        taken.append(stack.add_hook(Point.IN, incoming, order=order, name=name, everything=True, counts=True, runs=runs, interfaces=on))
        taken.append(stack.add_hook(Point.OUT, outgoing, order=order, name=name, counts=True, runs=runs, interfaces=on))
    except BaseException:
        for registration in taken:
            registration.revoke()
        raise
    return tuple(taken)
