"""`qnet name NAME`: be a server called NAME until interrupted, and answer every message with who sent it and what it said. For trials."""

from __future__ import annotations

import argparse
import errno
import sys
from typing import TYPE_CHECKING

from qnetpy.cli.output import CommandError

if TYPE_CHECKING:
    from resmgr.server import Message

MESSAGE_MAX = 1 << 20
"""Longer messages are answered with their first part: the answer has to fit the sender's buffer anyway."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the name to attach")
    parser.add_argument("--local", action="store_true", help="take no messages from other nodes")
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon
    from resmgr.errors import ResmgrError
    from resmgr.names.client import name_attach
    from resmgr.server import Message

    with daemon.connect(args.config) as client:
        try:
            server = name_attach(client, args.name, remote=not args.local)
        except ResmgrError as error:
            raise CommandError(f"{args.name!r}: {(error.strerror or str(error)).lower()}") from error
        print(f"attached {args.name!r} on node {client.node}; answering until interrupted", flush=True)
        try:
            while True:
                message = server.channel.receive()
                if isinstance(message, Message):
                    _answer(message, client.node)
        except ResmgrError as error:
            raise CommandError(f"the daemon is gone: {(error.strerror or str(error)).lower()}", "qnet up") from error


def _answer(message: Message, node: str) -> None:
    from resmgr.errors import ResmgrError

    sender = f"user {message.info.uid} of node {message.info.node or node}"
    try:
        data = bytes(message.read(0, MESSAGE_MAX))
    except ResmgrError:
        # The sender gave up while its message was being fetched.
        message.error(errno.ESRCH)
        return
    print(f"{sender}: {message.msglen} bytes", file=sys.stderr, flush=True)
    message.reply(0, f"{node} got {message.msglen} bytes from {sender}: ".encode() + data + b"\n")
