"""Formats on the wire and of the kernel's link messages: bytes to values and back. No I/O, no state."""
