"""The files that docs/howto tells its reader to write, as they stand there: a block of Python whose fence has a file's name behind it."""

from __future__ import annotations

import re
from pathlib import Path

HOWTO = Path(__file__).parents[1] / "docs" / "howto"
_BLOCK = re.compile(r"^```(\w*)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files(page: str) -> dict[str, str]:
    """Name to text."""
    return {name: body for language, name, body in _BLOCK.findall((HOWTO / page).read_text()) if language == "python" and name}


def nameless(page: str) -> list[str]:
    """Blocks of Python that are no files."""
    return [body for language, name, body in _BLOCK.findall((HOWTO / page).read_text()) if language == "python" and not name]


def sessions(page: str) -> list[str]:
    """Blocks of commands."""
    return [body for language, _, body in _BLOCK.findall((HOWTO / page).read_text()) if not language]


def write(page: str, folder: Path) -> list[Path]:
    """Make the page's files below *folder*."""
    made = []
    for name, text in files(page).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        made.append(path)
    return made
