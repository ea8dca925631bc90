"""Links between nodes: handshake, sessions and the transport over them. Specification: docs/protocol/link.md and transport.md."""
