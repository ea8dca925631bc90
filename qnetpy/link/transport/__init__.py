"""Reliable messages over encrypted packets: a pure machine. Read machine.py first; docs/protocol/transport.md is the specification."""
