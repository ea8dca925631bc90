"""`qnet on NODE [-t|-T] [-u USER] [--cwd DIR] [-e NAME[=VALUE]] [--] CMD...`: run a program on another node as if it ran here.

Standard input, output and error are carried, signals are passed on, the exit status is the program's (128 and the number of the signal that
killed it), and it gets a terminal when standard input and output are one. Arguments arrive exactly as given: there is no shell in between.
Without a command it is the user's login shell. As with ssh, 255 says that the program could not be started or the connection was lost.

One thread moves everything; each output has a thread that writes, so a slow reader of one stream holds up only that stream. Of each stream
a few messages are under way: the next output is asked for when the one before was written, input is read when an earlier part was
taken.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, NoReturn

from qnetpy.cli.output import CommandError

if TYPE_CHECKING:
    from resmgr.client import Client
    from resmgr.errors import ResmgrError

FAILED = 255
"""As ssh says it."""
LOGIN_SHELL = ("/bin/sh", "-c", 'exec "${SHELL:-/bin/sh}" -l')
PASSED_ON = ("LANG", "LANGUAGE", "COLORTERM")
"""Variables that are sent unasked, besides LC_* and, with a terminal, TERM."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "qnet on NODE [-t | -T] [-u USER] [--cwd DIR] [-e NAME[=VALUE]] [-n] [-d] [--] [CMD ...]"
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-t", dest="terminal", action="store_true", default=None, help="with a terminal, whatever standard input is")
    where.add_argument("-T", dest="terminal", action="store_false", help="without a terminal")
    parser.add_argument("-u", "--user", default="", help="as this user of that node (only root may choose; default: whom you are there)")
    parser.add_argument("--cwd", default="", metavar="DIR", help="in this directory of that node (default: the user's home)")
    parser.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="with this variable, from here or as given"
    )
    parser.add_argument("-n", "--no-input", action="store_true", help="standard input is empty")
    parser.add_argument("-d", "--detach", action="store_true", help="print its process id and leave it running")
    parser.add_argument("--config", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("node", metavar="NODE", help="where, as `qnet ls` names it")
    parser.add_argument(
        "command", metavar="CMD", nargs=argparse.REMAINDER, help="the program and its arguments, after -- if they have options"
    )
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    command: list[str] = args.command
    if command and command[0].startswith("-") and command[0] != "--":
        # Options between NODE and --: argparse took them for the command's.
        at = command.index("--") if "--" in command else len(command)
        parser: argparse.ArgumentParser = args.parser
        args = parser.parse_args([*command[:at], args.node, *command[at:]], args)
        command = args.command
    if command and command[0] == "--":
        command = command[1:]
    args.command = command
    from qnetpy.cli import choice, daemon
    from resmgr.errors import ResmgrError

    choice.check(args.node, FAILED)
    try:
        with daemon.connect(args.config) as client:
            return _run(client, args)
    except CommandError as error:
        error.status = FAILED
        raise
    except ResmgrError as error:
        _fail(args.node, error)


def _run(client: Client, args: argparse.Namespace) -> int:
    from qnetpy.cli.terminal import size
    from resmgr.errors import ResmgrError
    from resmgr.procmgr import message
    from resmgr.procmgr.client import node_descriptor, spawn

    terminal = args.terminal
    if terminal is None:
        terminal = os.isatty(0) and os.isatty(1) and not args.detach and not args.no_input
    if args.detach:
        flags = message.SPAWN_DETACHED
    elif terminal:
        flags = message.SPAWN_PTY
    else:
        flags = message.SPAWN_STDOUT | message.SPAWN_STDERR | (0 if args.no_input else message.SPAWN_STDIN)
    window = size(0) if terminal else None
    what = message.Spawn(
        tuple(os.fsencode(word) for word in (args.command or LOGIN_SHELL)),
        tuple(_environment(args.env, terminal)),
        flags,
        os.fsencode(args.cwd),
        os.fsencode(args.user),
        rows=window.rows if window else 0,
        columns=window.columns if window else 0,
    )
    try:
        nd = node_descriptor(client, args.node)
    except ResmgrError as error:
        _fail(args.node, error)
    try:
        process = spawn(client, nd, what)
    except ResmgrError as error:
        _refused(args, error)
    if args.detach:
        print(process.pid)
        return 0
    from qnetpy.cli.pump import Pump

    return Pump(client, process, terminal=terminal, no_input=args.no_input).run(args.node)


def _environment(wanted: list[str], terminal: bool) -> list[bytes]:
    found = {name: value for name, value in os.environb.items() if name in map(os.fsencode, PASSED_ON) or name.startswith(b"LC_")}
    if terminal:
        found[b"TERM"] = os.environb.get(b"TERM", b"dumb")
    for variable in map(os.fsencode, wanted):
        name, equals, value = variable.partition(b"=")
        if not name:
            raise CommandError(f"-e {os.fsdecode(variable)}: a variable has a name", "-e NAME=VALUE")
        if equals:
            found[name] = value
        elif name in os.environb:
            found[name] = os.environb[name]
    return [name + b"=" + value for name, value in found.items()]


def _fail(node: str, error: ResmgrError) -> NoReturn:
    import errno

    from qnetpy.cli import choice

    choice.explain(node, error, FAILED)
    why = (error.strerror or str(error)).lower()
    if error.errno == errno.ENOENT:
        raise CommandError(f"no node {node} is up", "qnet ls", FAILED) from error
    if error.errno == errno.ENOTCONN:
        raise CommandError("the daemon of this node went away", "qnet status", FAILED) from error
    raise CommandError(f"{node}: {why}", "", FAILED) from error


def _refused(args: argparse.Namespace, error: ResmgrError) -> NoReturn:
    import errno

    if error.errno == errno.EPERM:
        as_whom = f" as {args.user}" if args.user else ""
        message = f"{args.node} does not let you start programs{as_whom}"
        raise CommandError(message, f"[access.spawn] in {args.node}'s configuration; its log says why", FAILED) from error
    if error.errno == errno.EACCES:
        raise CommandError(f"{args.node} has no account that you may use", f"the log of {args.node}", FAILED) from error
    if error.errno == errno.EAGAIN:
        raise CommandError(f"{args.node} runs too many programs for you already", "qnet on again when some have ended", FAILED) from error
    if error.errno in (errno.EBADF, errno.ENOSYS):
        raise CommandError(f"{args.node} starts no programs for anybody", "", FAILED) from error
    if error.errno == errno.EINVAL:
        raise CommandError(
            "the directory has to be an absolute path, and the program's name must not begin with a dash", "", FAILED
        ) from error
    _fail(args.node, error)
