"""`mount.qnet`: what mount(8) calls for `mount -t qnet SOURCE DIRECTORY` and for lines of /etc/fstab. Not a command of `qnet`.

    b:/srv  /mnt/srv  qnet  ro,nofail,_netdev  0 0

mount(8) looks for it in /sbin, so it is linked there. It asks the daemon of this node to mount, as `qnet mount -t qnet` does. Options that
are mount(8)'s own affair, or that hold here anyway, are left out; others that no mount of /net has are an error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from qnetpy.cli import daemon
from qnetpy.cli.output import CommandError

NOT_OURS = frozenset(
    {
        *("defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group", "nosuid", "nodev"),
        *("async", "relatime", "noatime", "nodiratime", "silent"),
    }
)
USAGE = "usage: mount.qnet SOURCE DIRECTORY [-o OPTIONS] [-f] [-n] [-s] [-v] [-t TYPE]"
STATUS_USAGE = 1
STATUS_FAILED = 32
"""As mount(8) has them."""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit status, as mount(8) means it."""
    try:
        source, point, options, pretend = parse(list(sys.argv[1:] if argv is None else argv))
    except ValueError as error:
        print(f"mount.qnet: {error}", file=sys.stderr)
        return STATUS_USAGE
    try:
        if not pretend:
            daemon.ask("mount", None, source=source, point=os.path.abspath(point), options=options)
    except CommandError as error:
        print(f"mount.qnet: {error}", file=sys.stderr)
        return STATUS_FAILED
    return 0


def parse(arguments: list[str]) -> tuple[str, str, str, bool]:
    """(source, directory, our options, whether only to pretend). ValueError for what is no call."""
    places: list[str] = []
    options: list[str] = []
    pretend = False
    words = iter(arguments)
    for word in words:
        if word in ("-o", "-t", "-N"):
            value = next(words, None)
            if value is None:
                raise ValueError(f"{word} needs a value; {USAGE}")
            options += value.split(",") if word == "-o" else []
        elif word.startswith("-") and word.strip("fnsv-") == "":
            pretend = pretend or "f" in word
        elif word.startswith("-"):
            raise ValueError(f"there is no option {word}; {USAGE}")
        else:
            places.append(word)
    if len(places) != 2:
        raise ValueError(USAGE)
    ours = [one for one in options if one and one not in NOT_OURS and not one.startswith(("x-", "X-", "comment="))]
    return places[0], places[1], ",".join(ours), pretend


if __name__ == "__main__":
    sys.exit(main())
