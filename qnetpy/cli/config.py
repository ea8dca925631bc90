"""`qnet config`: check the configuration and print it, or print a commented example of everything that can be said."""

from __future__ import annotations

import argparse

from qnetpy.cli.output import as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", help="the file to check (default: /etc/qnet/qnet.toml if there is one, else the defaults)")
    parser.add_argument("--example", action="store_true", help="print a file with every setting, explained")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")


def run(args: argparse.Namespace) -> int:
    import attrs

    from qnetpy import settings
    from qnetpy.cli.settings import load
    from qnetpy.config import Config

    if args.example:
        print(settings.example(Config), end="")
        return 0
    loaded = load(args.file)
    print(as_json(attrs.asdict(loaded)) if args.json else settings.dump(loaded), end="\n" if args.json else "")
    return 0
