"""lsm-qnet: identity, link encryption, transport, discovery, /net; the command-line tools; the cluster harness."""
