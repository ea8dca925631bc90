"""Parts of the `udp` driver: sockets with segmentation and coalescing, the table of endpoints, this machine's addresses."""
