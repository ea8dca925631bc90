"""The I/O messages of `HostFs`: what is done to something open. fallocate goes to a thread, and fsync but of what lives in memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final

from resmgr.channel import Message
from resmgr.errors import BadMessage
from resmgr.handlelist import parse_drop
from resmgr.hostfs.device import PAGES
from resmgr.hostfs.objects import HostClient, HostHandle
from resmgr.hostfs.opened import birth_of, change, lose_bits, no_append, own_path, pack_statfs, read_directory, read_now, read_waiting, seek
from resmgr.hostfs.running import Running
from resmgr.hostfs.streams import DeviceHandle
from resmgr.hostfs.syscalls import fallocate
from resmgr.hostfs.writing import WRITE_MAX, Write
from resmgr.hostfs.xattr import xattr
from resmgr.iofunc.handle import Handle
from resmgr.iomsg import (
    COPY_MAX,
    LOSES_BITS,
    OFFSET_APPEND,
    SET_SIZE,
    SETATTR_SURE,
    STAT_BIRTH,
    SYNC_DATA_ONLY,
    WATCH_ATTRIB,
    WATCH_DROP,
    WATCH_MODIFY,
    WATCH_NEXT,
    WRITE_AT,
    XATTR_WHICH,
    Io,
)
from resmgr.iorequest import (
    HEAD,
    WRITE_HEAD,
    SetAttr,
    parse_copy,
    parse_read,
    parse_readdir,
    parse_seek,
    parse_space,
    parse_write,
    parse_xattr,
)

READ_MAX: Final = 4 * 1024 * 1024
"""Bytes of one READ reply; a reply's memory is the server's. A larger request gets this much."""
READDIR_MAX: Final = 1024 * 1024
READDIR_COST: Final = 10e-6 / 128
"""Seconds of our own work per byte of entries with attributes."""
OFFSET_MAX: Final = (1 << 63) - 1
Handler = Callable[[Message, HostClient, Handle, int], None]


def handlers(fs: Running) -> dict[Io, Handler]:
    """The table for `Manager`."""
    return {
        Io.READ: partial(read, fs),
        Io.WRITE: partial(write, fs),
        Io.STAT: partial(stat, fs),
        Io.READDIR: partial(readdir, fs),
        Io.SETATTR: partial(set_attributes, fs),
        Io.STATFS: partial(statfs, fs),
        Io.SYNC: partial(sync, fs),
        Io.SPACE: partial(space, fs),
        Io.COPY: partial(copy, fs),
        Io.SEEK: partial(seek_, fs),
        Io.XATTR: partial(xattr_, fs),
        Io.OFFER: fs.offers.offer,
        Io.FETCH: fs.fetches.fetch,
        Io.IDENTIFY: fs.reopening.identify,
        Io.LOCK: fs.locks.answer,
        Io.DELEGATION: lambda message, client, handle, flags: fs.delegations.message(message, client, handle, flags),
        Io.NOTIFY: fs.special.notify,
        Io.DEVCTL: fs.special.devctl,
    }


def read(fs: Running, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
    if isinstance(handle, DeviceHandle):
        fs.special.read(message, client, handle, flags)
        return
    offset, size = parse_read(message.data)
    assert isinstance(handle, HostHandle)
    if not handle.readable or handle.directory:
        raise OSError(errno.EISDIR if handle.directory else errno.EBADF, "not open for reading")
    size = min(size, message.reply_len, READ_MAX)
    if offset + size > OFFSET_MAX:
        raise OSError(errno.EINVAL, "offset")
    read_range(fs, message, client, handle, offset, size)


def read_range(fs: Running, message: Message, client: HostClient, handle: HostHandle, offset: int, size: int) -> None:
    """Answer *message* with bytes of what *client* has open for reading."""
    device = handle.device
    now = fs.dispatch.now()
    if device.blocking_until <= now:
        if device.nowait:
            try:
                data = read_now(handle.fd, size, offset)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                device.nowait = False
            else:
                if data is not None:
                    message.reply(len(data), data)
                    return
                fs.counters["read_blocked"] += 1
        if not device.nowait and device.memory:
            start = monotonic()
            if device.open_counts:
                found = read_waiting(handle.fd, size, offset)
            else:
                # As the client: entries of /proc check who reads, not only who opened.
                found = fs.switch.run(fs.identity(client), read_waiting, handle.fd, size, offset)
            device.took(monotonic() - start, now)
            message.reply(len(found), found)
            return
    identity = None if device.open_counts else fs.identity(client)

    def in_thread() -> bytes:
        if identity is None:
            return read_waiting(handle.fd, size, offset)
        return fs.switch.run(identity, read_waiting, handle.fd, size, offset)

    fs.counters["threaded"] += 1
    fs.manager.background(
        message,
        client,
        (handle,),
        in_thread,
        lambda late: message.reply(len(late), late),
        lane=device.lane,
    )


def write(fs: Running, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
    if isinstance(handle, DeviceHandle):
        fs.special.write(message, client, handle, flags)
        return
    offset, size = parse_write(message.data)
    assert isinstance(handle, HostHandle)
    if not handle.writable:
        raise OSError(errno.EBADF, "not open for writing")
    if size > message.msglen - WRITE_HEAD:
        raise BadMessage("write has less data than it says")
    size = min(size, WRITE_MAX)
    append = offset == OFFSET_APPEND or (handle.append and not flags & WRITE_AT)
    if handle.append and not append:
        no_append(handle.fd)
    if append:
        offset = 0
    if offset + size > OFFSET_MAX:
        raise OSError(errno.EFBIG, "offset")
    first = memoryview(message.data)[WRITE_HEAD : WRITE_HEAD + size]
    Write(fs, message, client, handle, offset, size, append, flags).more(first)


def stat(fs: Running, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
    assert isinstance(handle, HostHandle)
    ops = fs.ops_of(client)
    if flags & STAT_BIRTH:
        fs.io(message, client, handle, lambda: ops.attr(os.fstat(handle.fd)) + birth_of(handle.fd))
        return
    if handle.device.blocking_until > fs.dispatch.now():
        fs.io(message, client, handle, lambda: ops.attr(os.fstat(handle.fd)))
    else:
        message.reply(0, ops.attr(os.fstat(handle.fd)))


def readdir(fs: Running, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
    cookie, size = parse_readdir(message.data)
    assert isinstance(handle, HostHandle)
    size = min(size, message.reply_len, READDIR_MAX)
    fs.at_risk(fs.dispatch.now())
    ops = fs.ops_of(client)
    fs.io(message, client, handle, lambda: read_directory(ops, handle, cookie, size, flags), expected=size * READDIR_COST)


def set_attributes(fs: Running, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
    assert isinstance(handle, HostHandle)
    wanted = SetAttr.parse(message.data, HEAD)
    ops = fs.ops_of(client)
    place = handle.place
    inline = not wanted.valid & SET_SIZE or wanted.size == 0

    def after() -> bool:
        sure = fs.watching.made(client, (*place, WATCH_ATTRIB | WATCH_MODIFY)) if place is not None else False
        return sure and bool(flags & SETATTR_SURE)

    inline = inline and handle.device.blocking_until <= fs.dispatch.now()

    def work() -> bytes:
        if flags & LOSES_BITS and handle.writable:
            lose_bits(handle.fd)
        return change(ops, handle.fd, handle.scope, wanted, handle.writable, after if inline and place is not None else None)

    fs.io(
        message,
        client,
        handle,
        work,
        inline=inline,
    )


def watch(fs: Running, message: Message, client: HostClient, subtype: int) -> None:
    """WATCH, which is about no handle."""
    if subtype == WATCH_NEXT:
        if bytes(message.data[4:]) != bytes(HEAD - 4):
            raise BadMessage("more than a question for news")
        fs.watching.next(message, client)
    elif subtype == WATCH_DROP:
        fs.watching.drop(client, parse_drop(message.data))
        message.reply(0)
    else:
        raise BadMessage("watch of an unknown kind")


def statfs(fs: Running, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
    assert isinstance(handle, HostHandle)
    fs.io(message, client, handle, lambda: pack_statfs(handle.fd))


def sync(fs: Running, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
    assert isinstance(handle, HostHandle)
    call = os.fdatasync if flags & SYNC_DATA_ONLY else os.fsync

    def work() -> bytes:
        if handle.readable or handle.writable or not handle.directory:
            call(handle.fd)
            return b""
        # A base handle: whoever might open the directory and sync that may do it without.
        fd = os.open(own_path(handle.fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            call(fd)
        finally:
            os.close(fd)
        return b""

    fs.io(message, client, handle, work, inline=handle.device.kind in PAGES)


def space(fs: Running, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
    mode, offset, length = parse_space(message.data)
    assert isinstance(handle, HostHandle)
    if not handle.writable:
        raise OSError(errno.EBADF, "not open for writing")
    if offset > OFFSET_MAX or length > OFFSET_MAX or mode > 0x7FFFFFFF:
        raise OSError(errno.EINVAL, "range")

    def work() -> bytes:
        if flags & LOSES_BITS:
            lose_bits(handle.fd)
        fallocate(handle.fd, mode, offset, length)
        return b""

    fs.io(message, client, handle, work, inline=False)


def seek_(fs: Running, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
    whence, offset = parse_seek(message.data)
    assert isinstance(handle, HostHandle)
    if not (handle.readable or handle.writable) or handle.directory:
        raise OSError(errno.EBADF, "not an open file")
    if offset > OFFSET_MAX:
        raise OSError(errno.ENXIO, "offset")
    fs.io(message, client, handle, lambda: seek(handle.fd, whence, offset))


def xattr_(fs: Running, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
    path, request = parse_xattr(message.data)
    assert isinstance(handle, HostHandle)
    if path or message.msglen > len(message.data):
        raise BadMessage("extended attribute of a handle with a path, or cut short")
    owners = fs.ops_of(client).owners
    at_risk = fs.at_risk(fs.dispatch.now())
    fs.io(
        message, client, handle, lambda: xattr(handle.fd, handle.scope, request, owners, at_risk), inline=request.operation != XATTR_WHICH
    )


def copy(fs: Running, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
    """From one open file to another of the same client, by the kernel; always in a thread."""
    number, start, to, length = parse_copy(message.data)
    there = fs.manager.table.find(client, number, True)
    assert isinstance(handle, HostHandle)
    if not isinstance(there, HostHandle) or not handle.readable or not there.writable or handle.directory:
        raise OSError(errno.EBADF, "not open for that")
    if there.append:
        raise OSError(errno.EBADF, "opened for appending")
    length = min(length, COPY_MAX)
    if start + length > OFFSET_MAX or to + length > OFFSET_MAX:
        raise OSError(errno.EFBIG if to + length > OFFSET_MAX else errno.EINVAL, "offset")
    identity = fs.identity(client)

    def work() -> int:
        if flags & LOSES_BITS:
            lose_bits(there.fd)
        return os.copy_file_range(handle.fd, there.fd, length, start, to)

    fs.counters["threaded"] += 1
    fs.manager.background(
        message,
        client,
        (handle, there),
        lambda: fs.switch.run(identity, work),
        lambda count: message.reply(count),
        lane=there.device.lane,
    )
