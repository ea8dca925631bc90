"""What may be the name or the address of an interface: what people type is refused with a sentence before it becomes a puzzle elsewhere."""

from __future__ import annotations

import errno
import re

from stack.core.errors import ModuleError
from stack.wire.ethernet import is_group, mac_bytes, mac_text

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+:-]{0,30}")
LINUX_NAME_MAX = 15
"""IFNAMSIZ without the end."""


def check_name(name: str) -> None:
    """ModuleError unless *name* can be an interface's in the stack: it is typed, is a file, and stands in `NODE~preferred:IF`."""
    if NAME.fullmatch(name) is None:
        raise ModuleError(
            errno.EINVAL, f"{name!r} cannot be an interface's name: expected letters, digits and . _ - + @ : up to 31 of them"
        )


def check_station(mac: bytes, whose: str) -> None:
    """ModuleError for the address of a group, which no station has."""
    if is_group(mac):
        raise ModuleError(errno.EINVAL, f"{whose}: {mac_text(mac)} is the address of a group, not of a station")


def station_address(text: str, whose: str) -> bytes:
    """The address of a station, as people write it. ModuleError."""
    try:
        mac = mac_bytes(text)
    except ValueError as error:
        raise ModuleError(errno.EINVAL, f"{whose}: {error}") from error
    check_station(mac, whose)
    return mac


def check_linux_name(name: str, whose: str) -> None:
    """ModuleError for what Linux takes for no interface's name."""
    size = len(name.encode("utf-8", "surrogateescape"))
    if not 0 < size <= LINUX_NAME_MAX or name in (".", "..") or any(one.isspace() or one in "/:" or not one.isprintable() for one in name):
        raise ModuleError(
            errno.EINVAL,
            f"{whose}: {name!r} cannot be the name of a Linux interface: 1 to {LINUX_NAME_MAX} bytes, without blanks, slashes and colons",
        )
