"""`qnet COMMAND ...`: finds the command's file, parses its options, turns errors into one line.

A command is a file in this folder with `add_arguments(parser)` and `run(args) -> exit status`, and one row in `COMMANDS`. Its file is
imported only when it is asked for, so that `qnet on`, which is started for every remote program, pays for nothing else: no Trio, no
stack, no cryptography.

Exit status: what the command says (a remote program's own status for `on` and `cluster exec`), 1 for an error of the world, 2 for wrong
usage, 130 after Ctrl-C. An error is one line on standard error: what failed, where, why, and what to try.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol, cast

from qnetpy.cli.output import CommandError, said

COMMANDS = {
    "init": "make a cluster: its root key and certificate, kept on this machine",
    "invite": "let a machine join the cluster by a code",
    "join": "make this machine a node of the cluster that invited it",
    "leave": "make this machine a node no more",
    "revoke": "end a node's membership, everywhere",
    "root": "the cluster's root: show, make another, retire the old one",
    "cert": "issue a node's certificate, or show one",
    "up": "start this node",
    "down": "stop this node",
    "restart": "stop this node and start it again; programs keep what they have open on /net",
    "status": "what this node is doing: interfaces, links, nodes, counters",
    "top": "live: which programs wait for other nodes, on what, for how long; traffic by node",
    "abort": "end requests of /net that wait: the programs get an error",
    "ls": "the nodes of the cluster, as this node sees them",
    "nodes": "the nodes of the cluster, as this node sees them",
    "on": "run a program on another node",
    "rsh": "run a command on another node for a launcher: ssh's command line (rsync -e, GIT_SSH_COMMAND, mpirun, scp -S)",
    "pidin": "the processes of nodes",
    "sin": "memory and processor time of processes; what nodes are and how busy",
    "slay": "end or signal processes of nodes, by name or number",
    "exports": "what other nodes may do with this node's files, and this one with theirs; what was refused",
    "access": "which rules decide about a user of another node and a file of this one",
    "suites": "the ciphers of this node's links; change them at run time",
    "mount": "load a driver or a protocol into the running io-pkt; list what is loaded",
    "umount": "unload a driver or a protocol of the running io-pkt",
    "nicinfo": "the interfaces of io-pkt and their counters; --watch: rates",
    "ifconfig": "the interfaces of io-pkt: show, create, destroy, up, down, mtu",
    "bridge": "bridges of io-pkt: members, stations, spanning tree",
    "macfilter": "rules of the address filter of io-pkt: show, add, take away",
    "specific": "requests that only one kind of module understands, of any module of io-pkt",
    "netstat": "frames per interface, per protocol, or per second",
    "crypto": "who does the ciphers, and how fast; change it at run time",
    "send": "send a message to a named server and print the reply",
    "describe": "the messages that a server understands",
    "name": "the names of servers, on this node and on all; or be a named server (for trials)",
    "cluster": "whole nodes in namespaces of this machine: up, exec, status, kill, start, link, capture, down",
    "config": "print the configuration, checked, or a commented example",
    "bench": "our figures beside the peers' of the same run (in a source tree)",
}


QUICK = ("on", "rsh")
"""Commands that leave nothing to finish."""


class Command(Protocol):
    """What a file of this folder offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message and unknown.startswith("-"):
            import difflib

            option = unknown.split()[0].partition("=")[0]
            if option == "--":
                self.exit(2, f"{self.prog}: options come before the words that they are about, and those before --\n")
            near = difflib.get_close_matches(option, self._option_string_actions, 1)
            if near:
                self.exit(2, f"{self.prog}: there is no option {option}; did you mean {near[0]}?\n")
            message = f"there is no option {option}"
        import re

        message = re.sub(r"invalid (?:float|int) value: ", "not a number: ", message)
        self.exit(2, f"{self.prog}: {message}; try: {self.prog} --help\n")


def _formatter(prog: str) -> argparse.HelpFormatter:
    """As wide as the terminal. argparse loads what unpacks archives to find that out, and not only when help is wanted."""
    columns = os.environ.get("COLUMNS", "")
    try:
        width = int(columns) if columns.isdecimal() and int(columns) else os.get_terminal_size(1).columns
    except OSError:
        width = 80
    return argparse.HelpFormatter(prog, width=max(width - 2, 20))


def usage() -> str:
    width = max(len(name) for name in COMMANDS)
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return f"usage: qnet COMMAND ...\n\n{rows}\n\nqnet COMMAND --help says more. Every command that prints facts takes --json."


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit status."""
    return _main(list(sys.argv[1:] if argv is None else argv), argv is None)


def main_as(name: str) -> int:
    """A console script that is the command *name*."""
    return _main([name, *sys.argv[1:]], True)


def _main(arguments: list[str], alone: bool) -> int:
    """*alone*: nothing else runs in this process."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"qnet {version('qnetpy')}")
        return 0
    name = arguments.pop(0)
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, 1)
        print(f"qnet: no command {name!r}; try: qnet {near[0] if near else '--help'}", file=sys.stderr)
        return 2
    command = cast(Command, importlib.import_module(f"qnetpy.cli.{name}"))
    parser = Parser(prog=f"qnet {name}", description=COMMANDS[name], formatter_class=_formatter)
    command.add_arguments(parser)
    try:
        status = command.run(parser.parse_args(arguments))
        sys.stdout.flush()
        if alone and name in QUICK:
            # Everything is said and done: taking the interpreter apart takes a third as long as the whole command.
            sys.stderr.flush()
            os._exit(status)
        return status
    except CommandError as error:
        print(f"qnet {name}: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        # The reader of our output went away: nobody is left to tell. Keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"qnet {name}: {said(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
