"""`qnet ls`: another name of `qnet nodes`."""

from __future__ import annotations

import argparse

from qnetpy.cli import nodes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    nodes.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    return nodes.run(args)
