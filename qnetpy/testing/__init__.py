"""Public test kit: clusters of whole nodes for pytest, and the whole-node simulator."""
