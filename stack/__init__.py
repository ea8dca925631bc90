"""io-pkt: frames, drivers, layer 2, crypto API, the network manager. Knows no node names and no Qnet."""

import resmgr  # noqa: F401 - importing it decides whether compiled modules are used
