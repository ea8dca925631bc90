"""Who remote clients become on this node, what they may see of its files, and what else they may do (architecture: identity, exports,
verbs).

QNX's Qnet trusts the uid in the message and knows only `maproot` and `mapany`. Here nothing of a remote client's claim is believed beyond
what a rule says, and what no rule grants does not exist:

- a `UserRule` maps the uid that the client's node claims to an account of this machine. Root becomes nobody unless a rule names root;
- an `Export` opens a subtree with the verbs read and write; without exports a remote client sees no file at all. `devices` says which
  of the device files and FIFOs in it can be opened: they reach further than their bytes;
- a `Grant` gives the node-level verbs send, spawn, administer, announce. None is given by default.

Rules are tried in order, the first that names the client's node or one of its roles (or names neither: everybody) decides. Exports add up,
the longest path decides, so a narrower export can also take away. Local clients (nd 0) act as themselves and see everything.

Group numbers that a node claims are not believed: a mapped user's groups come from this machine's account database, and a claimed gid is
used only if that user is a member of it. A uid that has no account here gets nogroup.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterable, Mapping

import attrs

from resmgr.channel import ND_LOCAL, ClientInfo
from resmgr.errors import Misuse
from resmgr.users import Account, Accounts

NOBODY = 65534
NOGROUP = 65534
ID_MAX = 0xFFFFFFFE
"""The largest uid or gid. The number above it is nobody's: set*id(2) and chown(2) take it as "leave as it is", which here is root."""


class Verb(enum.StrEnum):
    """What a client may do. READ and WRITE belong to exports, the rest to the node."""

    READ = "read"
    WRITE = "write"
    SEND = "send"
    SPAWN = "spawn"
    ADMINISTER = "administer"
    ANNOUNCE = "announce"
    """Its global names count here."""


FILE_VERBS = frozenset({Verb.READ, Verb.WRITE})
NO_VERBS: frozenset[Verb] = frozenset()


@attrs.frozen
class MappedUser:
    """Who acts: numbers of this machine. `groups` are supplementary."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


NOBODY_USER = MappedUser(NOBODY, NOGROUP)


def _applies(nodes: frozenset[str], roles: frozenset[str], info: ClientInfo) -> bool:
    return (not nodes and not roles) or info.node in nodes or not roles.isdisjoint(info.roles)


def _names(values: Iterable[str]) -> frozenset[str]:
    return frozenset(values)


MEMORY = "memory"
"""null, zero, full, random, urandom."""
FIFOS = "fifos"
TERMINALS = "terminals"
"""Whatever has a terminal's driver: pseudo terminals, serial lines, consoles."""
ALL_DEVICES = "all"
DEVICE_CLASSES = frozenset({MEMORY, FIFOS, TERMINALS, ALL_DEVICES})
DEVICES_DEFAULT = (MEMORY, FIFOS)


def _device_words(values: Iterable[str]) -> frozenset[str]:
    words = frozenset(values)
    for word in sorted(words - DEVICE_CLASSES):
        if not word.startswith("/"):
            raise ValueError(f"devices: {word!r} is none of {', '.join(sorted(DEVICE_CLASSES))}, nor an absolute path")
    return words


@attrs.frozen
class UserRule:
    """One mapping. `mapping` is `identity`, `table`, `squash` (everybody is nobody), `none` (refused with EPERM) or `all:USER`.

    `users` maps a remote uid to a local account (name or digits), `groups` a remote gid to a local group; both only for `table`, where a
    uid that is not in the table is nobody. `root` says whom remote uid 0 becomes under `identity` and `table`: None is nobody, and
    `root` has to be said explicitly. `all:root` says it, too.
    """

    mapping: str = attrs.field(default="identity")
    nodes: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    roles: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    users: Mapping[int, str] = attrs.field(factory=dict)
    groups: Mapping[int, str] = attrs.field(factory=dict)
    root: str | None = None

    @mapping.validator
    def _known(self, attribute: object, value: str) -> None:
        if value not in ("identity", "table", "squash", "none") and not (value.startswith("all:") and len(value) > 4):
            raise ValueError(f"user mapping {value!r} is not one of identity, table, squash, none, all:USER")


