"""Running a program on any node, on Trio: the least that does it, as `client.run` for blocking programs. One round trip if it is short.

async with open_process(path) as process:
    finished = await run(process.connect(nd, PID_SYSTEM, CHID_PROCMGR), Spawn((b"hostname",)))
"""

from __future__ import annotations

import errno

import trio

from resmgr.aio import enter, send
from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError
from resmgr.procmgr import message
from resmgr.procmgr.client import Finished
from resmgr.procmgr.message import Ended, Spawn


async def run(connection: Connection, what: Spawn, data: Buffer = b"") -> Finished:
    """Run a program, give it *data* as standard input (if its flags carry that), wait for its end. What it says is held whole.

    *connection* goes to the process manager of a node, is this call's own and is closed by it, whereupon a program that still runs, because
    this was cancelled, is hung up. ResmgrError as for `client.spawn`. A node that knows no brief starts (EBADMSG) is not asked otherwise.
    """
    flags = what.flags | message.SPAWN_BRIEF
    if not len(data):
        flags &= ~message.SPAWN_STDIN
    try:
        reply = await send(connection, (message.pack_spawn(what._replace(flags=flags)),), message.BRIEF.size + message.BRIEF_OUTPUT)
        told = message.parse_brief(reply.data)
        if not told.handle:
            assert told.ended is not None
            return Finished(told.ended, *told.output)
        outputs = [[part] for part in told.output]
        carried = (flags & message.SPAWN_STDOUT, flags & message.SPAWN_STDERR)
        async with trio.open_nursery() as nursery:
            if len(data):
                nursery.start_soon(_write, connection, told.handle, memoryview(data))
            for stream in (1, 2):
                if carried[stream - 1] and not told.over[stream - 1]:
                    nursery.start_soon(_read, connection, told.handle, stream, outputs[stream - 1])
            ended = told.ended or await _wait(connection, told.handle)
        return Finished(ended, b"".join(outputs[0]), b"".join(outputs[1]))
    except BadMessage as error:
        raise ResmgrError(errno.EBADMSG, str(error)) from None
    finally:
        enter(connection.kernel, connection.close)


async def _wait(connection: Connection, handle: int) -> Ended:
    return message.parse_ended((await send(connection, (message.pack_wait(handle),), message.ENDED.size)).data)


async def _read(connection: Connection, handle: int, stream: int, parts: list[bytes]) -> None:
    number = 0
    while data := (await send(connection, (message.pack_read(handle, stream, number, message.READ_MAX),), message.READ_MAX)).data:
        parts.append(data)
        number += 1


async def _write(connection: Connection, handle: int, data: memoryview) -> None:
    size = message.WRITE_UNASKED
    for number, offset in enumerate(range(0, len(data), size)):
        last = offset + size >= len(data)
        try:
            await send(connection, (message.pack_write(handle, number, last), data[offset : offset + size]))
        except ResmgrError as error:
            if error.errno == errno.EPIPE:
                return
            raise
