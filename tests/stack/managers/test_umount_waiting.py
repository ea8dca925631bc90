"""A module that waits for its restart is unmounted by all that names it while it is there."""

from __future__ import annotations

import errno
import random

import attrs
import pytest

from resmgr.channel import ND_LOCAL, PID_SYSTEM, Credentials
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.driver import Port
from stack.core.errors import ModuleError
from stack.core.module import Context, Kind, Module
from stack.core.stack import Stack
from stack.managers.iopkt import IoPktManager
from stack.managers.protocol import CHID_STACK, pack_request, unpack_reply


@attrs.frozen
class Options:
    pass


class Card:
    name, mac, mtu, up = "en0", bytes.fromhex("020000000001"), 1500, True

    def start(self, port: Port) -> None: ...

    def accept(self, ethertypes: object) -> None: ...

    def transmit(self, frames: object) -> None: ...

    def detach(self) -> None: ...

    def info(self) -> dict[str, str | int]:
        return {}


@pytest.mark.parametrize(
    ("what", "found"),
    [(one, True) for one in ("en0", "/dev/io-net/en0", "devnp-card.so", "card", "#1", "card #1")]
    + [(one, False) for one in ("en1", "/dev/io-net/card", "lsm-card.so", "#2")],
)
def test_what_names_a_module_that_waits(what: str, found: bool) -> None:
    dispatch = VirtualDispatch(1)
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    manager = IoPktManager(stack, 0)
    there = True

    def attach(context: Context, options: Options) -> Card:
        if not there:
            raise ModuleError(errno.ENODEV, "the card is gone")
        return Card()

    loaded = stack.load(Module("card", Kind.DRIVER, Options, attach), "restart=5")
    there = False
    stack.restarter.failed(loaded.guard)
    dispatch.run_for(0.1)
    assert stack.restarter.absent() == {"card #1": "the card is gone"}
    answers: list[dict[str, object]] = []
    client = stack.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_STACK, Credentials(0, 0))
    client.submit([pack_request("umount", what=what)], 65536, lambda status, reply: answers.append(unpack_reply(bytes(reply))))
    dispatch.run_for(0.1)
    (answer,) = answers
    if found:
        assert answer == {"name": "card", "number": 1, "interface": "en0", "waiting": "the card is gone"}
    else:
        assert answer["errno"] == errno.ENXIO
    assert bool(stack.restarter.absent()) is not found
    manager.close()
    stack.close()
