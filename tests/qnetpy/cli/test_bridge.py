"""`qnet bridge`: words to requests, and the whole way to a bridge of a running io-pkt and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from qnetpy.cli.bridge import parsed
from qnetpy.cli.main import main
from qnetpy.cli.output import CommandError
from stack.core.manager import open_manager
from stack.drivers.hub import Hub
from stack.testing.driver import frame
from stack.wire.ethernet import BROADCAST


def test_words_are_requests() -> None:
    line = "add en0 stp en0 -learn en0 maxaddr 7 ifpathcost en0 0x10 static en0 02:00:00:00:00:01 flush ipf -ipf proto stp up"
    assert parsed(line.split()) == (
        [
            ("add", {"interface": "en0"}),
            ("stp", {"interface": "en0", "on": True}),
            ("learn", {"interface": "en0", "on": False}),
            ("maxaddr", {"value": 7}),
            ("ifpathcost", {"interface": "en0", "value": 16}),
            ("static", {"interface": "en0", "address": "02:00:00:00:00:01"}),
            ("flush", {}),
            ("ipf", {"on": True}),
            ("ipf", {"on": False}),
            ("proto", {"value": "stp"}),
            ("up", {}),
        ],
        False,
    )
    assert parsed(["addr"]) == ([], True)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["add"], "needs an interface"), (["maxaddr", "x"], "needs a number"), (["dance"], "no request"), (["-add", "x"], "no request")],
)
def test_wrong_words(words: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        parsed(words)


@pytest.mark.host
async def test_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def qnet(*words: str) -> str:
        status = await trio.to_thread.run_sync(main, ["bridge", "--run-dir", str(tmp_path), *words])
        told = capsys.readouterr()
        assert status == 0, told.err
        return told.out

    async with open_manager([], socket=str(tmp_path / "socket")) as manager:
        hubs = [Hub(manager.dispatch) for _ in range(2)]
        for number, hub in enumerate(hubs):
            manager.stack.load(hub.module(), f"name=en{number},mac=02:00:00:00:00:0{number + 1}")
        assert await qnet() == "no bridges\n"
        manager.stack.load("bridge", "name=bridge0")
        await qnet(
            "bridge0",
            "add",
            "en0",
            "add",
            "en1",
            "stp",
            "en0",
            "ifpathcost",
            "en0",
            "7",
            "-discover",
            "en1",
            "static",
            "en1",
            "02:00:00:00:00:09",
        )
        other = hubs[0].port("far", bytes((2, 0, 0, 0, 0, 7)))
        with trio.fail_after(20):
            # Three seconds pass before the port is taken for an edge.
            while "02:00:00:00:01:01" not in await qnet("bridge0", "addr"):
                other.transmit([frame(BROADCAST, bytes((2, 0, 0, 0, 1, 1)), b"x")])
                await trio.sleep(0.3)
        shown = await qnet("bridge0")
        assert "learn,discover,stp" in shown
        assert "designated" in shown
        facts = json.loads(await qnet("--json", "bridge0"))
        assert [one["interface"] for one in facts["members"]] == ["en0", "en1"]
        assert facts["members"][0]["stp"]["cost"] == 7
        assert facts["members"][1]["flags"] == ["learn"]
        assert {one["address"]: one["static"] for one in facts["addresses"]} == {"02:00:00:00:00:09": True, "02:00:00:00:01:01": False}
        assert len(json.loads(await qnet("bridge0", "addr", "--json"))) == 2
        assert [one["bridge"] for one in json.loads(await qnet("-a", "--json"))] == ["bridge0"]
        assert await qnet("bridge0", "down") == ""
        assert not manager.stack.interface("bridge0").up  # type: ignore[union-attr]  # it is there
        status = await trio.to_thread.run_sync(main, ["bridge", "--run-dir", str(tmp_path), "bridge0", "add", "en9"])
        assert status == 1
        assert capsys.readouterr().err == "qnet bridge: io-pkt0 has no interface en9; there is: en0, en1, bridge0 (ENXIO)\n"
