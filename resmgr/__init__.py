"""Message passing, pathname space, resource managers, host files, the FUSE front end, processes and names. No network here.

Reading order: `dispatch` (what machines run on), `channel` (send, receive, reply), `peer` (the same over a wire), `iomsg` (what resource
managers are asked), `pathspace` and `pathmgr` (who serves which name), `iofunc` (default handlers), `hostfs`, `fuse`, `procmgr`, `names`.
"""

from resmgr import compiled

compiled.install()
