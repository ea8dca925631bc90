"""IOCTL: a DEVCTL with the same number. The kernel takes size and direction of the data from the number (_IOC), so only commands made that
way come with data; that is what a restricted FUSE ioctl is. For the terminal set (0x54..), whose numbers tell nothing, the table in
`resmgr.iofunc.terminal` does, and the data are fetched and put by `caller`. Programs ask every file that they open whether it is a
terminal: for what is no character device the answer is ENOTTY without a question.
"""

from __future__ import annotations

import errno
from stat import S_IFCHR

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse import formats
from resmgr.fuse.core import Core
from resmgr.fuse.formats import BODY
from resmgr.fuse.openfile import File
from resmgr.fuse.request import Request
from resmgr.iofunc.terminal import TERMINAL, TerminalCommand
from resmgr.iorequest import pack_devctl

_DATA = BODY + formats.IOCTL_IN.size
_LETTER = ord("T")
_INT_SIGN = 1 << 31


def ioctl(core: Core, request: Request, view: memoryview) -> None:
    fh, _, command, argument, size, room = formats.IOCTL_IN.parse(view, BODY)
    file = core.files.get(fh)
    if file is None or len(view) - _DATA < size:
        core.error(request, errno.ENOTTY if fh in core.directories else errno.EBADF if file is None else errno.EINVAL)
        return
    kind = file.node.mode & 0o170000
    sizeless = not command >> 16
    if kind in file.node.server.no_devctl or (sizeless and command >> 8 == _LETTER and kind != S_IFCHR):
        core.error(request, errno.ENOTTY)
        return
    known = TERMINAL.get(command) if sizeless else None
    if known is None:
        _send(core, request, file, command, bytes(view[_DATA : _DATA + size]), room, None, 0)
    elif known.by_value:
        value = (argument & 0xFFFFFFFF ^ _INT_SIGN) - _INT_SIGN
        _send(core, request, file, command, known.takes.pack(value), 0, known, 0)
    elif not known.takes.size:
        _send(core, request, file, command, b"", known.gives.size, known, argument)
    else:

        def fetched(code: int, data: bytes) -> None:
            request.held = False
            if code or request.answered:
                core.error(request, code)
            else:
                _send(core, request, file, command, data, 0, known, 0)

        request.held = True
        core.callers.read(request.user[0], request.pid, argument, known.takes.size, fetched)


def _send(
    core: Core, request: Request, file: File, command: int, data: bytes, room: int, known: TerminalCommand | None, address: int
) -> None:
    """Ask the device. What a *known* command gives goes to *address* in the program."""
    kind = file.node.mode & 0o170000

    def done(request: Request, status: int, reply: Buffer) -> None:
        if status == -errno.ENOSYS:
            file.node.server.no_devctl.add(kind)
            core.error(request, errno.ENOTTY)
        elif status < 0:
            core.failed(request, status)
        elif known is None:
            head = formats.IOCTL_REPLY.pack(formats.IOCTL_REPLY.size + len(reply), 0, request.unique, status, 0, 0, 0)
            core.answer(request, head + bytes(reply))
        elif len(reply) != known.gives.size:
            raise BadMessage("the device gives other data than the command has")
        elif not reply:
            _answer(core, request, status)
        elif not request.answered:

            def put(code: int, nothing: bytes) -> None:
                request.held = False
                if code:
                    core.error(request, code)
                else:
                    _answer(core, request, status)

            request.held = True
            core.callers.write(request.user[0], request.pid, address, bytes(reply), put)

    core.on_file(request, file, (pack_devctl(file.ocb, command, data),), room, done)


def _answer(core: Core, request: Request, status: int) -> None:
    core.answer(request, formats.IOCTL_REPLY.pack(formats.IOCTL_REPLY.size, 0, request.unique, status, 0, 0, 0))
