"""Mounts on their way from one daemon to the next: what is given is taken, once, and what cannot be read is closed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from qnetpy import handed
from qnetpy.handed import ENVIRONMENT, Handed
from resmgr.channel import ND_LOCAL, Credentials, Kernel, Message
from resmgr.dispatch import Buffer
from resmgr.testing.virtual import VirtualDispatch


def mount(point: str, fd: int) -> Handed:
    return Handed(point, True, "", "", (0, 50), {"names": ["\xff"]}, fd)


def given(mounts: list[Handed]) -> tuple[dict[str, object], list[int]]:
    """What a client of the daemon is answered, and the descriptors, which are the caller's."""
    dispatch = VirtualDispatch(1)
    kernel = Kernel(dispatch, "test")
    answers: list[dict[str, object]] = []
    kept: list[int] = []

    def serve(message: Message) -> None:
        handed.give(message, mounts)

    def done(status: int, reply: Buffer, descriptors: Sequence[int]) -> None:
        answers.append(json.loads(bytes(reply)))
        kept.extend(map(os.dup, descriptors))

    channel = kernel.channel(serve)
    kernel.connect(ND_LOCAL, channel.pid, channel.chid, Credentials(0, 0)).submit_descriptors((b"",), (), 4096, done)
    dispatch.run_for(1)
    return answers[0], kept


def test_what_is_given_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device = os.open("/dev/null", os.O_RDWR)
    facts, kept = given([mount("/net", device)])
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(device)
    assert facts == {"mounts": [["/net", 0, 50]], "socket": False}
    for name, value in handed.environment(kept).items():
        monkeypatch.setenv(name, value)
    taken = handed.take(pytest.fail)
    assert taken == [mount("/net", kept[1])]
    assert not os.get_inheritable(kept[1])
    assert handed.take(pytest.fail) == []
    os.close(kept[1])


def test_more_than_a_message_carries_wait_in_a_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounts = []
    for number in range(handed.MESSAGE_MAX + 1):
        (tmp_path / str(number)).write_text("device")
        mounts.append(mount(f"/mnt/{number}", os.open(tmp_path / str(number), os.O_RDONLY)))
    facts, kept = given(mounts)
    assert len(kept) == 2

    descriptors = handed.received(facts, kept)
    for name, value in handed.environment(descriptors).items():
        monkeypatch.setenv(name, value)
    taken = handed.take(pytest.fail)

    assert [one.point for one in taken] == [one.point for one in mounts]
    for number, one in enumerate(taken):
        assert os.path.samestat(os.fstat(one.fd), (tmp_path / str(number)).stat())
        assert not os.get_inheritable(one.fd)
        os.close(one.fd)


def test_what_nobody_takes_from_the_socket_is_closed() -> None:
    """So the mounts end with the command that asked for them, as those of a message do."""
    ends = [os.pipe() for _ in range(handed.MESSAGE_MAX + 1)]
    _, kept = given([mount("/mnt", writes) for _, writes in ends])

    for fd in kept:
        os.close(fd)

    for reads, _ in ends:
        os.set_blocking(reads, False)
        assert os.read(reads, 1) == b""
        os.close(reads)


def test_a_command_of_before_is_given_no_more_than_it_can_take() -> None:
    assert handed.most({"do": "hand-over"}) == handed.MESSAGE_MAX
    assert handed.most({"do": "hand-over", "socket": True}) > handed.MESSAGE_MAX


def test_a_state_that_is_too_large_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handed, "STATE_MAX", 1 << 20)
    facts, kept = given([mount("x" * (1 << 20), os.open("/dev/null", os.O_RDWR))])
    assert facts == {"error": "what the kernel knows of the mounts takes more than 1 MiB"}
    assert kept == []


@pytest.mark.parametrize("state", [b"", b"{}", b"[]", b"\xff", b'{"mounts": []}', b'{"mounts": 5}', b'{"mounts": [{"point": "/net"}]}'])
def test_what_cannot_be_read_is_closed(monkeypatch: pytest.MonkeyPatch, state: bytes) -> None:
    memory = os.memfd_create("state")
    os.write(memory, state)
    device = os.open("/dev/null", os.O_RDWR)
    monkeypatch.setenv(ENVIRONMENT, f"{memory},{device}")
    said: list[str] = []
    assert handed.take(said.append) == []
    assert len(said) == 1
    for fd in memory, device:
        with pytest.raises(OSError, match="Bad file") as failed:
            os.fstat(fd)
        assert failed.value.errno == errno.EBADF


@pytest.mark.parametrize("said", ["x", "-1", "1000000,5x", ","])
def test_numbers_that_are_none(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(ENVIRONMENT, said)
    complaints: list[str] = []
    assert handed.take(complaints.append) == []
    assert len(complaints) == 1
