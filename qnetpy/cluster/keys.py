"""What stands in each node's /etc/qnet: its identity and its configuration. A cluster's root exists only while its nodes get their keys."""

from __future__ import annotations

import time
from pathlib import Path

from qnetpy import settings
from qnetpy.cluster.topology import Plan, node_config
from qnetpy.identity.authority import NODE_VALIDITY, Authority, issue_identity, make_authority
from qnetpy.identity.store import save_identity

DAY = 86400.0
AGE = 30 * DAY
"""How long ago the roots were made, so that certificates can have expired since."""


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
