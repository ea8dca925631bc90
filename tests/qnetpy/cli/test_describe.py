"""`qnet describe` against a daemon's system in this process."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import trio

from resmgr.aio import ReceiveChannel, enter
from resmgr.channel import Channel, Kernel, Message
from resmgr.errors import ResmgrError
from resmgr.system import System
from resmgr.typed.aio import serve
from resmgr.typed.interface import Interface, Request
from resmgr.typed.server import TypedServer, handler
from tests.qnetpy.cli.test_name import qnet, running

pytestmark = pytest.mark.host


@attrs.frozen
class Level:
    percent: int


@attrs.frozen
class Read(Request[Level]):
    """How full a tank is.

    \x1b[31mBetween 0 and 100.
    """

    tank: str


@attrs.frozen
class Empty(Request[None]):
    tank: str


TANKS = Interface("tanks", 2, {1: Read, 7: Empty})
PAGE = r"""tanks, version 2

1: Read
    How full a tank is.

    \x1b[31mBetween 0 and 100.
    tank  str, at most 1048576
  answered with Level
    percent  I64

7: Empty
    tank  str, at most 1048576
  answered with nothing
"""


class Tanks(TypedServer):
    interface = TANKS

    @handler
    def read(self, request: Read, message: Message) -> Level:
        return Level(50)

    @handler
    def empty(self, request: Empty, message: Message) -> None:
        raise ResmgrError(1)


def attach(system: System, name: bytes, channel: Channel) -> None:
    names = system.names
    assert names is not None
    attached: list[int] = []
    enter(system.kernel, lambda: attached.append(names.attach(name, channel)))
    assert attached == [0]


async def serve_tanks(system: System, kernel: Kernel) -> None:
    channel = ReceiveChannel(kernel)
    attach(system, b"tanks", channel.channel)
    await serve(Tanks(), channel)


async def test_what_a_server_understands(tmp_path: Path) -> None:
    async with running(tmp_path) as system, trio.open_nursery() as nursery:
        nursery.start_soon(serve_tanks, system, system.kernel)
        echo = system.kernel.channel(lambda message: message.reply(0, message.data))
        attach(system, b"echo", echo)
        assert await qnet(tmp_path, "describe", "tanks") == PAGE
        told = json.loads(await qnet(tmp_path, "describe", "--json", "tanks"))
        assert (told["name"], told["version"], told["id"]) == ("tanks", 2, TANKS.id)
        assert told["requests"][1] == {
            "number": 7,
            "name": "Empty",
            "about": "",
            "fields": [["tank", "str, at most 1048576"]],
            "reply": None,
            "reply_fields": [],
        }
        assert await qnet(tmp_path, "describe", "/dev/name/local/tanks") == PAGE
        said = await qnet(tmp_path, "describe", "echo", status=1)
        assert said == "qnet describe: echo tells of no typed messages; try: ls, cat or stat, if it is read and written like a file\n"
        said = await qnet(tmp_path, "describe", "none", status=1)
        assert said.startswith("qnet describe: nobody has attached the name 'none'")
        nursery.cancel_scope.cancel()
