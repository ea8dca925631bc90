"""Target with state: `/dev/crypto` and a program that sends it whatever it likes."""

from __future__ import annotations

import os
from functools import partial

from resmgr.channel import Credentials
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.iorequest import pack_devctl
from resmgr.system import System
from resmgr.testing.ioclient import IoClient
from resmgr.testing.virtual import VirtualDispatch
from stack.core.stack import Stack
from stack.cryptodev import protocol
from stack.managers.crypto import Cryptodev

ITEMS_MAX = 64


def _answered(answers: list[int], status: int, _: Buffer) -> None:
    answers.append(status)


def cryptodev(parts: list[bytes]) -> None:
    """An item's first byte is the devctl command, or how the client gives up; the rest is its data. Afterwards nothing may be left."""
    dispatch = VirtualDispatch(1)
    system = System(dispatch, "here")
    stack = Stack(system, lambda size: bytes(size))
    attached = stack.load("stack.managers.crypto", "sessions=8,inflight=64k,rate=4000").attached
    assert isinstance(attached, Cryptodev)
    manager = attached.manager
    client = IoClient(system.kernel, Credentials(1000, 1000))
    entry = client.open(b"dev/crypto", os.O_RDWR)
    connection = client.connection(manager.target)
    for part in parts[:ITEMS_MAX]:
        how, data = (part[0], part[1:]) if part else (0, b"")
        answers: list[int] = []
        pending = connection.submit((pack_devctl(entry.ocb, how & 7, data),), 4096, partial(_answered, answers))
        if how & 8 and pending is not None:
            pending.unblock()
        if how & 16:
            dispatch.run_for(1.0)
            assert len(answers) == 1
    dispatch.run_for(100.0)
    assert len(manager.accounts) <= 1
    assert manager.accounts.inflight == 0
    assert manager.accounts.things == stack.crypto.sessions <= 8
    assert manager.counters["failed"] == 0
    client.close_all()
    assert (manager.accounts.things, stack.crypto.sessions) == (0, 0)
    stack.close()
    system.close()


def cryptodev_formats(data: bytes) -> None:
    """Requests and their answers, each parser on the same bytes."""
    try:
        wanted = protocol.SessionRequest.parse(data)
    except BadMessage:
        pass
    else:
        assert wanted.pack()[:3] == data[:3]
        assert protocol.SessionRequest.parse(wanted.pack()) == wanted
    try:
        session, operation, count = protocol.parse_batch_head(data)
        batch = protocol.parse_batch(data, count, 12)
    except BadMessage:
        pass
    else:
        packed = protocol.pack_batch(session, protocol.Operation(operation), batch.nonces, batch.aads, batch.items)
        again = b"".join(packed)
        assert (len(again), again[8:]) == (len(data), data[8:])
    for count in (0, 1, 3):
        try:
            results = protocol.parse_results(data, count)
        except BadMessage:
            continue
        assert protocol.pack_results(results) == data
    protocol.parse_free(data)
