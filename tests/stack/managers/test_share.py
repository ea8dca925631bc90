"""Who only asks: a turn is bounded in time, and all of them together have a share of it, whatever a row costs and however many ask."""

from __future__ import annotations

import errno
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs
import pytest

from resmgr.channel import ND_LOCAL, PID_SYSTEM, Credentials
from resmgr.dispatch import Buffer
from resmgr.system import System
from resmgr.testing.ioclient import IoClient
from resmgr.testing.virtual import VirtualDispatch
from stack.core.module import Kind, Module
from stack.core.specific import Rows
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.managers.iopkt import IoPktManager
from stack.managers.netdir import NetDirectory
from stack.managers.protocol import CHID_STACK, pack_request, unpack_reply, unpack_request
from stack.managers.refusals import SHARE as SHARE_OF_REFUSALS
from stack.managers.share import BURST, SHARE, TURN, Share

ROWS = 300
READ = 2e-4
"""Seconds that it takes to read a request made to be slow to read."""


@attrs.frozen
class Options:
    pass


class Rig:
    """A stack whose module has a table; what its rows cost is on the clock by which time is shared."""

    def __init__(self, row_seconds: float) -> None:
        self.dispatch = VirtualDispatch(1)
        self.system = System(self.dispatch, "n")
        self.stack = Stack(self.system, random.Random(1).randbytes)
        self.spent = 0.0
        self.row_seconds = row_seconds
        self.share = Share(lambda: self.dispatch.now() + self.spent)
        self.manager = IoPktManager(self.stack, 500, share=self.share)
        self.stack.load(Module("told", Kind.PROTOCOL, Options, lambda context, options: self))
        self.answers = 0

    def row(self, number: int) -> Mapping[str, object]:
        self.spent += self.row_seconds
        return {"row": number}

    def get_specific(self) -> Mapping[str, object]:
        return {"rows": Rows(range(ROWS), self.row)}

    def set_specific(self, command: str, arguments: Mapping[str, object]) -> None: ...

    def detach(self) -> None: ...

    def told(self) -> dict[str, object]:
        answers: list[dict[str, object]] = []
        connection = self.system.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_STACK, Credentials(0, 0))
        connection.submit([pack_request("facts")], 1 << 20, lambda status, reply: answers.append(unpack_reply(bytes(reply))))
        assert self.dispatch.run_until(lambda: bool(answers), limit=5.0)
        return answers[0]

    def ask_for_ever(self, user: int) -> None:
        connection = self.system.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_STACK, Credentials(user, user))

        def answered(status: int, reply: Buffer) -> None:
            assert status == 0
            told = unpack_reply(bytes(reply))
            rows = told.get("rows")
            assert isinstance(rows, list), told
            assert len(rows) == ROWS
            self.answers += 1
            again()

        def again() -> None:
            connection.submit([pack_request("specific", module="told")], 1 << 20, answered)

        again()


@pytest.mark.parametrize("users", [(1000,), (1000,) * 8, tuple(range(1000, 1040))])
@pytest.mark.parametrize("row_seconds", [1e-5, 2e-4])
def test_who_asks_in_a_loop_has_a_share_of_the_time_and_no_turn_is_long(users: Sequence[int], row_seconds: float) -> None:
    rig = Rig(row_seconds)
    for user in users:
        rig.ask_for_ever(user)
    began, before, longest = rig.dispatch.now(), rig.spent, 0.0
    at_first = before

    def ended() -> bool:
        nonlocal before, longest
        longest, before = max(longest, rig.spent - before), rig.spent
        return rig.dispatch.now() - began >= 3.0

    assert rig.dispatch.run_until(ended, limit=10.0)
    took = rig.spent - at_first
    assert longest <= TURN + row_seconds + 1e-9
    # Of the time on the clock, of which what they took is a part.
    assert took <= SHARE * (3.0 + took) + BURST + 2 * TURN + row_seconds
    assert took >= 0.8 * SHARE * (3.0 + took), "they do not get what there is"
    assert rig.answers >= took / (ROWS * row_seconds) - 41


def test_who_asks_now_and_then_does_not_wait() -> None:
    rig = Rig(2e-5)
    asked = rig.dispatch.now()
    rig.ask_for_ever(1000)
    assert rig.dispatch.run_until(lambda: bool(rig.answers), limit=1.0)
    assert rig.dispatch.now() == asked


@pytest.mark.parametrize(
    ("request_", "user", "first"),
    [
        (pack_request("facts"), 1000, errno.EAGAIN),
        (pack_request("umount", what="told"), 1001, errno.EACCES),
        (pack_request("dance"), 1001, errno.EACCES),
        (b"no JSON", 1001, errno.EINVAL),
    ],
)
def test_who_is_refused_in_a_loop_is_not_read_any_more_and_others_are(
    request_: bytes, user: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(1e-5)
    reads, began = 0, rig.dispatch.now()

    def unpack(data: bytes) -> dict[str, object] | None:
        nonlocal reads
        reads += 1
        rig.spent += READ
        return unpack_request(data)

    monkeypatch.setattr("stack.managers.iopkt.unpack_request", unpack)
    ends: Counter[str | None] = Counter()

    def send(user: int, data: bytes, ends: Counter[str | None]) -> None:
        def answered(status: int, reply: Buffer) -> None:
            number = unpack_reply(bytes(reply)).get("errno") if status == 0 else f"unread {-status}"
            ends[str(number)] += 1

        rig.system.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_STACK, Credentials(user, user)).submit([data], 1 << 20, answered)

    def spam() -> None:
        for _ in range(20):
            send(user, request_, ends)
        rig.dispatch.call_at(rig.dispatch.now() + 1e-3, spam)

    spam()
    rig.dispatch.run_for(0.8)
    assert ends[str(first)] >= 0.2 * SHARE_OF_REFUSALS * 0.8 / READ
    assert ends[f"unread {errno.EAGAIN}"] > 10_000
    assert reads * READ <= SHARE_OF_REFUSALS * (rig.dispatch.now() + rig.spent - began) + 2 * BURST + (READ * ends["None"])
    for other in (1002, 0):
        answers: Counter[str | None] = Counter()
        send(other, pack_request("facts"), answers)
        rig.dispatch.run_for(0.1)
        assert answers == {"None": 1}
    refused = rig.told()["requests_refused"]
    assert isinstance(refused, dict)
    assert refused["unread"] >= ends[f"unread {errno.EAGAIN}"]


def test_files_of_interfaces_are_made_in_the_same_time_and_say_what_they_said_when_that_is_used_up() -> None:
    rig = Rig(2e-4)
    directory = NetDirectory(rig.stack, rig.share)
    hub = Hub(rig.dispatch)
    rig.stack.load(hub.module(), "mac=02:00:00:00:00:01")
    interface = rig.stack.interface("en0")
    assert interface is not None
    client = IoClient(rig.system.kernel, Credentials(1000, 1000))

    def count() -> object:
        return json.loads(client.get(b"dev/io-net/en0"))["rx_frames"]

    assert count() == 0
    interface.rx_frames = 5
    assert count() == 5
    rig.share.begin()
    rig.spent += 1.0
    rig.share.end()
    interface.rx_frames = 7
    assert count() == 5
    rig.stack.unload(rig.stack.loaded[1])
    rig.stack.load(hub.module(), "mac=02:00:00:00:00:02")
    assert count() == 0, "that was another interface's"
    interface = rig.stack.interface("en0")
    assert interface is not None
    interface.rx_frames = 9
    assert count() == 0, "there is no time yet"
    rig.dispatch.run_for(1 / SHARE)
    assert count() == 9
    directory.close()
