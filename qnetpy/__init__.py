"""lsm-qnet: identity, link encryption, transport, discovery, /net; the command-line tools; the cluster harness."""

import resmgr  # noqa: F401 - importing it decides whether compiled modules are used
