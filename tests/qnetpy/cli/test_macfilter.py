"""`qnet macfilter`: words to requests, and the whole way to the filter of a running io-pkt and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from qnetpy.cli.macfilter import parsed
from qnetpy.cli.main import main
from qnetpy.cli.output import CommandError
from stack.core.manager import open_manager
from stack.drivers.hub import Hub

RULE = "block in on en0 src 02:00:00:00:00:07"


def test_words_are_requests() -> None:
    assert parsed(["rule", *RULE.split()]) == ("rule", {"rule": RULE})
    assert parsed(["delrule", *RULE.split()]) == ("delrule", {"rule": RULE})
    assert parsed(["flushrule", "en0"]) == ("flushrule", {"interface": "en0"})
    assert parsed(["default", "block"]) == ("default", {"value": "block"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rule"], "needs a rule"),
        (["flushrule"], "needs an interface"),
        (["default", "a", "b"], "pass or block"),
        (["dance"], "no request"),
    ],
)
def test_wrong_words(words: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        parsed(words)


@pytest.mark.host
async def test_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def qnet(*words: str, status: int = 0) -> str:
        answer = await trio.to_thread.run_sync(main, ["macfilter", "--run-dir", str(tmp_path), *words])
        told = capsys.readouterr()
        assert answer == status, told.err
        return told.err if status else told.out

    async with open_manager([], socket=str(tmp_path / "socket")) as manager:
        manager.stack.load(Hub(manager.dispatch).module(), "name=en0,mac=02:00:00:00:00:01")
        assert await qnet(status=1) == "qnet macfilter: io-pkt0 has no module or interface macfilter; loaded: hub (ENXIO)\n"
        manager.stack.load("stack.l2.macfilter", "rule=pass out on en0")
        await qnet("rule", *RULE.split())
        await qnet("default", "block")
        head = "#  RULE                                   MATCHED"
        assert await qnet() == f"default: block\n\n{head}\n1  pass out on en0                        0\n2  {RULE}  0\n"
        assert "is no rule" in await qnet("rule", "dance", status=1)
        assert json.loads(await qnet("--json", "delrule", *RULE.split())) == {
            "default": "block",
            "rules": [{"rule": "pass out on en0", "matched": 0, "present": True}],
        }
        await qnet("flushrule", "en0")
        assert json.loads(await qnet("--json")) == {"default": "block", "rules": []}
        assert manager.stack.failures() == {}
        answer = await trio.to_thread.run_sync(main, ["macfilter", "--run-dir", str(tmp_path), "--module", "hub"])
        assert answer == 1
        assert capsys.readouterr().err == "qnet macfilter: hub has no requests of its own (ENOTSUP)\n"
