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

How owners of files are told to a client, and what numbers it may give files to, is the same mapping: `resmgr.owners`. What is not exported
is refused (`NotExported`, EACCES) without a look at the disk; what an export hides (no verbs) does not exist (ENOENT).
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterable, Mapping

import attrs

from resmgr.channel import ND_LOCAL, ClientInfo
from resmgr.errors import Misuse
from resmgr.owners import NOBODY, NOGROUP, Owners, both_ways
from resmgr.users import Account, Accounts

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
    """One mapping. `mapping` is `identity`, `table`, `names` (who has the same name), `squash` (everybody is nobody), `none` (refused
    with EPERM) or `all:USER`.

    `users` maps a remote uid to a local account (name or digits), `groups` a remote gid to a local group; both only for `table`, where a
    uid that is not in the table is nobody. `root` says whom remote uid 0 becomes under `identity`, `table` and `names`: None is nobody, and
    `root` has to be said explicitly. `all:root` says it, too. `nobody` is the account of whoever is nobody; None: number 65534.
    """

    mapping: str = attrs.field(default="identity")
    nodes: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    roles: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    users: Mapping[int, str] = attrs.field(factory=dict)
    groups: Mapping[int, str] = attrs.field(factory=dict)
    root: str | None = None
    nobody: str | None = None

    @mapping.validator
    def _known(self, attribute: object, value: str) -> None:
        if value not in ("identity", "table", "names", "squash", "none") and not (value.startswith("all:") and len(value) > 4):
            raise ValueError(f"user mapping {value!r} is not one of identity, table, names, squash, none, all:USER")


def _path(value: str | bytes) -> tuple[bytes, ...]:
    path = value.encode() if isinstance(value, str) else value
    if not path.startswith(b"/"):
        raise ValueError(f"export {value!r} is not an absolute path")
    names = tuple(name for name in path.split(b"/") if name)
    if b"." in names or b".." in names or b"\0" in path:
        raise ValueError(f"export {value!r} has a dot component or a NUL")
    return names


def _text(names: tuple[bytes, ...]) -> str:
    return "/" + b"/".join(names).decode("utf-8", "backslashreplace")


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
    """A subtree of the node's pathname space and what may be done there. No verbs: hidden, though a wider export would show it.

    With *users* it is for these alone: mapped users, names or numbers of this machine, and `@GROUP` for the members of a group.
    """

    path: tuple[bytes, ...] = attrs.field(converter=_path)
    verbs: frozenset[Verb] = attrs.field(default=frozenset({Verb.READ}), converter=_file_verbs)
    nodes: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    roles: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    devices: frozenset[str] = attrs.field(default=DEVICES_DEFAULT, converter=_device_words)
    """Special files that can be opened: words of DEVICE_CLASSES, and paths of device files of this machine (shell patterns)."""
    users: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    setuid: bool = False
    """Files may be given set-user-ID and set-group-ID bits."""


@attrs.frozen
class Grant:
    """A node-level verb for some nodes or roles, or for everybody in the cluster."""

    verb: Verb = attrs.field(converter=_node_verb)
    nodes: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    roles: frozenset[str] = attrs.field(default=frozenset(), converter=_names)


class NotExported(PermissionError):
    """EACCES: no export covers `path` (absolute, in the pathname space) for this client."""

    def __init__(self, path: bytes) -> None:
        super().__init__(errno.EACCES, "not exported")
        self.path = path


