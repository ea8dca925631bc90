"""The Internet protocols, above Ethernet."""
