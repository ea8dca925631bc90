"""Who a node is: cluster authority, node certificates, key files. Specification: docs/protocol/identity.md."""
