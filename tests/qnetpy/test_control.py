"""The control channel answers this machine's users and survives nonsense."""

from __future__ import annotations

import errno
import json

import pytest

from qnetpy.channels import CHID_CONTROL
from qnetpy.control import Control, suites_verb
from qnetpy.controlformat import REPLY_MAX, pack_request, unpack_reply
from resmgr.channel import ND_LOCAL, PID_SYSTEM, ClientInfo, Credentials, Kernel, Nd
from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from resmgr.testing.virtual import VirtualDispatch


class Answers:
    """What a client got."""

    def __init__(self) -> None:
        self.status = 0
        self.data = b""

    def done(self, status: int, reply: Buffer) -> None:
        self.status = status
        self.data = bytes(reply)

    def answer(self, status: int, parts: object, descriptors: object) -> None:
        self.status = status

    def pull(self, offset: int, length: int, done: object) -> None:
        raise AssertionError("the request is short: nothing to pull")

    def push(self, offset: int, data: object) -> None:
        raise AssertionError("the reply goes in one piece")


def ask(control: Control, data: bytes, uid: int = 1000) -> Answers:
    kernel = Kernel(VirtualDispatch(1), "n1")
    kernel.channel(control.handle, pid=PID_SYSTEM, chid=CHID_CONTROL, remote=False)
    answers = Answers()
    assert kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_CONTROL, Credentials(uid, uid)).submit((data,), REPLY_MAX, answers.done) is None
    return answers


def deliver(control: Control, data: bytes, nd: Nd, msglen: int) -> int:
    """As it would come from a carrier; the status of the answer."""
    kernel = Kernel(VirtualDispatch(1), "n1")
    channel = kernel.channel(control.handle, pid=PID_SYSTEM, chid=CHID_CONTROL)
    answers = Answers()
    kernel.deliver(channel, ClientInfo(nd, "", frozenset(), Credentials(0, 0), 1), data, msglen, REPLY_MAX, 10, answers)
    return answers.status


def control(chosen: list[list[str]] | None = None, owner: int = 0) -> Control:
    def choose(names: list[str]) -> None:
        if "null" in names:
            raise Misuse("no cipher")
        assert chosen is not None
        chosen.append(names)

    return Control(lambda: {"node": "n1", "pid": 7}, lambda: {"nodes": []}, {"suites": suites_verb(choose)}, owner)


@pytest.mark.parametrize(
    ("uid", "owner", "status"), [(0, 0, 0), (0, 500, 0), (500, 500, 0), (1000, 500, -errno.EPERM), (1000, 0, -errno.EPERM)]
)
def test_ciphers_are_for_root_and_the_owner(uid: int, owner: int, status: int) -> None:
    chosen: list[list[str]] = []
    answers = ask(control(chosen, owner), pack_request("suites", names=["a", "b"]), uid=uid)
    assert min(answers.status, 0) == status
    assert chosen == ([["a", "b"]] if status == 0 else [])


@pytest.mark.parametrize("names", [None, "a", [1], ["null"], {"a": 1}])
def test_what_is_no_list_of_ciphers_is_refused(names: object) -> None:
    chosen: list[list[str]] = []
    assert "error" in unpack_reply(ask(control(chosen), pack_request("suites", names=names), uid=0).data)
    assert chosen == []


def test_facts_are_for_everybody_here() -> None:
    made = control()
    assert unpack_reply(ask(made, pack_request("status"), uid=4000).data) == {"node": "n1", "pid": 7}
    assert unpack_reply(ask(made, pack_request("nodes"), uid=4000).data) == {"nodes": []}


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", errno.EINVAL), (b"\xff", errno.EINVAL), (b"[]", errno.EINVAL), (b"3", errno.EINVAL), (b"{}", errno.EINVAL)]
    + [(b'{"do": "explode"}', errno.ENOSYS), (b'{"do": []}', errno.ENOSYS), (b"[" * 4000, errno.EINVAL), (b"x" * 5000, errno.EMSGSIZE)],
)
def test_nonsense_is_an_errno(data: bytes, code: int) -> None:
    assert ask(control(), data).status == -code


def test_other_nodes_and_partial_messages_are_refused() -> None:
    request = pack_request("status")
    assert deliver(control(), request, Nd(5), len(request)) == -errno.EPERM
    assert deliver(control(), request, ND_LOCAL, 100) == -errno.EMSGSIZE


def test_a_reply_is_a_table() -> None:
    with pytest.raises(ValueError, match="table"):
        unpack_reply(json.dumps([1]).encode())
