"""What the verb `spawn` covers for clients of other nodes: as whom they may run which programs, with which arguments and priority, and what
they may see and signal.

A start is allowed if one rule allows it: the rule names the client's node or one of its roles (or nobody: everybody who has the verb), the
user that the program runs as, the command, and a nice value at least as high as asked for. docs/protocol/spawn.md defines the patterns.

A name that fits a pattern decides only if what it leads to is what the administrator meant. `changeable` finds the directory, link or file
on the way that the user could have changed; then the start is refused. So between the check and the execution nothing can change either,
except by who is trusted anyway. What else would make a listed program do something that the administrator did not mean (environment,
directory, terminal) is allowed by name only.

Who may start any program as a user may also see and signal what that user may; who may only start some, what his node has started.
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
from resmgr.procmgr.environment import harmless, refusal
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
    TERMINAL_NOT_ALLOWED = "terminal_not_allowed"
    DIRECTORY_NOT_ALLOWED = "directory_not_allowed"
    ENVIRONMENT_NOT_ALLOWED = "environment_not_allowed"
    SIGNAL_NOT_ALLOWED = "signal_not_allowed"
    PRIORITY_NOT_ALLOWED = "priority_not_allowed"
    TOO_MANY = "too_many"
    NO_AUDIT = "no_audit"
    NOT_STARTED = "not_started"


class Reach(enum.Enum):
    """Which processes are within a client's reach."""

    ALL = "whatever its user may see and signal"
    STARTED = "what its node has started as its user"


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
        program = _path_pattern(words[0] if words else "")
        if len(words) == 1:
            return cls(program)
        more = words[-1] == MORE
        return cls(program, tuple(map(_compiled, words[1 : -1 if more else None])), more)

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


def directory_pattern(text: str) -> re.Pattern[bytes]:
    """One entry of a list of directories: an absolute path, with wildcards. ValueError for what is none."""
    return _path_pattern(text)


def variable_pattern(text: str) -> re.Pattern[bytes]:
    """One entry of a list of variables: a name, with wildcards. ValueError for what is none."""
    if not text or "=" in text:
        raise ValueError("not the name of a variable")
    return _compiled(text)


def _path_pattern(text: str) -> re.Pattern[bytes]:
    if not text.startswith("/"):
        raise ValueError("not an absolute path")
    if not _plain(os.fsencode(text)):
        raise ValueError("a path with empty or dot components")
    return _compiled(text)


def _compiled(text: str) -> re.Pattern[bytes]:
    try:
        return _glob(text)
    except re.error as error:
        raise ValueError(f"not a pattern: {error}") from None


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
    environment: tuple[re.Pattern[bytes], ...] = ()
    """With commands: names of variables that may be sent besides the harmless ones."""
    directories: tuple[re.Pattern[bytes], ...] = ()
    """With commands: where programs may be started besides the home."""
    signal: bool = False
    """With commands: what its users run may be seen and signalled nevertheless."""

    def names(self, info: ClientInfo) -> bool:
        """Whether it is for clients of that node."""
        return not (self.nodes or self.roles) or info.node in self.nodes or not self.roles.isdisjoint(info.roles)

    def covers(self, user: MappedUser) -> bool:
        return user.uid != 0 if self.users is None else user.uid in self.users

    def refuse(self, user: MappedUser, spawn: Spawn) -> Refusal | None:
        if not self.covers(user):
            return Refusal.USER_NOT_ALLOWED
        refusal = None if self.commands is None else self._unlisted(self.commands, spawn)
        if refusal is None and spawn.nice < self.nice:
            return Refusal.PRIORITY_NOT_ALLOWED
        return refusal

    def _unlisted(self, commands: tuple[CommandPattern, ...], spawn: Spawn) -> Refusal | None:
        """What of it the list of commands, and what goes with that, does not allow."""
        if spawn.flags & SPAWN_ROOT or not any(pattern.fits(spawn.arguments) for pattern in commands):
            return Refusal.COMMAND_NOT_ALLOWED
        if spawn.terminal:
            return Refusal.TERMINAL_NOT_ALLOWED
        if spawn.directory and not (_plain(spawn.directory) and any(pattern.match(spawn.directory) for pattern in self.directories)):
            return Refusal.DIRECTORY_NOT_ALLOWED
        for variable in spawn.environment:
            name = variable.partition(b"=")[0]
            if not refusal(name, False) and not harmless(variable) and not any(pattern.match(name) for pattern in self.environment):
                return Refusal.ENVIRONMENT_NOT_ALLOWED
        return None


@attrs.frozen
class SpawnRules:
    """All rules of a node. The default limits nothing, except that root is never meant by it: who may start anything is the policy's."""

    rules: tuple[SpawnRule, ...] = (SpawnRule(),)

    def decide(self, info: ClientInfo, user: MappedUser, spawn: Spawn) -> SpawnRule | Refusal:
        """The rule that allows it, or why the one that came furthest does not."""
        reasons = [Refusal.NO_RULE]
        for rule in self.rules:
            if not rule.names(info):
                continue
            refusal = rule.refuse(user, spawn)
            if refusal is None:
                return rule
            reasons.append(refusal)
        return max(reasons, key=list(Refusal).index)

    def reach(self, info: ClientInfo, user: MappedUser) -> Reach | Refusal:
        """What of the user's processes a client may see and signal, or why nothing."""
        named = [rule for rule in self.rules if rule.names(info)]
        covering = [rule for rule in named if rule.covers(user)]
        if not covering:
            return Refusal.USER_NOT_ALLOWED if named else Refusal.NO_RULE
        return Reach.ALL if any(rule.commands is None or rule.signal for rule in covering) else Reach.STARTED


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
