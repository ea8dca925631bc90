"""`qnet on [-f NODE,... | -n NODE,... | --least-loaded | --all] [--where CONDITION] ... CMD...`: programs on other nodes, as if here.

`qnet on NODE CMD` is `-f NODE`: the program and its files are that node's. With `-n NODE` it runs there with the files of this node:
program, libraries, relative paths (`resmgr.procmgr.callerroot`).

Standard input, output and error are carried, signals are passed on, the exit status is the program's (128 and the number of the signal that
killed it), and it gets a terminal when standard input and output are one. Arguments arrive exactly as given: there is no shell in between.
Without a command it is the user's login shell. As with ssh, 255 says that the program could not be started or the connection was lost.

One thread moves everything; each output has a thread that writes, so a slow reader of one stream holds up only that stream. Of each stream
a few messages are under way: the next output is asked for when the one before was written, input is read when an earlier part was
taken. On several nodes at once (`a,b`, `--all`) it is `qnetpy.cli.fan`.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, NoReturn

from qnetpy.cli.output import CommandError, shown

if TYPE_CHECKING:
    from resmgr.client import Client
    from resmgr.errors import ResmgrError
    from resmgr.procmgr.message import Scheduling, Spawn

FAILED = 255
"""As ssh says it."""
NOT_EXECUTED = (126, 127)
"""Statuses of a program that could not be executed, or was not found."""
LOGIN_SHELL = ("/bin/sh", "-c", 'exec "${SHELL:-/bin/sh}" -l')
PASSED_ON = ("LANG", "LANGUAGE", "COLORTERM")
"""Variables that are sent unasked, besides LC_* and, with a terminal, TERM. With -n all are."""
DEVICES = "/dev/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "qnet on [-f NODE,... | -n NODE,... | --least-loaded | --all] [--where CONDITION] [options] [NODE,...] [--] [CMD ...]"
    place = parser.add_mutually_exclusive_group()
    place.add_argument("-f", dest="far", metavar="NODE", help="on this node, with its files: the same as to name it without -f")
    place.add_argument("-n", dest="near", metavar="NODE", help="on this node, with the files of this machine, through /net")
    place.add_argument("--least-loaded", action="store_true", help="on the node that has least to do for each processor")
    place.add_argument("--all", action="store_true", help="on every node that is up; output behind the node's name")
    parser.add_argument(
        "--where", metavar="CONDITION", help="only nodes of which this is true: 'cpus >= 4' (without --all: the least loaded)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "-t",
        dest="terminal",
        action="store_true",
        default=None,
        help="with a terminal, whatever standard input is; followed by /dev/...: on this terminal of that node; by "
        "/net/...: at this one of another",
    )
    where.add_argument("-T", dest="terminal", action="store_false", help="without a terminal")
    parser.add_argument("-u", "--user", default="", help="as this user of that node (only root may choose; default: whom you are there)")
    parser.add_argument("-p", "--priority", default="0", metavar="PRIO", help="nice value, -20 to 19, or batch, or idle")
    parser.add_argument("--cwd", default="", metavar="DIR", help="in this directory (default: the user's home; with -n: this one)")
    parser.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="with this variable, from here or as given"
    )
    parser.add_argument("--no-input", action="store_true", help="standard input is empty")
    parser.add_argument("-d", "--detach", action="store_true", help="print its process id and leave it running")
    parser.add_argument("--config", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("command", metavar="[NODE] CMD", nargs=argparse.REMAINDER, help="node, program, arguments; -- ends our options")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    args, node, device = _arrange(args)
    from qnetpy.cli import choice, daemon
    from resmgr.errors import ResmgrError

    several = node.split(",") if "," in node else []
    if "" in several:
        raise CommandError(f"{node}: a node's name is empty", "qnet ls", FAILED)
    if node and not several:
        choice.check(node, FAILED)
    try:
        with daemon.connect(args.config) as client:
            if args.all or several:
                return _everywhere(client, args, several)
            if not node:
                return _on(client, _chosen(client, args), args, device)
            from resmgr.procmgr.client import node_descriptor

            return _on(client, (node, node_descriptor(client, node)), args, device)
    except CommandError as error:
        error.status = error.status if error.status in (2, *NOT_EXECUTED) else FAILED
        raise
    except ResmgrError as error:
        _fail(node or "this node", error)


def _arrange(args: argparse.Namespace) -> tuple[argparse.Namespace, str, str]:
    """The options, the node that is named, and the terminal: /dev/... of that node, or one to be opened here. argparse gives what follows
    the first word to the command, so options between the node and the command are parsed again."""
    parser: argparse.ArgumentParser = args.parser
    words: list[str] = args.command
    node = device = ""
    while words and words[0] != "--":
        several = args.all or args.least_loaded or args.where is not None
        named = node or args.far or args.near or ("--" if several else "")
        if words[0].startswith("-"):
            args = parser.parse_args(words, args)
            words = args.command
        elif args.terminal and not device and words[0].startswith("/"):
            device = words.pop(0)
        elif not named:
            node = words.pop(0)
        else:
            break
    several = args.all or args.least_loaded or args.where is not None
    if words[:1] == ["--"]:
        words = words[1:]
        if words and not (node or args.far or args.near or several):
            node, *words = words
            words = words[1:] if words[:1] == ["--"] else words
    args.command = words
    if node and (args.far or args.near):
        option = f"-f {args.far}" if args.far else f"-n {args.near}"
        parser.error(f"{node} and {option} both name a node: qnet on {option} CMD, or -- in front of what is the program's")
    node = args.far or args.near or node
    if not (node or several):
        parser.error("a node is needed")
    if node and args.where is not None:
        parser.error("--where chooses among nodes, so none can be named")
    if (args.all or "," in node) and (args.terminal or args.detach):
        parser.error("several nodes go neither with -t nor with -d")
    if args.detach and device and not device.startswith(DEVICES):
        parser.error("-d leaves nobody who would serve the terminal of another node")
    return args, node, device


def _chosen(client: Client, args: argparse.Namespace) -> tuple[str, int]:
    from qnetpy.cli import selection

    found = (
        selection.reports(client, selection.up(args.config))
        if args.where is None
        else selection.fitting(client, args.where, args.config, FAILED)
    )
    place = selection.least_loaded(found)
    if place is None:
        raise CommandError("no node lets you see how busy it is", "[access.spawn] in their configuration", FAILED)
    return place.name, place.nd


def _on(client: Client, place: tuple[str, int], args: argparse.Namespace, device: str) -> int:
    if device and not device.startswith(DEVICES):
        from qnetpy.cli.elsewhere import Elsewhere

        with Elsewhere(device, FAILED):
            return _on(client, place, args, "")
    from resmgr.errors import ResmgrError
    from resmgr.procmgr.client import spawn

    node, nd = place
    terminal = not device and args.terminal
    if args.terminal is None:
        terminal = os.isatty(0) and os.isatty(1) and not args.detach and not args.no_input
    what = _what(args, bool(terminal), device)
    try:
        if args.detach:
            return _leave(client, node, nd, what)
        process = spawn(client, nd, what)
    except ResmgrError as error:
        _refused(node, args, error)
    from qnetpy.cli.pump import Pump

    return Pump(client, process, terminal=bool(terminal), no_input=args.no_input or bool(device), over=(bool(device), False)).run(node)


def _leave(client: Client, node: str, nd: int, what: Spawn) -> int:
    """Start it, say its number and leave it running. One that could not be executed ends at once, with the status that shells give it."""
    from resmgr.procmgr.client import start_briefly
    from resmgr.procmgr.message import SPAWN_PTY

    if what.flags & SPAWN_PTY:
        from resmgr.procmgr.client import spawn

        print(spawn(client, nd, what).pid)
        return 0
    begun = start_briefly(client, nd, what)
    status = begun.ended.status if begun.ended is not None else None
    program = os.fsdecode(what.arguments[0])
    if status == 127:
        raise CommandError(f"{node}: {program}: not found", "the path that it has there", 127)
    if status == 126:
        raise CommandError(f"{node}: {program}: cannot be executed, or not in that directory or at that terminal", "without -d", 126)
    print(begun.pid)
    return 0


def _everywhere(client: Client, args: argparse.Namespace, names: list[str]) -> int:
    """On these nodes, or without *names* on all that fit. The highest exit status; 255 where it could not be started."""
    import sys

    from qnetpy.cli import selection
    from qnetpy.cli.fan import Fan
    from resmgr.errors import ResmgrError
    from resmgr.procmgr.client import begin, started

    failed = 0
    places: list[selection.Place] = []
    if names:
        for name in names:
            try:
                places += selection.named(client, [name], FAILED)
            except CommandError as said:
                failed = FAILED
                print(f"qnet on: {said}", file=sys.stderr)
    elif args.where is None:
        places = selection.up(args.config)
    else:
        places = [report.place for report in selection.fitting(client, args.where, args.config, FAILED)]
    args.no_input = args.no_input or not _given()
    what = _what(args, False, "")
    sends = [(place, begin(client, place.nd, what)) for place in dict.fromkeys(places)]
    processes = []
    for place, send in sends:
        try:
            processes.append((place, started(send)))
        except ResmgrError as error:
            failed = FAILED
            try:
                _refused(place.name, args, error)
            except CommandError as said:
                print(f"qnet on: {said}", file=sys.stderr)
    fan = Fan(client, processes, no_input=args.no_input)
    statuses = fan.run()
    for name, status in statuses.items():
        if name in fan.left:
            print(f"qnet on: left {name}: the program there gets SIGHUP", file=sys.stderr)
        elif status:
            print(f"qnet on: {name}: exit status {status}", file=sys.stderr)
    return max((failed, *statuses.values()))


def _given() -> bool:
    """Whether standard input is something to pass on to several nodes: not a terminal, and not nothing."""
    try:
        return not os.isatty(0) and os.fstat(0).st_rdev != os.stat(os.devnull).st_rdev
    except OSError:
        return False


def _what(args: argparse.Namespace, terminal: bool, device: str) -> Spawn:
    from resmgr.procmgr import message

    _check(args)
    if terminal:
        flags = message.SPAWN_PTY
    elif device:
        flags = 0 if args.detach else message.SPAWN_STDERR
    elif args.detach:
        flags = 0
    else:
        flags = message.SPAWN_STDOUT | message.SPAWN_STDERR | (0 if args.no_input else message.SPAWN_STDIN)
    flags |= message.SPAWN_DETACHED if args.detach else 0
    rows = columns = 0
    if terminal:
        from qnetpy.cli.terminal import size

        rows, columns, *_ = size(0)
    directory = args.cwd
    if args.near is not None:
        flags |= message.SPAWN_ROOT
        directory = os.path.abspath(directory)
    nice, scheduling = _priority(args.priority)
    what = message.Spawn(
        tuple(os.fsencode(word) for word in (args.command or LOGIN_SHELL)),
        tuple(_environment(args.env, terminal, everything=args.near is not None)),
        flags,
        os.fsencode(directory),
        os.fsencode(args.user),
        _umask(),
        rows,
        columns,
        os.fsencode(device),
        nice,
        scheduling,
        tuple(_limits()),
    )
    strings = what.arguments + what.environment
    count = sum(map(len, strings)) + 4 * len(strings)
    if len(what.environment) > message.VARIABLES_MAX:
        raise CommandError(f"{len(what.environment)} variables; a node takes {message.VARIABLES_MAX}", "env -i, in front of qnet on")
    if count > message.SPAWN_MAX // 2 and len(message.pack_spawn(what)) > message.SPAWN_MAX:
        raise CommandError(
            f"arguments and variables of {count >> 10} KiB; a node takes {message.SPAWN_MAX >> 10}", "standard input, or xargs"
        )
    return what


def _check(args: argparse.Namespace) -> None:
    """CommandError for what every node would refuse."""
    from resmgr.procmgr.message import ARGUMENTS_MAX

    words: list[str] = args.command
    if len(words) > ARGUMENTS_MAX:
        raise CommandError(f"{len(words)} arguments; a node takes {ARGUMENTS_MAX}", f"standard input, or xargs -n {ARGUMENTS_MAX // 2}")
    if words and not words[0]:
        raise CommandError("the program's name is empty", "qnet on NODE CMD")
    if words and words[0].startswith("-"):
        raise CommandError(f"{words[0]}: a program's name must not begin with a dash", f"./{words[0]}")
    if args.cwd and args.near is None and not args.cwd.startswith("/"):
        raise CommandError(f"--cwd {args.cwd}: a directory of another node has to be an absolute path", "--cwd /DIR")


def refused(node: str, code: int) -> int:
    """Say why *node* started nothing; the exit status."""
    import sys

    from resmgr.errors import ResmgrError

    try:
        _refused(node, argparse.Namespace(user="", near=None, priority="0"), ResmgrError(code))
    except CommandError as error:
        print(f"qnet on: {error}", file=sys.stderr)
        return error.status


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _limits() -> list[tuple[int, int]]:
    """As soft as they are here."""
    import resource

    from resmgr.procmgr.message import LIMITS, UNLIMITED

    soft = [(number, resource.getrlimit(number)[0]) for number in LIMITS]
    return [(number, UNLIMITED if value == resource.RLIM_INFINITY else value) for number, value in soft]


def _priority(word: str) -> tuple[int, Scheduling]:
    from resmgr.procmgr.message import NICE_MAX, NICE_MIN, Scheduling

    if word in ("batch", "idle"):
        return 0, Scheduling[word.upper()]
    try:
        nice = int(word)
    except ValueError:
        nice = NICE_MAX + 1
    if not NICE_MIN <= nice <= NICE_MAX:
        raise CommandError(f"-p {word}: no priority", "a nice value from -20 to 19, or batch, or idle", 2)
    return nice, Scheduling.ORDINARY


def _environment(wanted: list[str], terminal: bool, everything: bool) -> list[bytes]:
    import sys

    from resmgr.procmgr.environment import refusal

    found = {
        name: value for name, value in os.environb.items() if everything or name in map(os.fsencode, PASSED_ON) or name.startswith(b"LC_")
    }
    if terminal:
        found[b"TERM"] = os.environb.get(b"TERM", b"dumb")
    for variable in map(os.fsencode, wanted):
        name, equals, value = variable.partition(b"=")
        if not name:
            raise CommandError(f"-e {os.fsdecode(variable)}: a variable has a name", "-e NAME=VALUE")
        why = refusal(name, everything)
        if not equals and name not in os.environb:
            why = "there is no such variable here"
        if why:
            print(f"qnet on: -e {shown(os.fsdecode(name))} is left out: {why}", file=sys.stderr)
        else:
            found[name] = value if equals else os.environb[name]
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


def _refused(node: str, args: argparse.Namespace, error: ResmgrError) -> NoReturn:
    import errno

    if error.errno == errno.EPERM:
        what = f" as {args.user}" if args.user else ""
        what += f" at nice value {args.priority}" if args.priority.startswith("-") else ""
        message = f"{node} does not let you start programs{what}"
        raise CommandError(message, f"[access.spawn] in {node}'s configuration; its log says why", FAILED) from error
    if error.errno == errno.EACCES:
        if args.user:
            message = f"{node} has no account of the name {args.user} that may be used"
            raise CommandError(message, f"getent passwd, on {node}; its log says why", FAILED) from error
        raise CommandError(f"{node} has no account that you may use", f"the log of {node}", FAILED) from error
    if error.errno == errno.EAGAIN:
        raise CommandError(f"{node} runs too many programs for you already", "qnet on again when some have ended", FAILED) from error
    if error.errno == errno.EOPNOTSUPP and args.near is not None:
        raise CommandError(f"{node} has no /net, or may not make mounts, so it cannot use files of this node", "-f", FAILED) from error
    if error.errno == errno.ENOEXEC and args.near is not None:
        raise CommandError(
            f"{node} cannot execute this node's /bin/sh: another kind of machine, or not exported to it", "[[access.exports]] here", FAILED
        ) from error
    if error.errno in (errno.EBADF, errno.ENOSYS):
        raise CommandError(
            f"{node} starts no programs for anybody, or its daemon is just ending", f"qnet ls; the log of {node}", FAILED
        ) from error
    if error.errno == errno.EBADMSG:
        raise CommandError(
            f"{node} does not understand this: it runs another version", f"qnet --version, here and on {node}", FAILED
        ) from error
    _fail(node, error)
