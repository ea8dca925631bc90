"""What of `qnet mount`'s arguments is a directory to mount on, and what a module to load."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from qnetpy.cli import mount
from qnetpy.cli.output import CommandError


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    mount.add_arguments(parser)
    return parser.parse_args(argv)


def test_what_is_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packet").mkdir()
    (tmp_path / "devnp-packet.so").touch()
    monkeypatch.chdir(tmp_path)
    for argv, filesystem in (
        (("./packet",), True),
        ((str(tmp_path / "packet"),), True),
        (("b:/srv", "nowhere"), True),
        (("-t", "qnet", "nowhere"), True),
        (("packet",), False),
        ((f"{tmp_path}/devnp-packet.so",), False),
        (("-T", "io-pkt", str(tmp_path / "packet")), False),
        (("-n", "b", str(tmp_path / "packet")), False),
        (("no/such/directory",), False),
    ):
        assert mount.is_filesystem(parsed(*argv)) == filesystem, argv
    with pytest.raises(CommandError, match="or one module"):
        mount.is_filesystem(parsed("a", "b", "c"))
    with pytest.raises(CommandError, match="belong to a module"):
        mount.run(parsed("-T", "io-pkt", "b:/srv", "/mnt"))
