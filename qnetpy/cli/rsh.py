"""`qnet rsh [options] [USER@]NODE [COMMAND WORDS...]`: what launchers call ssh for. Options and words mean what they mean to ssh.

rsync, git, mpirun, pytest-xdist, scp and scripts have a setting for the program that starts something on another machine, and they all
expect ssh's command line: options in one word or two (`-lalice`, `-l alice`, `-tt`, `-4C`), before or behind the destination; the command's
words joined by blanks and given to the user's login shell; 255 for whatever is not the command's own status. That is all this file is: it
reads such a command line, and what it asks for is done by `qnet on` (`qnetpy.cli.on`).

Each option of ssh is one of three kinds. Some are done (`-l`, `-n`, `-t`, `-T`, `-G`, `-V`, `-o SetEnv`, ...). Some say how ssh finds,
believes and talks to the other side (`-i`, `-C`, `-4`, `-o StrictHostKeyChecking`, ...): here the cluster's certificates and Qnet's links
do that, so they are taken and change nothing. The others ask for something that would not happen (`-L`, `-X`, `-s`, ...): refused.

`qnet-rsh`, and any link to it (`ssh`, for programs that know no other name), is the same command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

from qnetpy.cli.output import CommandError

FAILED = 255
"""As ssh says it: the connection, or the command line, not the command."""
SHELL = 'exec "${SHELL:-/bin/sh}" -c "$1"'
"""Run by /bin/sh of the other side, which knows the user's shell there."""
PORT = "22"
"""The port that means nothing else than that nobody chose one."""

