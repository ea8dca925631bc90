"""What the verb `spawn` covers for clients of other nodes: as whom they may run which programs, with which arguments and priority.

A start is allowed if one rule allows it: the rule names the client's node or one of its roles (or nobody: everybody who has the verb), the
user that the program runs as, the command, and a nice value at least as high as asked for. docs/protocol/spawn.md defines the patterns.

A name that fits a pattern decides only if what it leads to is what the administrator meant. `changeable` finds the directory, link or file
on the way that the user could have changed; then the start is refused. So between the check and the execution nothing can change either,
except by who is trusted anyway.
"""

from __future__ import annotations

import enum
import os
import re
import shlex
import stat

import attrs

from resmgr.access import MappedUser
from resmgr.channel import ClientInfo
from resmgr.procmgr.message import SPAWN_ROOT, Spawn

MORE = "..."
"""The last word of a pattern: any further arguments."""
ACCESS_LIST = "system.posix_acl_access"
LINKS_MAX = 40
"""As Linux: symbolic links on the way to a program."""


class Refusal(enum.StrEnum):
    """Why a request was refused; counted."""

    BAD_MESSAGE = "bad_message"
    NOT_GRANTED = "not_granted"
    NO_USER = "no_user"
    NO_RULE = "no_rule"
    USER_NOT_ALLOWED = "user_not_allowed"
    COMMAND_NOT_ALLOWED = "command_not_allowed"
    PRIORITY_NOT_ALLOWED = "priority_not_allowed"
    TOO_MANY = "too_many"
    NO_AUDIT = "no_audit"
    NOT_STARTED = "not_started"


def _glob(word: str) -> re.Pattern[bytes]:
    """`*` and `?` do not match a slash, `**` matches everything, `[...]` is one byte of a set, which is no slash either."""
    out, at, data = [], 0, os.fsencode(word)
    while at < len(data):
        byte = data[at : at + 1]
        closing = data.find(b"]", at + 2) if byte == b"[" else -1
        if data.startswith(b"**", at):
            out.append(b".*")
            at += 2
        elif closing > 0:
            inner = data[at + 1 : closing]
            negated = inner.startswith(b"!")
            inner = re.sub(rb"([\\\[\]^&~|])", rb"\\\1", inner[1:] if negated else inner)
            out.append(b"(?!/)[" + (b"^" if negated else b"") + inner + b"]")
            at = closing + 1
        else:
            out.append({b"*": b"[^/]*", b"?": b"[^/]"}.get(byte, re.escape(byte)))
            at += 1
    return re.compile(b"".join(out) + rb"\Z", re.DOTALL)


@attrs.frozen
class CommandPattern:
    """One entry of a list of commands. `arguments` None: any."""

    program: re.Pattern[bytes]
    arguments: tuple[re.Pattern[bytes], ...] | None = None
    more: bool = False

    @classmethod
    def parse(cls, text: str) -> CommandPattern:
        """Words as a shell takes them apart: the program's absolute path, then what the arguments must be. ValueError for what is none."""
        words = shlex.split(text)
        if not words or not words[0].startswith("/"):
            raise ValueError("not an absolute path")
        if not _plain(os.fsencode(words[0])):
            raise ValueError("a path with empty or dot components")
        try:
            if len(words) == 1:
                return cls(_glob(words[0]))
            more = words[-1] == MORE
            return cls(_glob(words[0]), tuple(map(_glob, words[1 : -1 if more else None])), more)
        except re.error as error:
            raise ValueError(f"not a pattern: {error}") from None

    def fits(self, arguments: tuple[bytes, ...]) -> bool:
        """*arguments* with the program's name first."""
        if not _plain(arguments[0]) or not self.program.match(arguments[0]):
            return False
        if self.arguments is None:
            return True
        given = arguments[1:]
        if len(given) < len(self.arguments) or (len(given) > len(self.arguments) and not self.more):
            return False
        return all(pattern.match(word) and _inside(pattern, word) for pattern, word in zip(self.arguments, given, strict=False))


