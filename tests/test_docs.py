"""Documents lead somewhere: links, paths of files that they name, and the index of decisions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
NAMED = re.compile(r"`((?:resmgr|stack|qnetpy|tests|bench|clusters|docs)/[\w./-]*)`")
EXAMPLES = {"stack/drivers/unixlink.py"}
"""Files that a page tells its reader to write."""


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