class Scope:
    """The export tree at one directory, for one client: what may be done here, and where below that changes.

    `step` goes down by one name and gives None for what does not exist for the client; `refusal` says why, `enter` and `enter_all` raise
    it. Scopes are shared and never change.
    """

    __slots__ = ("alike", "children", "devices", "fixed", "hidden", "mixed", "own", "path", "read", "setuid", "verbs", "write")

    def __init__(
        self,
        verbs: frozenset[Verb],
        children: Mapping[bytes, Scope] | None = None,
        devices: frozenset[str] = frozenset(),
        *,
        setuid: bool = False,
        hidden: bool = False,
        path: tuple[bytes, ...] = (),
        mixed: bool = False,
        own: bool = True,
    ) -> None:
        self.verbs = verbs
        self.devices = devices
        self.setuid = setuid
        self.hidden = hidden
        """An export took everything away here, so there is nothing to be told of."""
        self.path = path
        """Where it is; not told for what lies below the last export."""
        self.mixed = mixed
        """What may be done here depends on which user of the node asks."""
        self.own = own
        """An export of the client begins here or below; otherwise only some of other users of its node."""
        self.read = Verb.READ in verbs
        self.write = Verb.WRITE in verbs
        self.children = dict(children) if children else None
        self.fixed = self.children is None
        """Nothing changes below: the whole subtree has these verbs."""
        self.alike: bool = not mixed and (children is None or all(child.alike for child in children.values()))
        """Every user of the client's node may do the same, here and below."""

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
            return Scope(self.verbs, None, self.devices, setuid=self.setuid, mixed=self.mixed)
        return self if self.verbs else None

    def refusal(self, name: bytes) -> OSError:
        """What a client is told that asks for *name*, where `step` gives None."""
        child = None if self.children is None else self.children.get(name)
        if self.hidden if child is None else child.hidden:
            return FileNotFoundError(errno.ENOENT, "hidden")
        return NotExported(b"/" + b"/".join((*self.path, name)))

    def enter(self, name: bytes) -> Scope:
        """`step`; OSError for what is not there for the client."""
        if self.fixed and self.verbs:
            return self
        below = self.step(name)
        if below is None:
            raise self.refusal(name)
        return below

    def enter_all(self, names: Iterable[bytes]) -> Scope:
        """`enter` by each name in turn."""
        scope = self
        for name in names:
            if scope.fixed and scope.verbs:
                return scope
            scope = scope.enter(name)
        return scope

    def walk(self, names: Iterable[bytes]) -> Scope | None:
        scope: Scope | None = self
        for name in names:
            if scope is None or (scope.fixed and scope.verbs):
                return scope
            scope = scope.step(name)
        return scope

    def pinned(self, name: bytes) -> bool:
        """An export begins at *name* or below it: it must not be moved, replaced or removed through this tree."""
        child = None if self.children is None else self.children.get(name)
        return child is not None and child.own


SCOPE_ALL = Scope(FILE_VERBS, None, frozenset({ALL_DEVICES}), setuid=True)
SCOPE_NONE = Scope(NO_VERBS)


_Row = tuple[tuple[bytes, ...], Export, bool]
"""An export of the node, with what is left of its path before it, and whether it is this user's after it."""


