"""What `qnet exports` and `qnet access` ask the daemon.

    {"do": "exports"}    every rule, and what was refused
    {"do": "exports", "node": NODE}    the exports that are for that node
    {"do": "access", "node": NODE, "uid": N, "gid": N, "path": PATH}    what the rules say, and what the kernel says to the mapped user

The last tells who reads whose files, so root and the daemon's user alone may ask it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping

from qnetpy.nodes import NodeTable
from resmgr.access import MappedUser, UserRule
from resmgr.attachments import export_facts
from resmgr.channel import ClientInfo, Credentials, Nd
from resmgr.errors import ResmgrError
from resmgr.explain import decide
from resmgr.system import System
from resmgr.users import LookingUp

Answer = Callable[[Mapping[str, object]], None]
ACCESS_MODES = (("read", os.R_OK), ("write", os.W_OK), ("execute", os.X_OK))


class AccessFacts:
    """Answers of one node."""

    def __init__(self, system: System, nodes: NodeTable) -> None:
        self._system = system
        self._nodes = nodes

    def _info(self, node: str, uid: int, gid: int) -> ClientInfo:
        known = self._nodes.get(node)
        roles = frozenset[str]() if known is None else frozenset(known.roles)
        return ClientInfo(Nd(1), node, roles, Credentials(uid, gid), 0)

    def exports(self, request: Mapping[str, object], uid: int, everything: bool) -> Mapping[str, object]:
        """Everybody is told the same, but what was refused to whom is for root and the daemon's user."""
        policy, files = self._system.policy, self._system.files
        node = request.get("node")
        rows = []
        for at, export in enumerate(policy.every_export):
            if isinstance(node, str) and not self._for_node(node, export.nodes, export.roles):
                continue
            rows.append(
                {
                    "number": at + 1,
                    **export_facts(export),
                    "nodes": sorted(export.nodes),
                    "roles": sorted(export.roles),
                    "users": sorted(export.users),
                }
            )
        return {
            "exports": rows,
            "rules": [
                _rule_facts(at, rule)
                for at, rule in enumerate(policy.every_rule)
                if not isinstance(node, str) or self._for_node(node, rule.nodes, rule.roles)
            ],
            "known": not isinstance(node, str) or self._nodes.get(node) is not None,
            "served": files is not None,
            "refused": files.refusals.facts() if files is not None and everything else {},
        }

    def _for_node(self, node: str, nodes: frozenset[str], roles: frozenset[str]) -> bool:
        known = self._nodes.get(node)
        return (not nodes and not roles) or node in nodes or (known is not None and not roles.isdisjoint(known.roles))

    def access(self, request: Mapping[str, object], answer: Answer) -> None:
        node, uid, gid, path = (request.get(name) for name in ("node", "uid", "gid", "path"))
        if not isinstance(node, str) or not isinstance(uid, int) or not isinstance(gid, int) or not isinstance(path, str):
            answer({"error": "a node, a user's number, a group's and a path are needed"})
            return
        name = os.fsencode(path)
        info = self._info(node, uid, gid)
        try:
            decision = decide(self._system.policy, info, name)
        except LookingUp as error:
            error.then(lambda: self.access(request, answer))
            return
        except (ValueError, ResmgrError) as error:
            answer({"error": str(error)})
            return
        told: dict[str, object] = {
            "node": node,
            "known": self._nodes.get(node) is not None,
            "uid": uid,
            "path": path,
            "user": None if isinstance(decision.user, int) else decision.user.uid,
            "who": decision.who,
            "verbs": sorted(verb.value for verb in decision.verbs),
            "devices": sorted(decision.devices),
            "setuid": decision.setuid,
            "what": decision.what,
        }
        if isinstance(decision.user, int) or not decision.verbs:
            answer(told | {"kernel": None})
            return
        user = decision.user
        self._system.dispatch.call_blocking(
            lambda: self._kernel(user, name),
            lambda found: answer(told | {"kernel": {"error": str(found)} if isinstance(found, BaseException) else found}),
        )

    def _kernel(self, user: MappedUser, path: bytes) -> dict[str, object]:
        """What the kernel lets *user* do with *path* here; any thread."""
        files = self._system.files
        if files is None:
            return {"error": "files are not served here"}
        switch = files.switch

        def look() -> dict[str, object]:
            try:
                os.stat(path, follow_symlinks=False)
            except OSError as error:
                return {"errno": errno.errorcode.get(error.errno or 0, "?"), "error": error.strerror}
            return {word: os.access(path, mode, effective_ids=True) for word, mode in ACCESS_MODES}

        return switch.run(switch.identity(user), look)


def _rule_facts(at: int, rule: UserRule) -> dict[str, object]:
    return {
        "number": at + 1,
        "mapping": rule.mapping,
        "nodes": sorted(rule.nodes),
        "roles": sorted(rule.roles),
        "root": rule.root or "",
        "nobody": rule.nobody or "",
        "users": {str(number): name for number, name in rule.users.items()},
        "groups": {str(number): name for number, name in rule.groups.items()},
    }
