"""Ciphers and hashes in Python, written from the standards: what the provider `reference` is made of. Slow, and their timing tells keys."""
