"""Parts of the `packet` driver: what Linux gives for frames and links. Each takes a socket or descriptor; the driver owns it."""
