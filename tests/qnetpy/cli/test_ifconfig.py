"""`qnet ifconfig` with requests that only one kind of driver knows: the whole way to an aggregate and a VLAN and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from qnetpy.cli.ifconfig import specific
from qnetpy.cli.main import main
from qnetpy.cli.output import CommandError
from stack.core.manager import open_manager
from stack.core.specific import specific_driver
from stack.core.stack import Stack
from stack.drivers.hub import Hub


def test_words() -> None:
    assert specific(["agrport", "en2"]) == ("agrport", {"interface": "en2"})
    assert specific(["portpriority", "en2", "0x10"]) == ("portpriority", {"interface": "en2", "value": 16})
    for wrong in (["agrport"], ["vlanprio", "x"], ["vlan", "1", "2"]):
        with pytest.raises(CommandError):
            specific(wrong)


def facts(stack: Stack, name: str) -> dict[str, object]:
    interface = stack.interface(name)
    assert interface is not None
    driver = specific_driver(interface.driver)
    assert driver is not None
    return dict(driver.get_specific())


@pytest.mark.host
async def test_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def qnet(*words: str) -> None:
        status = await trio.to_thread.run_sync(main, ["ifconfig", "--run-dir", str(tmp_path), *words])
        assert status == 0, capsys.readouterr().err

    async with open_manager([], socket=str(tmp_path / "socket")) as manager:
        hub = Hub(manager.dispatch)
        for number in range(3):
            manager.stack.load(hub.module(), f"name=en{number},mac=02:00:00:00:00:0{number + 1}")
        await qnet("agr0", "create", "agrport", "en0")
        await qnet("agr0", "agrport", "en1")
        await qnet("agr0", "lacp", "slow")
        await qnet("agr0", "-agrport", "en0")
        told = facts(manager.stack, "agr0")
        assert told["timeout"] == "slow"
        ports = told["ports"]
        assert isinstance(ports, list)
        assert [one["interface"] for one in ports] == ["en1"]
        await qnet("vlan5", "create", "vlan", "5", "vlanif", "en2")
        await qnet("vlan5", "vlanprio", "6")
        assert facts(manager.stack, "vlan5") == {"vlan": 5, "vlanif": "en2", "vlanprio": 6, "present": True, "lacks": ""}
        await qnet("vlan5", "destroy")
        assert manager.stack.interface("vlan5") is None
