"""Membership between the nodes of a cluster: renewal, revocation, change of roots. Specification: docs/protocol/membership.md."""
