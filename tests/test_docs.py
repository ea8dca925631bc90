"""Documents lead somewhere: links, paths of files and commands that they name, and the index of decisions."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from qnetpy.cli.main import COMMANDS, Parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
NAMED = re.compile(r"`((?:resmgr|stack|qnetpy|tests|bench|clusters|docs)/[\w./-]*)`")
EXAMPLES = {"stack/drivers/unixlink.py"}
"""Files that a page tells its reader to write."""


BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL_BLOCK = re.compile(r"(\w+[#$] |\$ )?(qnet|make|python -m) [a-z]")
"""How a block of commands begins, maybe behind a prompt."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_paths_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = LINK.findall(re.sub(r"`[^`\n]*`", "", text))
    wrong = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    wrong += [path for path in NAMED.findall(text) if path not in EXAMPLES and not (ROOT / path).exists()]
    assert not wrong


def test_pages_that_the_code_names_exist() -> None:
    files = [path for folder in ("resmgr", "stack", "qnetpy", "tests", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
    wrong = [
        f"{name(path)}: {page}"
        for path in files
        for page in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text())
        if not (ROOT / page).exists()
    ]
    assert not wrong


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = LINK.findall((folder / "README.md").read_text())
    assert sorted(listed) == sorted(page.name for page in folder.glob("*.md") if page.name != "README.md")


def typed(text: str) -> Iterator[list[str]]:
    """The words of each qnet and make in the blocks of commands of a page."""
    for language, block in BLOCK.findall(text):
        if language or not SHELL_BLOCK.match(block):
            continue
        for line in block.splitlines():
            line = re.sub(r"^(\w+[#$]|\$) ", "", line)
            if not line.startswith(("qnet ", "make ")) and " qnet " not in line:
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if word not in (";", "&&", "|", ">"):
                    words.append(word)
                elif words:
                    if words[0] in ("qnet", "make"):
                        yield words
                    words = []


def complaint(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Why a line that is typed so would be refused as wrong usage."""
    if words[0] == "make":
        goals = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if re.match(r"[a-z][\w-]*:", line)}
        return "" if {word for word in words[1:] if "=" not in word} <= goals else f"no such goal: {words}"
    if words[1] not in COMMANDS:
        return f"no such command: {words}"
    parser = Parser(prog=f"qnet {words[1]}")
    importlib.import_module(f"qnetpy.cli.{words[1]}").add_arguments(parser)
    try:
        parser.parse_args(words[2:])
    except SystemExit:
        return capsys.readouterr().err
    return ""


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "protocol" and any(typed(page.read_text()))], ids=name)
def test_commands_are_typed_as_they_are_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not [said for words in typed(page.read_text()) if (said := complaint(words, capsys))]


def test_the_check_of_commands_sees_wrong_ones(capsys: pytest.CaptureFixture[str]) -> None:
    page = "```\nn1# qnet join CODE --again && qnet upp; make tests | qnet on n2 -- ls --all\nqnet says\n```\n"
    found = list(typed(page))
    assert found == [
        ["qnet", "join", "CODE", "--again"],
        ["qnet", "upp"],
        ["make", "tests"],
        ["qnet", "on", "n2", "--", "ls", "--all"],
        ["qnet", "says"],
    ]
    assert [bool(complaint(words, capsys)) for words in found] == [True, True, True, False, True]
