"""The corpus of the fuzzer, replayed: everything in it once covered something new, or was a finding (`found-...`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from qnetpy.testing.fuzz.targets import TARGETS, run

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_in_the_corpus_is_a_finding(name: str) -> None:
    files = sorted((CORPUS / name).iterdir())
    assert files
    for file in files:
        run(name, file.read_bytes())


def test_every_folder_is_a_target() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
