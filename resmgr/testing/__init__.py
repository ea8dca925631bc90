"""Public test kit: a dispatch under virtual time, and a carrier in memory that reorders between streams."""
