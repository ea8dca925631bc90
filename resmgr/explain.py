"""Why a client may do what it may: the rules that decide of one client and one path, in words.

Rules are counted from 1, in the order of the configuration, as `[[access.users]] 2` and `[[access.exports]] 3`.
"""

from __future__ import annotations

import os

import attrs

from resmgr.access import Export, MappedUser, Policy, UserRule, Verb
from resmgr.channel import ND_LOCAL, ClientInfo


@attrs.frozen
class Decision:
    """`user`: who the client is here, or the errno that refuses it. `verbs` are the export's; the kernel decides besides."""

    user: MappedUser | int
    who: str
    """One sentence: which rule says so."""
    verbs: frozenset[Verb]
    devices: frozenset[str]
    setuid: bool
    what: str
    """One sentence: which export decides, or that none does."""


def decide(policy: Policy, info: ClientInfo, path: bytes) -> Decision:
    """What the rules say of *info* at the absolute *path*. ValueError for a path that is none."""
    scope = policy.scope(info).walk(Export(path).path)
    none: frozenset[str] = frozenset()
    return Decision(
        policy.user(info),
        who(policy, info),
        frozenset() if scope is None else scope.verbs,
        none if scope is None else scope.devices,
        scope is not None and scope.setuid,
        what(policy, info, path),
    )


def who(policy: Policy, info: ClientInfo) -> str:
    """Which rule says who *info* is here."""
    if info.nd == ND_LOCAL:
        return "programs of this node are themselves"
    found = policy.rule(info)
    if found is None:
        return f"no rule of [[access.users]] is for {_node(info)}"
    at, rule = found
    user = policy.user(info)
    place = f"[[access.users]] {at + 1} ({_mapping(rule)})"
    if isinstance(user, int):
        return f"{place} refuses: {os.strerror(user)}"
    return f"{place}: user {info.credentials.uid} there is user {user.uid} here, groups {', '.join(map(str, (user.gid, *user.groups)))}"


def what(policy: Policy, info: ClientInfo, path: bytes) -> str:
    """Which export decides about *path*."""
    if info.nd == ND_LOCAL:
        return "exports are for other nodes"
    names = Export(path).path
    covering = [(at, export) for at, export in policy.exports(info) if export.path == names[: len(export.path)]]
    shown = _text(names)
    if not covering:
        others = [
            f"[[access.exports]] {at + 1} ({_text(export.path)}) is for {_whom(export)}"
            for at, export in enumerate(policy.every_export)
            if export.path == names[: len(export.path)]
        ]
        return f"no export covers {shown} for {_node(info)}" + (f"; {'; '.join(others)}" if others else "")
    deepest = max(len(export.path) for _, export in covering)
    deciding = [(at, export) for at, export in covering if len(export.path) == deepest]
    verbs = sorted({verb.value for _, export in deciding for verb in export.verbs})
    places = ", ".join(f"[[access.exports]] {at + 1}" for at, _ in deciding)
    return f"{places} ({_text(deciding[0][1].path)}) {'allows ' + ' and '.join(verbs) if verbs else 'hides it'}"


def _mapping(rule: UserRule) -> str:
    return f"{rule.mapping}, root is {rule.root}" if rule.root and rule.mapping in ("identity", "table", "names") else rule.mapping


def _whom(export: Export) -> str:
    parts = [("nodes", export.nodes), ("roles", export.roles), ("users", export.users)]
    return " and ".join(f"{name} {', '.join(sorted(values))}" for name, values in parts if values) or "everybody"


def _node(info: ClientInfo) -> str:
    roles = f" with roles {', '.join(sorted(info.roles))}" if info.roles else ""
    return f"user {info.credentials.uid} of node {info.node}{roles}"


def _text(names: tuple[bytes, ...]) -> str:
    return "/" + b"/".join(names).decode("utf-8", "backslashreplace")
