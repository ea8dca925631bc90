"""A settings file is checked strictly, and its errors say where and what would be right."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import attrs
import pytest

from qnetpy import settings
from qnetpy.settings import SettingsError, required, setting


@attrs.frozen
class Wheel:
    """A wheel."""

    spokes: int = setting("How many.", 36)
    colour: Literal["black", "silver"] = setting("Its colour.", "black")


@attrs.frozen
class Bicycle:
    """A bicycle."""

    name: str = setting("What it is called.", "")
    weight: float = setting("Kilograms.", 12.5)
    bell: bool = setting("It has a bell.", True)
    front: Wheel = setting("", Wheel())
    spare: tuple[Wheel, ...] = setting("Spare wheels.", ())
    riders: dict[str, int] = setting("Riders and their ages.", attrs.Factory(dict))


@attrs.frozen
class Rack:
    """A rack."""

    place: str = required("Where it stands.", str)
    bicycles: dict[str, Bicycle] = setting("What stands there.", attrs.Factory(dict))


def error(kind: type[attrs.AttrsInstance], text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        settings.structure(kind, tomllib.loads(text), "file")
    return str(caught.value)


def test_a_file_becomes_a_tree() -> None:
    text = 'name = "red"\nweight = 11\nspare = [{spokes = 32}]\nriders = {ann = 7}\n[front]\ncolour = "silver"\n'

    tree = settings.structure(Bicycle, tomllib.loads(text))

    assert tree == Bicycle("red", 11.0, True, Wheel(36, "silver"), (Wheel(32),), {"ann": 7})
    assert type(tree.weight) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae = 1", "file: nmae: unknown key; did you mean 'name'?"),
        ("zzz = 1", "file: zzz: unknown key; known here: name, weight, bell, front, spare, riders"),
        ("[front]\nspoke = 1", "file: front.spoke: unknown key; did you mean 'spokes'?"),
        ("spare = [{}, {colors = 1}]", "file: spare[1].colors: unknown key; did you mean 'colour'?"),
        ('front = {colour = "blck"}', "file: front.colour: one of black, silver expected, not 'blck'; did you mean 'black'?"),
        ('weight = "12"', 'file: weight: a number expected, not "12"'),
        ("bell = 1", "file: bell: true or false expected, not 1"),
        ("name = 1", "file: name: a string expected, not 1"),
        ("front = 3", "file: front: a table expected, not 3"),
        ("front = {spokes = true}", "file: front.spokes: a whole number expected, not true"),
        ('spare = "x"', 'file: spare: a list expected, not "x"'),
        ("riders = [1]", "file: riders: a table expected, not [1]"),
        ('riders = {ann = "old"}', 'file: riders.ann: a whole number expected, not "old"'),
        ("bell = 1\nname = 1", "file: name: a string expected, not 1 (and 1 more)"),
    ],
)
def test_errors_say_where_and_what_is_right(text: str, message: str) -> None:
    assert error(Bicycle, text) == message


def test_a_missing_value_is_named() -> None:
    assert error(Rack, "") == "file: place: missing"
    assert (
        error(Rack, 'place = "x"\n[bicycles.red.front]\nspokse = 1')
        == "file: bicycles.red.front.spokse: unknown key; did you mean 'spokes'?"
    )


def test_not_toml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("name = \n")
    with pytest.raises(SettingsError, match="not TOML"):
        settings.load(Bicycle, path)
    path.write_text("[access]\nusers = [{}]\n[[access.users]]\n")
    with pytest.raises(SettingsError, match=r"not TOML: access\.users is given twice \(at line 3, column 15\)"):
        settings.load(Bicycle, path)
    path.write_text("[access]\n[access]\n")
    with pytest.raises(SettingsError, match=r"not TOML: access is given twice \(at line 2, column 8\)"):
        settings.load(Bicycle, path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not TOML"):
        settings.load(Bicycle, path)


def test_what_is_dumped_reads_back() -> None:
    tree = Bicycle('a "quoted" ü', 3.0, False, Wheel(1), (Wheel(2, "silver"),), {"a b": 1})

    assert settings.structure(Bicycle, tomllib.loads(settings.dump(tree))) == tree


def test_the_example_explains_every_field_and_means_the_defaults() -> None:
    text = settings.example(Bicycle)
    assert settings.structure(Bicycle, tomllib.loads(text)) == Bicycle()

    live = "\n".join(line[1:] if line[:1] == "#" and line[1:2] not in (" ", "") else line for line in text.splitlines())
    assert settings.structure(Bicycle, tomllib.loads(live)) == Bicycle()
    for doc in ("What it is called.", "Kilograms.", "How many.", "Spare wheels."):
        assert f"# {doc}" in text