def _plain(path: bytes) -> bool:
    """An absolute path that says where it leads: no empty, `.` or `..` components."""
    return path.startswith(b"/") and not {b"", b".", b".."} & set(path[1:].split(b"/"))


def _inside(pattern: re.Pattern[bytes], word: bytes) -> bool:
    """A wildcard for names below a directory does not lead out of it."""
    return b".." not in word.split(b"/") or pattern.pattern == re.escape(word) + rb"\Z"


@attrs.frozen
class SpawnRule:
    """See the head of this file."""

    nodes: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    users: frozenset[int] | None = None
    """uids of this node under which programs may run. None: every one but 0."""
    commands: tuple[CommandPattern, ...] | None = None
    """None: every program, also those that the client's node brings (SPAWN_ROOT)."""
    nice: int = 0
    """The lowest nice value."""

    def refuse(self, user: MappedUser, spawn: Spawn) -> Refusal | None:
        if (user.uid == 0) if self.users is None else (user.uid not in self.users):
            return Refusal.USER_NOT_ALLOWED
        if self.commands is not None and (spawn.flags & SPAWN_ROOT or not any(pattern.fits(spawn.arguments) for pattern in self.commands)):
            return Refusal.COMMAND_NOT_ALLOWED
        if spawn.nice < self.nice:
            return Refusal.PRIORITY_NOT_ALLOWED
        return None


@attrs.frozen
class SpawnRules:
    """All rules of a node. The default limits nothing, except that root is never meant by it: who may start anything is the policy's."""

    rules: tuple[SpawnRule, ...] = (SpawnRule(),)

    def decide(self, info: ClientInfo, user: MappedUser, spawn: Spawn) -> SpawnRule | Refusal:
        """The rule that allows it, or why the one that came furthest does not."""
        reasons = [Refusal.NO_RULE]
        for rule in self.rules:
            if (rule.nodes or rule.roles) and info.node not in rule.nodes and rule.roles.isdisjoint(info.roles):
                continue
            refusal = rule.refuse(user, spawn)
            if refusal is None:
                return rule
            reasons.append(refusal)
        return max(reasons, key=list(Refusal).index)


def changeable(path: bytes, user: MappedUser) -> bytes:
    """What on the way to the program at *path* the user could change: the first such directory, link or file; empty if nothing.

    Root can change everything, so nothing is looked at for it. OSError when it is not there. Reads directories: blocking.
    """
    if user.uid == 0:
        return b""
    left = [name for name in path.split(b"/") if name][::-1]
    here = b"/"
    groups = {user.gid, *user.groups}
    links = 0
    if _may_write(here, os.lstat(here), user.uid, groups):
        return here
    while left:
        name = left.pop()
        if name == b"..":
            here = os.path.dirname(here)
            continue
        there = os.path.join(here, name)
        found = os.lstat(there)
        if _may_write(there, found, user.uid, groups):
            return there
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > LINKS_MAX:
                raise OSError(40, os.strerror(40), there)
            target = os.readlink(there)
            here = b"/" if target.startswith(b"/") else here
            left += [name for name in target.split(b"/") if name not in (b"", b".")][::-1]
        else:
            here = there
    return b""


def _may_write(path: bytes, found: os.stat_result, uid: int, groups: set[int]) -> bool:
    """Its owner can always give himself the right. In a sticky directory what there is belongs to its owners, who are looked at next. What
    an access list allows shows in the group's bits; whom, is not looked up.
    """
    if found.st_uid == uid:
        return True
    mode = found.st_mode
    if stat.S_ISLNK(mode) or (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
        return False
    return bool(mode & stat.S_IWOTH or (mode & stat.S_IWGRP and (found.st_gid in groups or _has_list(path))))


def _has_list(path: bytes) -> bool:
    try:
        return bool(os.getxattr(path, ACCESS_LIST, follow_symlinks=False))
    except OSError:
        return False
