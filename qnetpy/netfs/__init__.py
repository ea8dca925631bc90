"""/net: the directory whose entries are nodes."""
