"""Parts of the `packet` driver. Each takes a socket; the driver owns it."""
