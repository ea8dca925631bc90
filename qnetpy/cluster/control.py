"""The supervisor's socket: one JSON request and one JSON answer per connection, with descriptors where namespaces are asked for.

    {"do": "status"}                                          facts about every node and link
    {"do": "wait"}                                            answered when no node is booting any more
    {"do": "enter", "node": N}                                descriptors of the node's namespaces
    {"do": "fabric"}                                          descriptors of the namespaces with the bridges
    {"do": "kill", "node": N}, {"do": "start", "node": N}     power off, power on (answered when it has booted)
    {"do": "link", "node": N, "link": L or null, "up": bool}  carrier
    {"do": "down"}                                            answered when every node has shut down

Answers are {"ok": true, ...} or {"error": text}. The socket lies in a directory that only its owner may enter.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping

MESSAGE_MAX = 1 << 20
FDS_MAX = 8


class ControlError(Exception):
    """The supervisor refused, or is not there. One line."""


def bind(path: str) -> socket.socket:
    """A listening socket PATH/control, however long PATH is."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    folder = os.open(path, os.O_DIRECTORY | os.O_PATH | os.O_CLOEXEC)
    try:
        server.bind(f"/proc/self/fd/{folder}/control")
    finally:
        os.close(folder)
    server.listen(64)
    return server


def ask(path: str, request: Mapping[str, object], seconds: float | None = 60.0) -> tuple[dict[str, object], list[int]]:
    """Ask the supervisor of the cluster in directory *path*. Returns the answer and the descriptors with it, which the caller closes.

    ControlError when it refuses or is not there. Blocks up to *seconds*.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MESSAGE_MAX)
        client.settimeout(seconds)
        try:
            folder = os.open(path, os.O_DIRECTORY | os.O_PATH | os.O_CLOEXEC)
            try:
                client.connect(f"/proc/self/fd/{folder}/control")
            finally:
                os.close(folder)
            client.send(json.dumps(request).encode())
            data, fds, _, _ = socket.recv_fds(client, MESSAGE_MAX, FDS_MAX, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError as error:
            raise ControlError(f"the supervisor did not answer {request.get('do')!r} within {seconds:g} s") from error
        except (FileNotFoundError, ConnectionError) as error:
            raise ControlError(f"cluster {os.path.basename(path)!r} is not running") from error
    if not data:
        raise ControlError("the supervisor ended without an answer")
    answer = json.loads(data)
    if "error" in answer:
        for fd in fds:
            os.close(fd)
        raise ControlError(str(answer["error"]))
    return answer, list(fds)
