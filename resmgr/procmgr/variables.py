"""Which environment variables a client may give a program: its node refuses the others, and the client says so. Loads nothing."""

from __future__ import annotations

OURS = frozenset((b"HOME", b"USER", b"LOGNAME", b"SHELL", b"PATH", b"PWD", b"OLDPWD"))
"""Set by the node that runs the program."""
OF_THE_CALLER = frozenset((b"HOME", b"SHELL", b"PATH"))
"""Of OURS: what a program that sees the caller's files has from there, if it was sent."""
STEERING = frozenset(
    (b"BASH_ENV", b"ENV", b"CDPATH", b"SHELLOPTS", b"BASHOPTS", b"IFS", b"PS4", b"GLIBC_TUNABLES", b"GCONV_PATH", b"LOCPATH", b"NLSPATH")
)
"""Make the loader, the C library or /bin/sh read something else: with them a list of allowed commands would be void."""


def refusal(name: bytes, root: bool) -> str:
    """Why a variable is not taken, empty if it is; *root*: the program sees the caller's files."""
    if not (name.isascii() and name.replace(b"_", b"a").isalnum()) or name[:1].isdigit():
        return "not a name of a variable"
    if name in OURS and not (root and name in OF_THE_CALLER):
        return "its value is that of the account there"
    if name in STEERING or name.startswith((b"LD_", b"BASH_FUNC_")):
        return "it would steer the loader or the shell there"
    return ""
