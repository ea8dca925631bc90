"""The table [access] of the configuration as the rules that resource managers ask: `resmgr.access.Policy`."""

from __future__ import annotations

from collections.abc import Iterator

from qnetpy.config import Access
from qnetpy.settings import SettingsError
from resmgr.access import Export, Grant, Policy, UserRule, Verb
from resmgr.attachments import AttachRule
from resmgr.users import Accounts

EVERY_NODE = "*"


def _grants(access: Access) -> Iterator[Grant]:
    for verb, who in ((Verb.SEND, access.send), (Verb.SPAWN, access.spawn), (Verb.ADMINISTER, access.administer)):
        if EVERY_NODE in who.nodes:
            yield Grant(verb.value)
        elif who.nodes or who.roles:
            yield Grant(verb.value, who.nodes, who.roles)


def attach_rules(access: Access, accounts: Accounts) -> tuple[AttachRule, ...]:
    """Who may attach managers besides root. SettingsError for an account that this machine does not have."""
    rules: list[AttachRule] = []
    for manager in access.managers:
        uids: set[int] = set()
        for name in manager.users:
            account = accounts.user(name)
            if account is None and not name.isdecimal():
                raise SettingsError(f"configuration: access.managers: no account {name!r} on this machine")
            uids.add(int(name) if account is None else account.uid)
        rules.append(AttachRule(manager.path, frozenset(uids)))
    return tuple(rules)


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
            )
            for rule in access.users
        ]
        exports = [Export(export.path, export.verbs, export.nodes, export.roles) for export in access.exports]
        return Policy(accounts, users=rules, exports=exports, grants=_grants(access))
    except ValueError as error:
        raise SettingsError(f"{source}: access: {error}") from error
