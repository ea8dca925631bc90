"""Endpoints of the UDP bearer: which are called, and what up nodes tell each other about them (docs/protocol/discovery.md)."""
