"""Crypto API: batches to seal and to open, providers behind one interface, and the vectors that every provider must pass."""
