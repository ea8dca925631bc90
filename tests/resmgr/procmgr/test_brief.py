"""Starts whose answer brings the end along: what is told, what is left, and what is not lost."""

from __future__ import annotations

import errno
import os

import pytest
import trio

from resmgr.channel import CHID_PROCMGR, ND_LOCAL, PID_SYSTEM, Connection, Credentials
from resmgr.errors import BadMessage, ResmgrError
from resmgr.procmgr import message
from resmgr.procmgr.aio import run
from resmgr.procmgr.client import Finished
from resmgr.procmgr.message import (
    BRIEF_OUTPUT,
    SPAWN_BRIEF,
    SPAWN_DETACHED,
    SPAWN_PTY,
    SPAWN_STDERR,
    SPAWN_STDIN,
    SPAWN_STDOUT,
    Brief,
    Ended,
    Spawn,
)
from tests.resmgr.procmgr.test_manager import Client, Failed, Running, World, world

pytestmark = pytest.mark.host
OUT = SPAWN_BRIEF | SPAWN_STDOUT | SPAWN_STDERR


async def brief(client: Client, script: str, flags: int = OUT, reply_len: int = message.BRIEF.size + BRIEF_OUTPUT) -> Brief:
    _, data = await client.send(message.pack_spawn(Spawn((b"sh", b"-c", os.fsencode(script)), (), flags)), reply_len=reply_len)
    return message.parse_brief(data)


def running(here: World) -> bool:
    return any(facts.state == "running" for facts in here.manager.facts())


async def test_a_short_program_is_one_answer_and_leaves_nothing() -> None:
    async with world() as here:
        told = await brief(Client(here), "echo out; echo err >&2; exit 3")
        assert told[:1] + told[2:] == (0, Ended(3, None), (b"out\n", b"err\n"), (True, True))
        assert not list(here.manager.facts())
        killed = await brief(Client(here), "kill -9 $$")
        assert killed.ended == Ended(None, 9)


async def test_one_that_goes_on_is_a_program_like_any_other() -> None:
    async with world() as here:
        client = Client(here)
        told = await brief(client, "echo early; read line; echo got $line; exit 5", OUT | SPAWN_STDIN)
        assert told.handle
        assert told.ended is None
        assert told.over == (False, False)
        running = Running(client, told.handle, told.pid)
        await running.write(b"late\n", last=True)
        assert told.output[0] + await running.read_all() == b"early\ngot late\n"
        assert await running.read_all(2) == b""
        assert await running.wait() == Ended(5, None)
        await running.close()


async def test_more_output_than_fits_is_read_as_ever() -> None:
    async with world() as here:
        client = Client(here)
        told = await brief(client, "head -c 200000 /dev/zero", OUT)
        running = Running(client, told.handle, told.pid)
        assert len(told.output[0]) <= BRIEF_OUTPUT
        assert len(told.output[0]) + len(await running.read_all()) == 200000
        assert await running.wait() == Ended(0, None)
        small = await brief(client, "echo 123456", OUT, message.BRIEF.size + 3)
        assert (small.output[0], small.over[0]) == (b"123", False)
        assert await Running(client, small.handle, small.pid).read_all() == b"456\n"


async def test_streams_that_others_hold_stay_open() -> None:
    async with world() as here:
        client = Client(here)
        told = await brief(client, "(sleep 0.1; echo child) & echo parent; exit 7")
        assert (told.ended, told.output[0], told.over[0]) == (Ended(7, None), b"parent\n", False)
        running = Running(client, told.handle, told.pid)
        assert await running.read_all() == b"child\n"
        assert await running.wait() == Ended(7, None)
        await running.close()


async def test_a_client_that_gives_up_leaves_nothing() -> None:
    async with world() as here:
        client, results = Client(here), []
        request = message.pack_spawn(Spawn((b"sleep", b"60"), (), OUT))
        (pending,) = client.submit((request,), 65536, lambda status, data: results.append(status))
        await here.until(lambda: running(here))
        assert pending is not None
        here.dispatch.enter(pending.unblock)
        await here.until(lambda: bool(results) and not running(here))
        assert results == [-errno.EINTR]
        gone = Client(here)
        gone.submit((request,), 65536, lambda status, data: None)
        await here.until(lambda: running(here))
        gone.close()
        await here.until(lambda: not running(here))