def _path(value: str | bytes) -> tuple[bytes, ...]:
    path = value.encode() if isinstance(value, str) else value
    if not path.startswith(b"/"):
        raise ValueError(f"export {value!r} is not an absolute path")
    names = tuple(name for name in path.split(b"/") if name)
    if b"." in names or b".." in names or b"\0" in path:
        raise ValueError(f"export {value!r} has a dot component or a NUL")
    return names


def _file_verbs(values: Iterable[str]) -> frozenset[Verb]:
    verbs = frozenset(Verb(value) for value in values)
    if not verbs <= FILE_VERBS:
        raise ValueError(f"verbs {sorted(verbs - FILE_VERBS)} belong to the node, not to an export")
    return verbs


def _node_verb(value: str) -> Verb:
    verb = Verb(value)
    if verb in FILE_VERBS:
        raise ValueError(f"verb {verb.value} belongs to an export, not to the node")
    return verb


@attrs.frozen
class Export:
    """A subtree of the node's pathname space and what may be done there. No verbs: hidden, though a wider export would show it."""

    path: tuple[bytes, ...] = attrs.field(converter=_path)
    verbs: frozenset[Verb] = attrs.field(default=frozenset({Verb.READ}), converter=_file_verbs)
    nodes: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    roles: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    devices: frozenset[str] = attrs.field(default=DEVICES_DEFAULT, converter=_device_words)
    """Special files that can be opened: words of DEVICE_CLASSES, and paths of device files of this machine (shell patterns)."""


@attrs.frozen
class Grant:
    """A node-level verb for some nodes or roles, or for everybody in the cluster."""

    verb: Verb = attrs.field(converter=_node_verb)
    nodes: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    roles: frozenset[str] = attrs.field(default=frozenset(), converter=_names)


class Scope:
    """The export tree at one directory, for one client: what may be done here, and where below that changes.

    `step` goes down by one name and gives None for what does not exist for the client. Scopes are shared and never change.
    """

    __slots__ = ("children", "devices", "fixed", "read", "verbs", "write")

    def __init__(
        self, verbs: frozenset[Verb], children: Mapping[bytes, Scope] | None = None, devices: frozenset[str] = frozenset()
    ) -> None:
        self.verbs = verbs
        self.devices = devices
        self.read = Verb.READ in verbs
        self.write = Verb.WRITE in verbs
        self.children = dict(children) if children else None
        self.fixed = self.children is None
        """Nothing changes below: the whole subtree has these verbs."""

    @property
    def visible(self) -> bool:
        """Something can be done here, or a directory below leads to where something can."""
        return bool(self.verbs) or (self.children is not None and any(child.visible for child in self.children.values()))

    def step(self, name: bytes) -> Scope | None:
        if self.children is not None:
            child = self.children.get(name)
            if child is not None:
                return child if child.visible else None
            if not self.verbs:
                return None
            return Scope(self.verbs, None, self.devices)
        return self if self.verbs else None

    def walk(self, names: Iterable[bytes]) -> Scope | None:
        scope: Scope | None = self
        for name in names:
            if scope is None or (scope.fixed and scope.verbs):
                return scope
            scope = scope.step(name)
        return scope

    def pinned(self, name: bytes) -> bool:
        """An export begins at *name* or below it: it must not be moved, replaced or removed through this tree."""
        return self.children is not None and name in self.children


SCOPE_ALL = Scope(FILE_VERBS, None, frozenset({ALL_DEVICES}))
SCOPE_NONE = Scope(NO_VERBS)


_Row = tuple[tuple[bytes, ...], frozenset[Verb], frozenset[str]]
"""Path, verbs, devices of an export."""


def _build(table: list[_Row], inherited: frozenset[Verb], inherited_devices: frozenset[str] = frozenset()) -> Scope:
    verbs, devices = inherited, inherited_devices
    here = [row for row in table if not row[0]]
    if here:
        verbs = frozenset().union(*(row[1] for row in here))
        devices = frozenset().union(*(row[2] for row in here))
    below: dict[bytes, list[_Row]] = {}
    for path, own, served in table:
        if path:
            below.setdefault(path[0], []).append((path[1:], own, served))
    return Scope(verbs, {name: _build(rest, verbs, devices) for name, rest in below.items()}, devices)


