"""The table [access] of the configuration as the rules that managers ask: `resmgr.access.Policy`, `resmgr.procmgr.rules.SpawnRules`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qnetpy.config import Access, Administer, Announce, Send, Spawn
from qnetpy.config import SpawnRule as SpawnSettings
from qnetpy.settings import SettingsError
from resmgr.access import Export, Grant, Policy, UserRule, Verb
from resmgr.attachments import AttachRule
from resmgr.names.reserved import ReservedName
from resmgr.procmgr.rules import CommandPattern, SpawnRule, SpawnRules, directory_pattern, variable_pattern
from resmgr.users import Accounts

EVERY_NODE = "*"
EVERYBODY = "*"


def _grants(access: Access) -> Iterator[Grant]:
    granted: list[tuple[Verb, Send | Administer | Announce | SpawnSettings]] = [
        (Verb.SEND, access.send),
        (Verb.ADMINISTER, access.administer),
        (Verb.ANNOUNCE, access.announce),
    ]
    granted += [(Verb.SPAWN, rule) for rule in _spawning(access.spawn)]
    for verb, who in granted:
        if EVERY_NODE in who.nodes:
            yield Grant(verb.value)
        elif who.nodes or who.roles:
            yield Grant(verb.value, who.nodes, who.roles)


def _uids(names: Iterable[str], accounts: Accounts, where: str) -> frozenset[int]:
    """SettingsError for an account that this machine does not have."""
    uids: set[int] = set()
    for name in names:
        account = accounts.user(name)
        if account is None and not name.isdecimal():
            raise SettingsError(f"{where}: no account {name!r} on this machine")
        uids.add(int(name) if account is None else account.uid)
    return frozenset(uids)


def attach_rules(access: Access, accounts: Accounts, source: str = "configuration") -> tuple[AttachRule, ...]:
    """Who may attach managers besides root. SettingsError for an account that this machine does not have."""
    where = f"{source}: access.managers"
    return tuple(AttachRule(manager.path, _uids(manager.users, accounts, where)) for manager in access.managers)


def reserved_names(access: Access, accounts: Accounts, source: str = "configuration") -> tuple[ReservedName, ...]:
    """Who may attach which names. SettingsError for an account that this machine does not have."""
    where = f"{source}: access.names"
    return tuple(ReservedName(pattern, _uids(rule.users, accounts, where)) for rule in access.names for pattern in rule.names)


def _spawning(spawn: Spawn) -> list[SpawnSettings]:
    return [spawn, *spawn.rules]


def spawn_rules(spawn: Spawn, accounts: Accounts, source: str = "configuration") -> SpawnRules:
    """What the verb spawn covers. SettingsError when a rule names an account that this machine does not have."""
    rules = []
    for rule in _spawning(spawn):
        if not rule.nodes and not rule.roles:
            continue
        users = _uids(rule.users, accounts, f"{source}: access.spawn.users")
        everybody = EVERY_NODE in rule.nodes
        rules.append(
            SpawnRule(
                frozenset() if everybody else frozenset(rule.nodes),
                frozenset() if everybody else frozenset(rule.roles),
                users or None,
                tuple(map(CommandPattern.parse, rule.commands)) if rule.commands else None,
                rule.nice,
                tuple(map(variable_pattern, rule.environment)),
                tuple(map(directory_pattern, rule.directories)),
                rule.signal,
            )
        )
    return SpawnRules(tuple(rules))


def policy(access: Access, accounts: Accounts, source: str = "configuration") -> Policy:
    """The rules of *access*. SettingsError when one names an account that this machine does not have."""
    try:
        rules = [
            UserRule(
                rule.mapping,
                rule.nodes,
                rule.roles,
                {int(uid): name for uid, name in rule.users.items()},
                {int(gid): name for gid, name in rule.groups.items()},
                rule.root or None,
                rule.nobody or None,
            )
            for rule in access.users
        ]
        exports = [
            Export(export.path, export.verbs, export.nodes, export.roles, export.devices, export.users, export.setuid)
            for export in access.exports
        ]
        return Policy(accounts, users=rules, exports=exports, grants=_grants(access))
    except ValueError as error:
        raise SettingsError(f"{source}: access: {error}") from error


def announcers(access: Access, accounts: Accounts, own: int, source: str = "configuration") -> frozenset[int] | None:
    """The users that may attach global names, *own* (the daemon's) among them; None: everybody. SettingsError for no account."""
    if EVERYBODY in access.announce.users:
        return None
    return frozenset({0, own}) | _uids(access.announce.users, accounts, f"{source}: access.announce.users")
