"""Arguments of requests that only one kind of driver understands (`stack.core.specific`), checked. Each failure is one sentence."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from stack.core.errors import ModuleError
from stack.core.ifnet import Interface
from stack.core.names import station_address
from stack.core.stack import Stack


def refused(sentence: str, code: int = errno.EINVAL) -> ModuleError:
    return ModuleError(code, sentence)


def text(arguments: Mapping[str, object], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise refused(f"{name} is missing, or is no text")
    return value


def number(arguments: Mapping[str, object], name: str, low: int, high: int) -> int:
    value = arguments.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise refused(f"{name} must be a whole number from {low} to {high}")
    return value


def switch(arguments: Mapping[str, object], name: str) -> bool:
    value = arguments.get(name)
    if not isinstance(value, bool):
        raise refused(f"{name} must be true or false")
    return value


def address(arguments: Mapping[str, object], name: str) -> bytes:
    """The address of one station."""
    return station_address(text(arguments, name), name)


def interface(stack: Stack, name: str) -> Interface:
    """ENXIO when there is none of that name."""
    found = stack.interface(name)
    if found is None:
        there = ", ".join(one.name for one in stack.interfaces) or "none"
        raise refused(f"{stack.name} has no interface {name}; there is: {there}", errno.ENXIO)
    return found