class Policy:
    """The rules of one node. Immutable; a reload makes a new one. Making one may look accounts up; the calls do not block."""

    def __init__(
        self,
        accounts: Accounts,
        *,
        users: Iterable[UserRule] = (UserRule("identity"),),
        exports: Iterable[Export] = (),
        grants: Iterable[Grant] = (),
    ) -> None:
        self._accounts = accounts
        self._users = tuple(users)
        self._exports = tuple(exports)
        self._grants = tuple(grants)
        for rule in self._users:
            for name in self._named(rule):
                if accounts.user(name) is None and not name.isdecimal():
                    raise ValueError(f"user mapping {rule.mapping!r}: no account {name!r} on this machine")

    @staticmethod
    def _named(rule: UserRule) -> list[str]:
        names = [rule.root] if rule.root is not None else []
        if rule.mapping.startswith("all:"):
            names.append(rule.mapping[4:])
        if rule.mapping == "table":
            names.extend(rule.users.values())
        return names

    def user(self, info: ClientInfo) -> MappedUser | int:
        """Who *info* acts as here, or the errno with which it is refused (EPERM: no rule lets it in).

        Raises what `Accounts.user_now` raises, which is LookingUp for an account that is not known yet.
        """
        claimed = info.credentials
        if info.nd == ND_LOCAL:
            return MappedUser(claimed.uid, claimed.gid, claimed.groups)
        for rule in self._users:
            if _applies(rule.nodes, rule.roles, info):
                return self._map(rule, claimed.uid, claimed.gid, info.nd)
        return errno.EPERM

    def _map(self, rule: UserRule, uid: int, gid: int, nd: int) -> MappedUser | int:
        mapping = rule.mapping
        if mapping == "none" or not 0 <= uid <= ID_MAX:
            return errno.EPERM
        if mapping == "squash":
            return NOBODY_USER
        if mapping.startswith("all:"):
            return self._local(mapping[4:], None, nd)
        if uid == 0 and not (mapping == "table" and 0 in rule.users):
            return NOBODY_USER if rule.root is None else self._local(rule.root, None, nd)
        if mapping == "table":
            name = rule.users.get(uid)
            if name is None:
                return NOBODY_USER
            group = rule.groups.get(gid)
            return self._local(name, None if group is None else self._accounts.group_now(group, nd), nd)
        account = self._accounts.user_now(uid, nd)
        if account is None:
            return MappedUser(uid, NOGROUP)
        return _with_group(account, gid)

    def _local(self, name: str, gid: int | None, nd: int) -> MappedUser | int:
        account = self._accounts.user_now(name, nd)
        if account is None:
            return MappedUser(int(name), NOGROUP) if name.isdecimal() else errno.EPERM
        return _with_group(account, gid)

    def verbs(self, info: ClientInfo, path: bytes) -> frozenset[Verb]:
        """What *info* may do at the absolute *path*: a subset of read and write."""
        scope = self.scope(info).walk(_path(path))
        return NO_VERBS if scope is None else scope.verbs

    def scope(self, info: ClientInfo, prefix: bytes = b"/") -> Scope:
        """The export tree below *prefix*, for walks. SCOPE_NONE when nothing there exists for the client."""
        if info.nd == ND_LOCAL:
            return SCOPE_ALL
        table = [(export.path, export.verbs, export.devices) for export in self._exports if _applies(export.nodes, export.roles, info)]
        if not table:
            return SCOPE_NONE
        return _build(table, NO_VERBS).walk(_path(prefix)) or SCOPE_NONE

    def may(self, info: ClientInfo, verb: Verb) -> bool:
        """Whether *info* may use a node-level verb. Local clients may all; what they may do is then decided by their uid."""
        if verb in FILE_VERBS:
            raise Misuse(f"{verb} depends on a path: ask verbs()")
        if info.nd == ND_LOCAL:
            return True
        return any(grant.verb is verb and _applies(grant.nodes, grant.roles, info) for grant in self._grants)


def _with_group(account: Account, gid: int | None) -> MappedUser:
    primary = gid if gid is not None and gid in account.groups else account.gid
    return MappedUser(account.uid, primary, tuple(group for group in account.groups if group != primary))
