"""The spanning tree: which ports of a bridge forward, so that no frame can circle."""
