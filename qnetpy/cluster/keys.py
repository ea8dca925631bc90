"""What stands in each node's /etc/qnet: its identity and its configuration. A cluster's root exists only while its nodes get their keys."""

from __future__ import annotations

import os
import time
from pathlib import Path

import attrs

from qnetpy import settings
from qnetpy.cluster import guardian
from qnetpy.cluster.topology import Plan, node_config
from qnetpy.config import ETHERTYPE_DEFAULT, UserRule
from qnetpy.identity.authority import NODE_VALIDITY, Authority, issue_identity, make_authority
from qnetpy.identity.keyfiles import save_identity

DAY = 86400.0
AGE = 30 * DAY
"""How long ago the roots were made, so that certificates can have expired since."""
ETHERTYPE = ETHERTYPE_DEFAULT


def fit(plan: Plan) -> Plan:
    """*plan* as it can be here: in a user namespace that has root only there is nobody else, so root of one node stays root on the others,
    programs that others start run as root, and the topology's users are left out. Unchanged for root, and where newuidmap gives an
    ordinary user more users."""
    if os.geteuid() == 0 or guardian.subordinate_users():
        return plan
    nodes = {}
    for name, node in plan.nodes.items():
        own = node.spec.config
        users = (UserRule(root="root"),) if own.access.users == (UserRule(),) else own.access.users
        spawn = own.access.spawn if own.access.spawn.users else attrs.evolve(own.access.spawn, users=("root",))
        config = attrs.evolve(own, access=attrs.evolve(own.access, users=users, spawn=spawn))
        nodes[name] = attrs.evolve(node, spec=attrs.evolve(node.spec, config=config))
    return attrs.evolve(plan, nodes=nodes, topology=attrs.evolve(plan.topology, users=()))


def make(plan: Plan, folder: Path) -> None:
    """Write FOLDER/NODE/{qnet.toml, keys} for every node of *plan*. Blocks on the disk."""
    now = time.time()
    authorities: dict[str, Authority] = {}
    for node in plan.nodes.values():
        spec = node.spec
        own = folder / node.name
        own.mkdir(parents=True, mode=0o755)
        if spec.certificate != "none":
            cluster = spec.cluster or plan.name
            if cluster not in authorities:
                authorities[cluster] = make_authority(cluster, now - AGE)
            expired = spec.certificate == "expired"
            issued, validity = (now - AGE, DAY) if expired else (now, NODE_VALIDITY)
            save_identity(own, issue_identity(authorities[cluster], spec.node or node.name, spec.roles, issued, validity))
        (own / "qnet.toml").write_text(settings.dump(node_config(plan, node)), encoding="utf-8")