async def test_no_terminals() -> None:
    async with world() as here:
        with pytest.raises(Failed) as caught:
            await brief(Client(here), "true", SPAWN_BRIEF | SPAWN_PTY)
        assert caught.value.code == errno.EBADMSG


async def test_a_detached_program_that_cannot_be_executed_says_so_and_another_goes_on() -> None:
    async with world() as here:
        client = Client(here)
        for program, status in ((b"no-such-program", 127), (b"/etc/passwd", 126)):
            request = message.pack_spawn(Spawn((program,), (), SPAWN_BRIEF | SPAWN_DETACHED))
            told = message.parse_brief((await client.send(request, reply_len=message.BRIEF.size))[1])
            assert (told.handle, told.ended) == (0, Ended(status, None))
        told = await brief(client, "exec sleep 60", SPAWN_BRIEF | SPAWN_DETACHED)
        assert told.handle
        assert told.ended is None
        client.close()
        await here.until(lambda: [facts.pid for facts in here.manager.facts()] == [told.pid])
        await Client(here).send(message.pack_kill(told.pid, 9))
        await here.until(lambda: not list(here.manager.facts()))
        # One that nobody was told of is nobody's.
        gone = Client(here)
        request = message.pack_spawn(Spawn((b"sleep", b"60"), (), SPAWN_BRIEF | SPAWN_DETACHED))
        gone.submit((request,), message.BRIEF.size, lambda status, data: None)
        await here.until(lambda: running(here))
        gone.close()
        await here.until(lambda: not running(here))


def own_connection(here: World) -> Connection:
    credentials = Credentials(os.geteuid(), os.getegid(), tuple(os.getgroups()), os.getpid())
    return here.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_PROCMGR, credentials)


async def test_a_trio_program_runs_one_in_one_call() -> None:
    async with world() as here:
        short = await run(own_connection(here), Spawn((b"sh", b"-c", b"echo a; echo b >&2; exit 2")))
        assert short == Finished(Ended(2, None), b"a\n", b"b\n")
        data = os.urandom(300_000)
        long = await run(own_connection(here), Spawn((b"sh", b"-c", b"cat; sleep 0.05; kill -9 $$")), data)
        assert long == Finished(Ended(None, 9), data, b"")
        deaf = await run(own_connection(here), Spawn((b"sh", b"-c", b"exec <&-; sleep 0.05; exit 6")), data)
        assert deaf.ended == Ended(6, None)
        with pytest.raises(ResmgrError) as caught:
            await run(own_connection(here), Spawn((b"-x",)))
        assert caught.value.errno == errno.EINVAL
        with trio.move_on_after(0.1):
            await run(own_connection(here), Spawn((b"sleep", b"60")))
        await here.until(lambda: not running(here))


@pytest.mark.parametrize(
    "told",
    [
        Brief(0, 7, Ended(3, None), (b"a", b"bc"), (True, True)),
        Brief(9, 7, Ended(None, 11, True), (b"", b""), (True, False)),
        Brief(9, 7, None, (b"abc", b""), (False, False)),
    ],
)
def test_the_answer_there_and_back(told: Brief) -> None:
    data = message.pack_brief(told)
    assert message.parse_brief(data) == told
    for size in range(len(data)):
        with pytest.raises(BadMessage):
            message.parse_brief(data[:size])


def test_an_answer_that_contradicts_itself() -> None:
    for told in (Brief(0, 7, None, (b"", b""), (True, True)), Brief(0, 7, Ended(0, None), (b"", b""), (True, False))):
        with pytest.raises(BadMessage):
            message.parse_brief(message.pack_brief(told))
    assert message.pack_brief(Brief(1, 2, Ended(3, None), (b"x", b""), (True, False))) == bytes.fromhex(
        "00000000000000010000000201000003800000010000000078"
    )
