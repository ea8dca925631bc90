"""Compiled modules are used when they fit, all or none, and never in silence when they do not."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from resmgr import compiled

ROOT = Path(__file__).parent.parent.parent
LISTED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["qnetpy"]["compiled"]["modules"]
SOURCE = b"x = 1\n"


class Build:
    """A build with a manifest, of one source. Nothing of it can be loaded."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "build" / "compiled"
        self.source = root / "one.py"
        self.source.write_bytes(SOURCE)
        self.folder.mkdir(parents=True)
        (self.folder / "one.so").touch()
        (self.folder / "shared.so").touch()
        status = self.source.stat()
        digest = hashlib.sha256(SOURCE).hexdigest()
        self.manifest: dict[str, object] = {
            "python": sys.version,
            "shared": "shared",
            "files": {"one": "one.so", "shared": "shared.so"},
            "sources": [["one.py", status.st_size, status.st_mtime_ns, digest]],
        }
        self.write(json.dumps(self.manifest))

    def write(self, text: str) -> None:
        (self.folder / "manifest.json").write_text(text)

    def choose(self, how: str) -> compiled.CompiledFinder | None:
        return compiled.choose(how, str(self.root), str(self.folder))

    def problem(self) -> str:
        with pytest.raises(compiled.Unfit) as caught:
            compiled.load(str(self.root), str(self.folder))
        return str(caught.value)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


@pytest.mark.parametrize("how", ["", "auto", "on"])
def test_a_build_that_fits_is_used(build: Build, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    finder = build.choose(how)
    assert finder is not None
    assert finder.names() == ["one"]
    spec = finder.find_spec("one")
    assert spec is not None
    assert spec.origin == str(build.folder / "one.so")
    assert finder.find_spec("two") is None
    assert capsys.readouterr().err == ""


def test_off_looks_at_nothing(build: Build) -> None:
    build.write("rubbish")
    assert build.choose("off") is None


def test_the_source_may_be_touched_but_not_changed(build: Build) -> None:
    os.utime(build.source, ns=(1, 1))
    assert build.choose("on") is not None
    build.source.write_bytes(b"x = 2\n")
    assert build.problem() == "one.py has changed since"
    build.source.write_bytes(SOURCE + b"\n")
    assert build.problem() == "one.py has changed since"
    build.source.unlink()
    assert build.problem() == "one.py: No such file or directory"


def test_a_build_of_another_python_does_not_fit(build: Build) -> None:
    build.write(json.dumps(build.manifest | {"python": "3.11.0 (main)"}))
    assert build.problem() == "they were made for another Python"


def test_an_extension_may_not_be_missing(build: Build) -> None:
    (build.folder / "shared.so").unlink()
    assert build.problem() == f"{build.folder / 'shared.so'} is missing"


def test_a_damaged_manifest_is_refused_wherever_it_ends(build: Build) -> None:
    text = json.dumps(build.manifest)
    for length in range(len(text)):
        build.write(text[:length])
        assert build.problem() == "manifest.json is damaged", length


@pytest.mark.parametrize(
    "change",
    [{"files": 1}, {"files": {"one": 1}}, {"sources": 1}, {"sources": [[1, 2, 3, 4]]}, {"sources": [["one.py"]]}],
)
def test_a_manifest_of_another_shape_is_refused(build: Build, change: dict[str, object]) -> None:
    build.write(json.dumps(build.manifest | change))
    assert build.problem() == "manifest.json is damaged"


def test_auto_does_not_use_a_build_that_does_not_fit_and_tells_why(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    build.source.write_bytes(b"")
    for how in ("", "auto"):
        finder = build.choose(how)
        assert finder is not None
        assert finder.files == {}
        assert finder.problem == "one.py has changed since; run make compile again, or set QNETPY_COMPILED=off"
    assert capsys.readouterr().err == "", "a line from every command would be in the way of what they print"


def test_on_refuses_what_does_not_fit(build: Build) -> None:
    build.source.write_bytes(b"")
    with pytest.raises(ImportError, match=r"cannot be used: one\.py has changed since; run make compile again$"):
        build.choose("on")
    (build.folder / "manifest.json").unlink()
    with pytest.raises(ImportError, match=r"nothing is built in .*: run make compile, or set it to off$"):
        build.choose("on")


def test_without_a_build_auto_is_silent(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    (build.folder / "manifest.json").unlink()
    assert build.choose("auto") is None
    assert capsys.readouterr().err == ""


def test_another_word_is_refused(build: Build) -> None:
    with pytest.raises(ImportError, match="QNETPY_COMPILED is auto, on or off, not yes"):
        build.choose("yes")


def test_every_listed_module_has_a_source() -> None:
    assert [name for name in LISTED if not (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()] == []
    assert sorted(set(LISTED)) == sorted(LISTED)


def test_this_run_is_what_was_asked_for() -> None:
    """Under QNETPY_COMPILED=on this sees that the listed modules are compiled, otherwise that none is."""
    for name in LISTED:
        importlib.import_module(name)
    assert sorted(compiled.running()) == (sorted(LISTED) if os.environ[compiled.VARIABLE] == "on" else [])
    assert compiled.describe(0) == "pure Python"
    assert compiled.describe(61) == "compiled, 61 modules"
    assert compiled.describe(0, "stale") == "pure Python; the compiled modules are not used: stale"


@pytest.mark.host
@pytest.mark.parametrize("package", ["resmgr", "stack", "qnetpy"])
def test_the_choice_is_made_by_whichever_package_comes_first(package: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", f"import {package}"],
        cwd=ROOT,
        env={**os.environ, compiled.VARIABLE: "perhaps"},
        capture_output=True,
        text=True,
    )
    assert result.stderr.splitlines()[-1] == "ImportError: QNETPY_COMPILED is auto, on or off, not perhaps"


@pytest.mark.host
@pytest.mark.parametrize(("program", "looks"), [("/usr/bin/qnet", False), ("/usr/bin/io-pkt", True), ("", True)])
def test_the_command_does_not_even_look_at_a_build(program: str, looks: bool) -> None:
    """What is looked at is told by what is opened."""
    code = f"""
import sys
sys.argv[0] = {program!r}
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
import resmgr
print(any(name.endswith("manifest.json") for name in opened))
"""
    environment = {name: value for name, value in os.environ.items() if name != compiled.VARIABLE}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout == f"{looks}\n"
