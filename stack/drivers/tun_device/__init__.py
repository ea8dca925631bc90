"""Parts of the `tap` driver: what Linux's /dev/net/tun offers."""
