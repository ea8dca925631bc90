"""The process manager of a node: starts programs for clients here and on other nodes, carries their streams, signals and ends."""
