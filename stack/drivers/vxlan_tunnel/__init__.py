"""Parts of the `vxlan` driver: the socket that its networks share, and behind which end a station is."""
