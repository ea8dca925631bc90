"""Who is at the other end of a local socket: SO_PEERCRED and SO_PEERGROUPS."""

from __future__ import annotations

import array
import errno
import socket
import struct

from resmgr.channel import Credentials
from resmgr.message import GROUPS_MAX

_SO_PEERGROUPS = 59
_UCRED = struct.Struct("iII")


def peer_credentials(sock: socket.socket) -> Credentials:
    """Who is at the other end of a connected AF_UNIX socket, as the kernel saw it at connect time.

    Python reads at most 1024 bytes of a socket option: a user in more than 256 groups is taken to be in none, which only loses rights.
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    groups = array.array("I")
    try:
        groups.frombytes(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * GROUPS_MAX))
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
    return Credentials(uid, gid, tuple(groups), pid)