def _build(table: list[_Row], parent: Scope, path: tuple[bytes, ...] = ()) -> Scope:
    verbs, devices, setuid, hidden = parent.verbs, parent.devices, parent.setuid, parent.hidden
    every = [(export, own) for left, export, own in table if not left]
    mixed = any(export.users for export, _ in every) if every else parent.mixed
    here = [export for export, own in every if own]
    if here:
        verbs = frozenset().union(*(export.verbs for export in here))
        devices = frozenset().union(*(export.devices for export in here))
        setuid = any(export.setuid for export in here)
        hidden = not verbs
    below: dict[bytes, list[_Row]] = {}
    for left, export, own in table:
        if left:
            below.setdefault(left[0], []).append((left[1:], export, own))
    begins = any(own for _, _, own in table)
    alone = Scope(verbs, None, devices, setuid=setuid, hidden=hidden, path=path, mixed=mixed, own=begins)
    if not below:
        return alone
    children = {name: _build(rest, alone, (*path, name)) for name, rest in below.items()}
    return Scope(verbs, children, devices, setuid=setuid, hidden=hidden, path=path, mixed=mixed, own=begins)


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
            for group in rule.groups.values():
                if accounts.group(group) is None:
                    raise ValueError(f"user mapping {rule.mapping!r}: no group {group!r} on this machine")
        for export in self._exports:
            for name in sorted(export.users):
                known = accounts.group(name[1:]) if name.startswith("@") else accounts.user(name)
                if known is None and not name.isdecimal():
                    raise ValueError(
                        f"export {_text(export.path)}: no {'group' if name.startswith('@') else 'account'} {name.lstrip('@')!r} here"
                    )

    @staticmethod
    def _named(rule: UserRule) -> list[str]:
        names = [name for name in (rule.root, rule.nobody) if name is not None]
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
        found = self.rule(info)
        return errno.EPERM if found is None else self._map(found[1], info.node, claimed.uid, claimed.gid, info.nd)

    def rule(self, info: ClientInfo) -> tuple[int, UserRule] | None:
        """The mapping that is *info*'s, with its place among all, from 0; None: there is none, or it is of this node."""
        if info.nd == ND_LOCAL:
            return None
        return next(((at, rule) for at, rule in enumerate(self._users) if _applies(rule.nodes, rule.roles, info)), None)

    def _map(self, rule: UserRule, node: str, uid: int, gid: int, nd: int) -> MappedUser | int:
        mapping = rule.mapping
        if mapping == "none" or not 0 <= uid <= ID_MAX:
            return errno.EPERM
        if mapping == "squash":
            return self._nobody(rule, nd)
        if mapping.startswith("all:"):
            return self._local(mapping[4:], None, nd)
        if uid == 0 and not (mapping == "table" and 0 in rule.users):
            return self._nobody(rule, nd) if rule.root is None else self._local(rule.root, None, nd)
        if mapping == "table":
            name = rule.users.get(uid)
            if name is None:
                return self._nobody(rule, nd)
            group = rule.groups.get(gid)
            return self._local(name, None if group is None else self._accounts.group_now(group, nd), nd)
        if mapping == "names":
            return self._named_alike(rule, node, uid, gid, nd)
        account = self._accounts.user_now(uid, nd)
        if account is None:
            return MappedUser(uid, NOGROUP)
        return _with_group(account, gid)

    def _named_alike(self, rule: UserRule, node: str, uid: int, gid: int, nd: int) -> MappedUser | int:
        far = self._accounts.far
        if far is None:
            return self._nobody(rule, nd)
        number = far.table(node).users.get(uid)
        if number is None:
            far.again(node)
        account = None if number is None else self._accounts.user_now(number, nd)
        return self._nobody(rule, nd) if account is None else _with_group(account, far.table(node).groups.get(gid))

    def _nobody(self, rule: UserRule, nd: int) -> MappedUser | int:
        return NOBODY_USER if rule.nobody is None else self._local(rule.nobody, None, nd)

    def owners(self, info: ClientInfo) -> Owners | None:
        """How *info* is told owners, and what its numbers mean here; None: as they are. The user may not be refused (`user`)."""
        found = self.rule(info)
        user = self.user(info)
        if found is None or isinstance(user, int) or found[1].mapping == "identity":
            return None
        rule, claimed = found[1], info.credentials
        nobody = self._nobody(rule, info.nd)
        stands = NOBODY_USER if isinstance(nobody, int) else nobody
        users: dict[int, int] = {}
        groups: dict[int, int] = {}
        if rule.mapping == "table":
            for number, name in rule.users.items():
                account = self._accounts.user_now(name, info.nd)
                if account is not None or name.isdecimal():
                    users[number] = int(name) if account is None else account.uid
            for number, name in rule.groups.items():
                gid = self._accounts.group_now(name, info.nd)
                if gid is not None:
                    groups[number] = gid
        if rule.mapping == "names" and self._accounts.far is not None:
            table = self._accounts.far.table(info.node)
            users.update(table.users)
            groups.update(table.groups)
        users_out, users_in = both_ways(users, claimed.uid, user.uid, stands.uid)
        groups_out, groups_in = both_ways(groups, claimed.gid, user.gid, stands.gid)
        return Owners(users_out, users_in, groups_out, groups_in)

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
        own = {at for at, _ in self.exports(info)}
        table: list[_Row] = [
            (export.path, export, at in own) for at, export in enumerate(self._exports) if _applies(export.nodes, export.roles, info)
        ]
        names = _path(prefix)
        return (_build(table, SCOPE_NONE).walk(names) if table else None) or Scope(NO_VERBS, path=names)

    @property
    def every_export(self) -> tuple[Export, ...]:
        return self._exports

    @property
    def every_rule(self) -> tuple[UserRule, ...]:
        return self._users

    def exports(self, info: ClientInfo) -> list[tuple[int, Export]]:
        """The exports that are for *info*, each with its place among all, from 0."""
        found: list[tuple[int, Export]] = []
        user: MappedUser | int | None = None
        for at, export in enumerate(self._exports):
            if not _applies(export.nodes, export.roles, info):
                continue
            if export.users:
                if user is None:
                    user = self.user(info)
                if isinstance(user, int) or not self._among(export.users, user, info.nd):
                    continue
            found.append((at, export))
        return found

    def _among(self, names: frozenset[str], user: MappedUser, nd: int) -> bool:
        for name in names:
            if name.startswith("@"):
                gid = self._accounts.group_now(name[1:], nd)
                if gid is not None and (gid == user.gid or gid in user.groups):
                    return True
                continue
            account = self._accounts.user_now(name, nd)
            if user.uid == (account.uid if account is not None else int(name) if name.isdecimal() else -1):
                return True
        return False

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
