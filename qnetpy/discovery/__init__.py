"""Discovery: hints of where nodes may be. Nothing here is trusted; the handshake of the link decides (docs/protocol/discovery.md)."""
