"""The table [access] of the configuration as the rules that resource managers ask: `resmgr.access.Policy`."""

from __future__ import annotations

from collections.abc import Iterator

from qnetpy.config import Access
from qnetpy.settings import SettingsError
from resmgr.access import Export, Grant, Policy, UserRule, Verb
from resmgr.users import Accounts

EVERY_NODE = "*"
EVERYBODY = "*"


def _grants(access: Access) -> Iterator[Grant]:
    pairs = (
        (Verb.SEND, access.send),
        (Verb.SPAWN, access.spawn),
        (Verb.ADMINISTER, access.administer),
        (Verb.ANNOUNCE, access.announce),
    )
    for verb, who in pairs:
        if EVERY_NODE in who.nodes:
            yield Grant(verb.value)
        elif who.nodes or who.roles:
            yield Grant(verb.value, who.nodes, who.roles)


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


def announcers(access: Access, accounts: Accounts, own: int, source: str = "configuration") -> frozenset[int] | None:
    """The users that may attach global names, *own* (the daemon's) among them; None: everybody. SettingsError for no account."""
    if EVERYBODY in access.announce.users:
        return None
    found = {0, own}
    for name in access.announce.users:
        account = accounts.user(name)
        if account is None and not name.isdecimal():
            raise SettingsError(f"{source}: access.announce.users: no account {name!r} on this machine")
        found.add(int(name) if account is None else account.uid)
    return frozenset(found)