DONE = frozenset("nTtGV")
WITH_ARGUMENT = frozenset("BbcDEeFIiJLlmOopPQRSWw")
NO_MATTER = frozenset("46aCkqvxFicmbB")
REFUSED = {
    "A": "no agent is forwarded",
    "D": "no ports are forwarded",
    "E": "there is no log file; standard error says it",
    "e": "the escape character is ~",
    "f": "to leave a command running: qnet on -d",
    "g": "no ports are forwarded",
    "I": "no key is on a card: a node's key is what qnet init or qnet join made",
    "J": "every node is reached directly, or through what qnet ls shows",
    "K": "no credentials are forwarded",
    "L": "no ports are forwarded",
    "M": "all commands share Qnet's link already",
    "N": "there is nothing to hold open without a command",
    "O": "there is no control socket: all commands share Qnet's link already",
    "P": "no configuration has tags",
    "Q": "qnet suites shows the ciphers",
    "R": "no ports are forwarded",
    "S": "there is no control socket: all commands share Qnet's link already",
    "s": "there are no subsystems; for sftp use scp -O, or the files in /net",
    "W": "no ports are forwarded",
    "w": "no tunnels are made",
    "X": "no X11 is forwarded",
    "Y": "no X11 is forwarded",
    "y": "errors are on standard error",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SETTINGS_NO_MATTER = _words(
    "addkeystoagent addressfamily batchmode bindaddress bindinterface canonicaldomains canonicalizehostname casignaturealgorithms "
    "certificatefile challengeresponseauthentication checkhostip ciphers compression connectionattempts connecttimeout controlmaster "
    "controlpath controlpersist enableescapecommandline fingerprinthash globalknownhostsfile gssapiauthentication "
    "gssapidelegatecredentials hashknownhosts hostbasedauthentication hostkeyalgorithms hostkeyalias identitiesonly identityagent "
    "identityfile ipqos kbdinteractiveauthentication kexalgorithms loglevel macs nohostauthenticationforlocalhost "
    "numberofpasswordprompts passwordauthentication preferredauthentications proxycommand proxyjump pubkeyacceptedalgorithms "
    "pubkeyacceptedkeytypes pubkeyauthentication rekeylimit serveralivecountmax serveraliveinterval stricthostkeychecking tcpkeepalive "
    "updatehostkeys userknownhostsfile verifyhostkeydns visualhostkey"
)
"""Of `-o`, in lower case."""
SETTINGS_OFF = _words(
    "clearallforwardings exitonforwardfailure forkafterauthentication forwardagent forwardx11 forwardx11trusted permitlocalcommand "
    "remotecommand tunnel"
)
"""What is not offered, and may be said to be off."""
OFF = ("no", "none", "false", "")


class Call(NamedTuple):
    """A command line, read. `terminal`: None as ssh decides, else yes or no. `environment`: NAME or NAME=VALUE, as `qnet on -e`."""

    node: str
    words: tuple[str, ...]
    user: str = ""
    terminal: bool | None = None
    no_input: bool = False
    environment: tuple[str, ...] = ()
    print_settings: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "qnet rsh [ssh's options] [USER@]NODE [COMMAND ...]"
    # Every word is ours: argparse would take options apart in its own way.
    parser.prefix_chars = ""
    parser.add_argument("words", nargs=argparse.REMAINDER, help="what ssh would be given")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    words: list[str] = args.words
    if words[:1] in (["--help"], ["-h"]):
        args.parser.print_help()
        return 0
    if "-V" in words[:1]:
        from importlib.metadata import version

        print(f"qnet rsh {version('qnetpy')}", file=sys.stderr)
        return 0
    call = parse(words)
    if call.print_settings:
        print(f"host {call.node}\nuser {call.user or _me()}\nhostname {call.node}\nport {PORT}")
        return 0
    from qnetpy.cli import on

    parser = argparse.ArgumentParser(prog="qnet rsh")
    on.add_arguments(parser)
    try:
        return on.run(parser.parse_args(command_line(call, sys.stdin is not None and sys.stdin.isatty())))
    except CommandError as error:
        error.status = FAILED
        raise


def command_line(call: Call, input_is_terminal: bool) -> list[str]:
    """The same for `qnet on`."""
    wanted = call.terminal if call.terminal is not None else not call.words and input_is_terminal and not call.no_input
    line = ["-t" if wanted else "-T"]
    if call.user:
        line += ["-u", call.user]
    if call.no_input:
        line.append("--no-input")
    for variable in call.environment:
        line += ["-e", variable]
    line += [call.node, "--"]
    return [*line, "/bin/sh", "-c", SHELL, "sh", " ".join(call.words)] if call.words else line


def parse(words: Sequence[str]) -> Call:
    """CommandError (status 255) for what ssh would not understand, and for what it would and we do not do."""
    reader = _Reader(list(words))
    reader.options()
    if not reader.words:
        raise _wrong("a node is needed", "qnet rsh NODE COMMAND")
    destination = reader.words.pop(0)
    # As ssh: what comes behind the destination is an option again, up to the first word that is none.
    reader.options()
    user, node = _destination(destination)
    terminal: bool | None = None
    if reader.no_terminal:
        terminal = False
    elif reader.terminals > 1 or (reader.terminals and sys.stdin is not None and sys.stdin.isatty()):
        terminal = True
    return Call(
        node,
        tuple(reader.words),
        reader.user or user,
        terminal,
        reader.no_input,
        tuple(reader.environment),
        reader.print_settings,
    )


class _Reader:
    """Takes options from the front of `words`."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.user = ""
        self.terminals = 0
        self.no_terminal = False
        self.no_input = False
        self.print_settings = False
        self.environment: list[str] = []

    def options(self) -> None:
        while self.words and self.words[0].startswith("-") and self.words[0] != "-":
            word = self.words.pop(0)
            if word == "--":
                return
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                argument = ""
                if letter in WITH_ARGUMENT:
                    if not letters and not self.words:
                        raise _wrong(f"-{letter} needs something behind it", "")
                    argument, letters = (letters or self.words.pop(0)), ""
                self._option(letter, argument)

    def _option(self, letter: str, argument: str) -> None:
        if letter == "l":
            self.user = self.user or argument
        elif letter == "p":
            _port(argument)
        elif letter == "o":
            self._setting(argument)
        elif letter in ("S", "e") and argument == "none":
            pass
        elif letter in REFUSED:
            raise _wrong(f"-{letter} means nothing here: {REFUSED[letter]}", "")
        elif letter == "n":
            self.no_input = True
        elif letter == "t":
            self.terminals += 1
        elif letter == "T":
            self.no_terminal = True
        elif letter == "G":
            self.print_settings = True
        elif letter not in NO_MATTER:
            raise _wrong(f"ssh has no option -{letter}", "")

    def _setting(self, setting: str) -> None:
        """`-o NAME=VALUE` or `-o 'NAME VALUE'`."""
        blank, equals = (len(setting.strip().partition(mark)[0]) for mark in " =")
        name, _, value = setting.strip().partition(" " if blank < equals else "=")
        key, value = name.strip().lower(), value.strip().removeprefix("=").strip() if blank < equals else value.strip()
        if key == "user":
            self.user = self.user or value
        elif key == "port":
            _port(value)
        elif key == "sendenv":
            self.environment += [variable for pattern in value.split() for variable in _named(pattern)]
        elif key == "setenv":
            import shlex

            self.environment += shlex.split(value)
        elif key == "requesttty":
            self._request(value.lower())
        elif key == "stdinnull":
            self.no_input = self.no_input or value.lower() == "yes"
        elif key == "sessiontype" and value.lower() == "default":
            pass
        elif key in SETTINGS_OFF:
            if value.lower() not in OFF and key != "clearallforwardings":
                raise _wrong(f"-o {name}={value} means nothing here", "")
        elif key not in SETTINGS_NO_MATTER:
            raise _wrong(f"-o {name} means nothing here", "")

    def _request(self, value: str) -> None:
        if value == "no":
            self.no_terminal = True
        elif value == "yes":
            self.terminals += 1
        elif value == "force":
            self.terminals += 2
        elif value != "auto":
            raise _wrong(f"-o RequestTTY={value} is not understood", "-o RequestTTY=no")


def _named(pattern: str) -> list[str]:
    """Variables of ours that a pattern of SendEnv names."""
    import os
    from fnmatch import fnmatchcase

    return [name for name in os.environ if fnmatchcase(name, pattern)]


def _port(number: str) -> None:
    if number != PORT:
        raise _wrong(f"port {number}: a node has no ports for this", "leave the port out")


def _destination(word: str) -> tuple[str, str]:
    """`[USER@]NODE`, or `ssh://[USER@]NODE[:PORT]`: user and node."""
    rest = word.removeprefix("ssh://")
    if rest != word:
        rest, colon, port = rest.removesuffix("/").partition(":")
        if colon:
            _port(port)
    user, _, node = rest.rpartition("@")
    if not node:
        raise _wrong(f"{word}: there is no node in it", "qnet rsh NODE COMMAND")
    return user, node


def _me() -> str:
    import os
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _wrong(why: str, hint: str) -> CommandError:
    return CommandError(why, hint, FAILED)


def main() -> int:
    """The console script `qnet-rsh`."""
    from qnetpy.cli import main as commands

    return commands.main_as("rsh")
