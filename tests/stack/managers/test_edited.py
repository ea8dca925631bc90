"""A file that was edited is not imported again, and whoever mounts it is told so: whether it loads or not."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmgr.channel import ND_LOCAL, PID_SYSTEM, Credentials
from resmgr.dispatch import Buffer
from stack.managers.iopkt import IoPktManager
from stack.managers.protocol import CHID_STACK, pack_request, unpack_reply
from stack.testing.machines import World

PACKAGE = "edited_by_its_author"
ECHO = """
import attrs
from stack.core.module import Kind, Module
from {package}.helper import VALUE

@attrs.frozen
class Options:
    pass

class Echo:
    def detach(self): pass

def attach(context, options):
    return Echo()

MODULE = Module("echo", Kind.PROTOCOL, Options, attach)
"""
OLD = "changed after it was imported, and this is the code from before: start io-pkt again"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "echo.py").write_text(ECHO.format(package=PACKAGE))
    (folder / "helper.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [one for one in sys.modules if one.split(".")[0] == PACKAGE]:
        del sys.modules[name]


class Asking:
    def __init__(self, world: World) -> None:
        self.world, self.stack = world, world.machine("a", 0).stack
        self.manager = IoPktManager(self.stack, os.geteuid())
        self.connection = self.stack.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_STACK, Credentials(0, 0))

    def ask(self, verb: str, **arguments: object) -> dict[str, object]:
        answers: list[dict[str, object]] = []

        def answered(status: int, reply: Buffer) -> None:
            answers.append(unpack_reply(bytes(reply)))

        self.connection.submit([pack_request(verb, **arguments)], 65536, answered)
        self.world.dispatch.run_for(0.1)
        return answers[0]


@pytest.mark.parametrize("name", ["echo.py", "helper.py"])
@pytest.mark.parametrize("path", [f"{PACKAGE}.echo", f"{PACKAGE}.echo:MODULE"])
def test_who_mounts_it_is_told(package: Path, name: str, path: str) -> None:
    with World(1) as world:
        asking = Asking(world)
        for _ in range(2):
            assert "edited" not in asking.ask("mount", module=path)
            asking.ask("umount", what="echo")
        file = package / name
        file.write_text(file.read_text() + "\nNEW = 1\n")
        assert asking.ask("mount", module=path)["edited"] == f"{file} {OLD}"
        asking.ask("umount", what="echo")
        refused = asking.ask("mount", module=path, options="loud")
        assert refused == {"error": f"echo: there is no option loud: echo takes none; {file} {OLD}", "errno": errno.EINVAL}
        file.unlink()
        assert asking.ask("mount", module=path)["edited"] == f"{file} {OLD}"
        asking.ask("umount", what="echo")
        asking.manager.close()


def test_a_file_that_could_not_be_imported_is_tried_again_and_its_neighbours_are_not(package: Path) -> None:
    with World(1) as world:
        asking = Asking(world)
        good = (package / "echo.py").read_text()
        (package / "echo.py").write_text(good + "\nraise ValueError('a slip')\n")
        assert asking.ask("mount", module=f"{PACKAGE}.echo")["error"] == (
            f"cannot load {PACKAGE}.echo: importing {PACKAGE}.echo raised ValueError: a slip"
        )
        (package / "echo.py").write_text(good)
        (package / "helper.py").write_text("VALUE = 22\n")
        made = asking.ask("mount", module=f"{PACKAGE}.echo")
        assert (made["name"], made["edited"]) == ("echo", f"{package / 'helper.py'} {OLD}")
        asking.ask("umount", what="echo")
        asking.manager.close()
