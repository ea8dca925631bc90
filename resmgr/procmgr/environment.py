"""Which variables of a client reach a program.

Of those that a client sends, names that the account decides and names that steer the loader, the C library or the shell are left out,
whoever asks; the client's command says which and why. Under a list of commands that is not enough: nearly every program has variables that
make it run something else (PYTHONPATH, PERL5LIB, PAGER, GIT_*, JAVA_TOOL_OPTIONS), and nobody can list them. So there only what is known to
be harmless may be sent at all: the language and the kind of terminal, with values that are no paths and no formats, and what the rule
names.
"""

from __future__ import annotations

import re

_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*\Z")
OURS = frozenset((b"HOME", b"USER", b"LOGNAME", b"SHELL", b"PATH", b"PWD", b"OLDPWD"))
OF_THE_CALLER = frozenset((b"HOME", b"SHELL", b"PATH"))
"""Of OURS: what a program that sees the caller's files has from there, if it was sent."""
_STEERING = frozenset(
    (b"BASH_ENV", b"ENV", b"CDPATH", b"SHELLOPTS", b"BASHOPTS", b"IFS", b"PS4", b"GLIBC_TUNABLES", b"GCONV_PATH", b"LOCPATH", b"NLSPATH")
)
"""Variables that make the loader, the C library or /bin/sh read something else."""
_HARMLESS = re.compile(rb"(LANG|LANGUAGE|LC_[A-Z]{1,32}|TERM|COLORTERM)=[A-Za-z0-9_.@:+,-]{0,64}\Z")
"""As for sudo: no slash, no percent sign."""


def refusal(name: bytes, callers_files: bool) -> str:
    """Why a variable of this name is not passed on; empty if it is. *callers_files*: the program sees the files of the client's node."""
    if not _NAME.match(name):
        return "not a name of a variable"
    if name in OURS and not (callers_files and name in OF_THE_CALLER):
        return "its value is that of the account there"
    if name in _STEERING or name.startswith((b"LD_", b"BASH_FUNC_")):
        return "it would steer the loader or the shell there"
    return ""


def harmless(variable: bytes) -> bool:
    """Whether NAME=VALUE may be sent to any program of a list."""
    return bool(_HARMLESS.match(variable))
