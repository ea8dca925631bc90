"""IOCTL: a DEVCTL with the same number. The kernel takes size and direction of the data from the number (_IOC), so only commands made that
way carry data; that is what a restricted FUSE ioctl is. Others (the terminal set, 0x54..) are ENOTTY here without a question, unless the
node is a character device: programs ask every file that they open whether it is a terminal."""

from __future__ import annotations

import errno
from stat import S_IFCHR

from resmgr.dispatch import Buffer
from resmgr.fuse import formats
from resmgr.fuse.core import Core
from resmgr.fuse.formats import BODY
from resmgr.fuse.request import Request
from resmgr.iorequest import pack_devctl

_DATA = BODY + formats.IOCTL_IN.size
_TERMINAL = ord("T")


def ioctl(core: Core, request: Request, view: memoryview) -> None:
    fh, _, command, _, size, room = formats.IOCTL_IN.parse(view, BODY)
    file = core.files.get(fh)
    if file is None or len(view) - _DATA < size:
        core.error(request, errno.ENOTTY if fh in core.directories else errno.EBADF if file is None else errno.EINVAL)
        return
    server = file.node.server
    sizeless = not command >> 16
    terminal = sizeless and command >> 8 & 0xFF == _TERMINAL
    if server.no_devctl or (terminal and file.node.mode & 0o170000 != S_IFCHR):
        core.error(request, errno.ENOTTY)
        return

    def done(request: Request, status: int, reply: Buffer) -> None:
        if status == -errno.ENOSYS:
            server.no_devctl = True
            core.error(request, errno.ENOTTY)
        elif status < 0:
            core.failed(request, status)
        else:
            head = formats.IOCTL_REPLY.pack(formats.IOCTL_REPLY.size + len(reply), 0, request.unique, status, 0, 0, 0)
            core.answer(request, head + bytes(reply))

    core.on_file(request, file, (pack_devctl(file.ocb, command, bytes(view[_DATA : _DATA + size])),), room, done)
