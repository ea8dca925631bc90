"""Carriers of messages inside one machine: AF_UNIX sockets to the processes of a node."""
