"""`qnet specific`: words to requests, and the whole way to any module of a running io-pkt and back."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest
import trio

from qnetpy.cli.main import main
from qnetpy.cli.output import CommandError
from qnetpy.cli.specific import parsed, shown
from stack.core.errors import ModuleError
from stack.core.manager import open_manager
from stack.core.module import Kind, Module


def test_values_are_what_they_look_like() -> None:
    words = ["a=anna", "b=12", "c=true", "d=", 'e="12"', "f=02:00:00:00:00:07", "g=10.9.1.0/24 p1", "h=[1, 2]", "i=x=y", "j=NaN", "k=null"]
    assert parsed(words) == {
        "a": "anna",
        "b": 12,
        "c": True,
        "d": "",
        "e": "12",
        "f": "02:00:00:00:00:07",
        "g": "10.9.1.0/24 p1",
        "h": [1, 2],
        "i": "x=y",
        "j": "NaN",
        "k": None,
    }


@pytest.mark.parametrize(("words", "said"), [(["name"], "'name' is no argument"), (["=x"], "is no argument"), (["a=1", "a=2"], "twice")])
def test_wrong_words(words: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        parsed(words)


def test_facts_for_people() -> None:
    rows = [{"name": "b", "seen": 1.5}, {"name": "c", "lost": None}]
    assert shown({"name": "a", "on": True, "counters": {"bad": 1, "good": 2}, "none": [], "rows": rows, "words": ["x", "y"]}) == (
        "name:     a\non:       yes\ncounters: bad 1, good 2\nnone:     none\nwords:    x, y\n\n"
        "rows\nNAME  SEEN  LOST\nb     1.5   -\nc     -     -"
    )
    assert shown({}) == ""


@attrs.frozen
class Options:
    pass


class Named:
    def __init__(self) -> None:
        self.name = "a"

    def set_specific(self, command: str, arguments: Mapping[str, object]) -> None:
        name = arguments.get("name")
        if command != "rename" or not isinstance(name, str):
            raise ModuleError(errno.EINVAL, "named: there is rename, with a name")
        self.name = name

    def get_specific(self) -> Mapping[str, object]:
        return {"name": self.name}

    def detach(self) -> None: ...


@pytest.mark.host
async def test_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def qnet(*words: str, status: int = 0) -> str:
        answer = await trio.to_thread.run_sync(main, ["specific", "--run-dir", str(tmp_path), *words])
        told = capsys.readouterr()
        assert answer == status, told.err
        return told.err if status else told.out

    async with open_manager([], socket=str(tmp_path / "socket")) as manager:
        manager.stack.load(Module("named", Kind.PROTOCOL, Options, lambda context, options: Named()))
        manager.stack.load("bridge", "name=bridge0")
        assert await qnet("named") == "name: a\n"
        assert await qnet("named", "rename", "name=anna") == ""
        assert json.loads(await qnet("#1", "rename", "name=berta", "--json")) == {"name": "berta"}
        assert await qnet("named", "rename", "name=12", status=1) == "qnet specific: named: there is rename, with a name (EINVAL)\n"
        assert json.loads(await qnet("--json", "named")) == {"name": "berta"}
        await qnet("bridge0", "maxaddr", "value=500")
        assert "\nmaxaddr:" in await qnet("/dev/io-net/bridge0")
        assert json.loads(await qnet("--json", "bridge0"))["maxaddr"] == 500
        assert "no module or interface nosuch" in await qnet("nosuch", status=1)
        assert await qnet("named", "rename", "anna", status=2) == "qnet specific: 'anna' is no argument: key=value is one\n"
