"""lsm-qnet as a module of io-pkt: what was set at run time and a restart."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import trio

from qnetpy.channels import CHID_CONTROL
from qnetpy.controlformat import pack_request, unpack_reply
from qnetpy.identity.authority import make_authority
from qnetpy.lsm import KeptQnet, LsmQnet
from qnetpy.members.store import DirectoryStore
from qnetpy.testing.members import enrolled
from resmgr.client import Client
from resmgr.ids import ND_LOCAL, PID_SYSTEM
from stack.core.loaded import Loaded
from stack.core.manager import open_manager


def ask(path: str, verb: str, **arguments: object) -> dict[str, object]:
    with Client(path) as client:
        reply = client.connect(ND_LOCAL, PID_SYSTEM, CHID_CONTROL).send(pack_request(verb, **arguments), reply_len=1 << 20, timeout=10.0)
    return unpack_reply(bytes(reply.data))


@pytest.mark.host
async def test_ciphers_that_were_chosen_survive_a_restart(tmp_path: Path) -> None:
    """Whoever has ruled one out does not find it in use again because a callback raised."""
    wall = time.time()
    authority = make_authority("garden", wall, random=random.Random(1).randbytes)
    DirectoryStore(tmp_path).save(enrolled(authority, "n1", wall, random.Random(2).randbytes).kept)
    (tmp_path / "qnet.toml").write_text('[qnet]\ndiscovery = "ethernet"\nsuites = ["aes-128-gcm", "chacha20-poly1305"]\n')
    path = str(tmp_path / "socket")
    async with open_manager([], socket=path) as manager:
        options = f"config={tmp_path}/qnet.toml,keys={tmp_path},mount=none,serve=false,restart=2"
        first = manager.stack.load("qnetpy.lsm", options)

        async def suites() -> object:
            return (await trio.to_thread.run_sync(lambda: ask(path, "status")))["suites"]

        async def restarted(before: Loaded) -> Loaded:
            def boom() -> None:
                raise RuntimeError("boom")

            before.dispatch.call_soon(boom)
            with trio.fail_after(10):
                while before in manager.stack.loaded or not manager.stack.loaded:  # noqa: ASYNC110  # in the dispatch: no event tells
                    await trio.sleep(0.01)
            (found,) = manager.stack.loaded
            return found

        assert isinstance(first.attached, LsmQnet)
        assert first.attached.keep() is None
        assert await trio.to_thread.run_sync(lambda: ask(path, "suites", names=["aes-128-gcm"])) == {}
        assert "error" in await trio.to_thread.run_sync(lambda: ask(path, "suites", names=["rot13"]))
        assert first.attached.keep() == KeptQnet(("aes-128-gcm",))
        second = await restarted(first)
        assert await suites() == ["aes-128-gcm"]
        manager.stack.unload(second)
        third = manager.stack.load("qnetpy.lsm", options)
        assert await suites() == ["aes-128-gcm", "chacha20-poly1305"], "who loads it anew begins with the settings"
        assert third in manager.stack.loaded
