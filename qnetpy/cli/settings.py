"""What several commands need of the configuration; turns its errors into one line."""

from __future__ import annotations

from pathlib import Path

from qnetpy import config
from qnetpy.cli.output import CommandError
from qnetpy.config import Config
from qnetpy.settings import SettingsError


def load(path: str | None) -> Config:
    """The configuration of *path*, or the machine's, or the defaults."""
    try:
        return config.load(path)
    except SettingsError as error:
        raise CommandError(str(error), "qnet config --example", 2) from error


def key_directory(chosen: str | None, path: str | None) -> Path:
    """Where keys are: *chosen* if given, else what the configuration says."""
    return Path(chosen or load(path).node.key_dir)
