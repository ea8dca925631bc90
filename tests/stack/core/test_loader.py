"""Finding modules: by short name, by entry point, by dotted path; every failure is one sentence with ENXIO."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.core.errors import ModuleError
from stack.core.loader import find_module
from stack.core.module import Kind

GOOD = """
import attrs
from stack.core.module import Kind, Module

@attrs.frozen
class Options:
    pass

MODULE = Module("mine", Kind.PROTOCOL, Options, lambda context, options: None)
SECOND = Module("second", Kind.DRIVER, Options, lambda context, options: None)
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path: a package `thirdparty`, and an installed distribution that announces modules."""
    package = tmp_path / "thirdparty"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "good.py").write_text(GOOD)
    (package / "empty.py").write_text("")
    (package / "needy.py").write_text("import there_is_no_such_thing")
    (package / "broken.py").write_text("raise ValueError('bad day')")
    info = tmp_path / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[io_pkt.modules]\nmine = thirdparty.good:MODULE\nnic = thirdparty.good:SECOND\ngone = thirdparty.absent:MODULE\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [one for one in sys.modules if one.split(".")[0] == "thirdparty"]:
        del sys.modules[name]


def test_short_names() -> None:
    assert (find_module("packet").name, find_module("packet").kind) == ("packet", Kind.DRIVER)
    assert find_module("packet", Kind.DRIVER) is find_module("packet")
    assert find_module("fault").kind is Kind.WRAPPER


def test_entry_points_and_dotted_paths(modules: Path) -> None:
    assert find_module("mine", Kind.PROTOCOL).name == "mine"
    assert find_module("nic", Kind.DRIVER).name == "second"
    assert find_module("thirdparty.good").name == "mine"
    assert find_module("thirdparty.good:SECOND").name == "second"


LOOKS = "; io-pkt looks in the PYTHONPATH that it was started with, where FOLDER/NAME.py is FOLDER.NAME"
OWN = "; a file of your own goes into a folder on Python's path: FOLDER/NAME.py is FOLDER.NAME"


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("nosuch", Kind.DRIVER, "there is no driver called nosuch: not in stack.drivers and not among the installed io_pkt.modules" + OWN),
        ("nosuch", Kind.PROTOCOL, "there is no protocol called nosuch: not in stack.inet and not among the installed io_pkt.modules" + OWN),
        (
            "nosuch",
            None,
            "there is no module called nosuch: not in stack.drivers and not in stack.drivers.wrap and not in stack.inet and",
        ),
        ("hub", Kind.DRIVER, "hub cannot be loaded by name: a hub joins stacks of one program"),
        ("packet", Kind.PROTOCOL, "there is no protocol called packet"),
        ("mine", Kind.DRIVER, "mine is a protocol, not a driver: load it with -p"),
        ("nic", Kind.PROTOCOL, "nic is a driver, not a protocol: load it with -d"),
        ("gone", None, "there is no module gone: Python finds no thirdparty.absent"),
        ("thirdparty.absent", None, "there is no module thirdparty.absent: Python finds no thirdparty.absent" + LOOKS),
        ("no_such_package.x", None, "there is no module no_such_package.x: Python finds no no_such_package"),
        ("thirdparty.empty", None, "thirdparty.empty cannot be loaded: thirdparty.empty has no MODULE that is a Module"),
        (
            "thirdparty.needy",
            None,
            "cannot load thirdparty.needy: it needs the Python module there_is_no_such_thing, which is not installed",
        ),
        ("thirdparty.broken", None, "cannot load thirdparty.broken: importing thirdparty.broken raised ValueError: bad day"),
        ("./boom.py", None, "'./boom.py' is not a module's name and not a dotted path" + OWN),
        ("../etc", None, "'../etc' is not a module's name and not a dotted path" + OWN),
        ("", None, "'' is not a module's name and not a dotted path" + OWN),
        ("a b", Kind.DRIVER, "'a b' is not a module's name"),
    ],
)
def test_failures_are_sentences(modules: Path, name: str, kind: Kind | None, sentence: str) -> None:
    with pytest.raises(ModuleError) as raised:
        find_module(name, kind)
    assert str(raised.value).startswith(sentence)
    assert raised.value.errno == errno.ENXIO


@pytest.mark.parametrize("raised", ["KeyboardInterrupt", "GeneratorExit", "SystemExit", "asyncio.CancelledError"])
def test_a_file_that_raises_whatever_it_likes_is_one_that_cannot_be_loaded(modules: Path, raised: str) -> None:
    name = f"raises_{raised.lower().replace('.', '_')}"
    (modules / "thirdparty" / f"{name}.py").write_text(f"import asyncio\nraise {raised}('of mine')")
    with pytest.raises(ModuleError) as refused:
        find_module(f"thirdparty.{name}")
    short = raised.rpartition(".")[2]
    assert str(refused.value) == f"cannot load thirdparty.{name}: importing thirdparty.{name} raised {short}: of mine"
    assert refused.value.errno == errno.ENXIO
