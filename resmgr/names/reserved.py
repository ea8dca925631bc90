"""Names that only certain users may attach. Others are whose they were first: after the end of a server anybody may take its place, and
gets its clients. (QNX 7 asks for an ability for this, PROCMGR_AID_PATHSPACE.)
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import attrs


@attrs.frozen
class ReservedName:
    """Names that match *pattern* (`*`, `?` and `[...]` as in a shell) are for programs of *uids*, and of root."""

    pattern: str
    uids: frozenset[int]


def may_attach(reserved: Iterable[ReservedName], name: bytes, uid: int) -> bool:
    """Whether *uid* may have the local or global *name*: no rule is about it, or one of those that are names the user."""
    if uid == 0:
        return True
    text = name.decode("utf-8", "surrogateescape")
    about = [rule for rule in reserved if fnmatchcase(text, rule.pattern)]
    return not about or any(uid in rule.uids for rule in about)
