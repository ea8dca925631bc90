"""The cluster harness: whole nodes in namespaces of this machine, described by one TOML file."""
