"""Layer 2: what joins links to each other, below every protocol."""
