"""Names that stand in certificates: nodes, clusters and roles are DNS labels (RFC 1123 section 2.1), in lower case.

QNX takes host names as they come, with a domain. Here a name ends up in a path component, in a certificate and in zone-like lookups, so
only what is safe in all three is a name, and two spellings of one name cannot exist.
"""

from __future__ import annotations

import re

NAME_MAX = 63
"""Bytes of a DNS label (RFC 1035 section 2.3.4)."""
ROLES_MAX = 8
"""Roles in one certificate. Stops a certificate that makes every check of a right walk thousands of roles."""

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?", re.ASCII)


def is_name(text: str) -> bool:
    """Whether *text* may be the name of a node, a cluster or a role."""
    return len(text) <= NAME_MAX and _LABEL.fullmatch(text) is not None
