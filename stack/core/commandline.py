"""The command line of `io-pkt`, in QNX's form: `io-pkt -d packet ifname=eth0 -p tcpip prefix=/alt -p qnet`.

`-d` and `-p` take a module's name and then, if the next word does not begin with a dash, its options; the name may be glued to the letter
(`-dpacket`, `-ptcpip`). They are carried out in the order in which they stand. `--fault` and `--wrap` belong to the driver before
them. Options of QNX's io-pkt that have no place on Linux are refused with what to do instead, rather than taken and ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import attrs

from stack.core.module import Kind
from stack.rights import Scheduling, User, parse_capability, parse_group, parse_scheduling, parse_user

USAGE = """\
usage: io-pkt [-v] [-i N] [-P PRIORITY] [-t THREADS] [-U USER] [--prefix DIR] [--group GROUP] [--run-dir DIR] ...
              [-d DRIVER [OPTIONS] [--fault OPTIONS] [--wrap NAME [OPTIONS]]...]... [-p PROTOCOL [OPTIONS]]...

The network manager: loads drivers and protocol modules, in the order given, and runs until SIGTERM or SIGINT. More are loaded and unloaded
at run time: qnet mount, qnet umount.

  -d DRIVER [OPTIONS]    load a driver: a name (packet), an installed one, or a dotted path
  -p PROTOCOL [OPTIONS]  load a protocol module (qnet)
  --fault OPTIONS        put a bad link around the driver before it: drop=5%,dup=2%,reorder=5%,corrupt=0.5%,delay=20ms,rate=10M,seed=1
  --wrap NAME [OPTIONS]  put a wrapper around the driver before it: pcap file=F, rate tx=10M, tracer rate=20; the last is the outermost
  -i N                   instance number, 0 to 99: several managers on one machine (default 0)
  -P PRIORITY            how the kernel schedules it: N or rr:N, fifo:N (real-time priority 1 to 99), nice:N (-20 to 19)
  -t THREADS             threads that may forward frames beside the stack, 1 to 100 (default: one per processor)
  -U USER                be this user before anything is loaded: uid:gid[,gid...], numbers or names; what modules need is kept
  -v                     log more: what is loaded, interfaces that come and go
  --prefix DIR           where the stack's own files are in the pathname space, for a second instance: /alt
  --group GROUP          its members may load and unload modules, beside root
  --keep-caps CAP,...    with -U: keep these capabilities, too
  --slow MSEC            count and name callbacks of modules that take longer (default 50); 0 does not measure
  --run-dir DIR          sockets and lock of this instance (default /run/io-pktN, or in $XDG_RUNTIME_DIR for ordinary users)
  --ready-fd N           write READY=1 to this inherited descriptor, and close it, when everything is loaded
  --poll USEC            look for more work for so long before sleeping, while there is traffic; 0 never (default 100)
  --options MODULE       print the options of a module and exit
  -h, --help             print this and exit

OPTIONS are key=value,flag,... without spaces. Any module also takes restart=N: load it again, up to N times in a row, when it raises.
Example: io-pkt -d packet ifname=eth0 --fault drop=5%,delay=20ms -p qnet
"""

INSTANCES = 100
POLL_MAX = 10_000
THREADS_MAX = 100
"""QNX's bound."""
SLOW_MAX = 10_000
_REFUSED = {
    "-D": "there is one stack context, and it is this process",
    "-I": "no I/O privilege is taken",
    "-S": "no SIGSEGV handler is installed",
    "-r": "frames are received by the one dispatch, whose priority -P sets",
    "-q": "there is no quiet time to set",
    "-w": "there is no watchdog interval to set; --slow MSEC says from when on a callback is slow",
    "-u": "-U is there: be another user before anything is loaded",
}
_KNOWN = (
    *("-d", "-p", "-i", "-P", "-t", "-U", "-v", "-h", "--help", "--fault", "--wrap", "--prefix", "--group", "--keep-caps", "--slow"),
    *("--run-dir", "--ready-fd", "--poll", "--options"),
)


class UsageError(Exception):
    """The command line is wrong; `str` is one sentence."""


@attrs.define
class Load:
    """One module to load; `wrap` as for `Stack.load`."""

    kind: Kind
    name: str
    options: str = ""
    wrap: list[tuple[str, str]] = attrs.field(factory=list)


@attrs.define
class CommandLine:
    loads: list[Load] = attrs.field(factory=list)
    instance: int = 0
    verbose: bool = False
    run_dir: str | None = None
    ready_fd: int | None = None
    poll_us: int = 100
    prefix: str = ""
    group: int | None = None
    user: User | None = None
    keep: tuple[str, ...] = ()
    scheduling: Scheduling | None = None
    threads: int | None = None
    slow_ms: int = 50
    help: bool = False
    options_of: str | None = None


def parse_command_line(words: list[str]) -> CommandLine:
    """*words* without the program's name. UsageError."""
    line = CommandLine()
    rest = list(words)
    while rest:
        option, glued = _split_option(rest.pop(0))
        if option in ("-d", "-p"):
            name = _value(option, glued, rest, "the name of a module")
            load = Load(Kind.DRIVER if option == "-d" else Kind.PROTOCOL, name)
            if rest and not rest[0].startswith("-"):
                load.options = rest.pop(0)
            line.loads.append(load)
        elif option == "--fault":
            text = _value(option, glued, rest, "faults, like drop=5%,delay=20ms")
            if not line.loads or line.loads[-1].kind is not Kind.DRIVER:
                raise UsageError("--fault belongs behind the driver that it is for: -d packet ifname=eth0 --fault drop=5%")
            line.loads[-1].wrap.append(("fault", text))
        elif option == "--wrap":
            name = _value(option, glued, rest, "the name of a wrapper, like pcap")
            if not line.loads or line.loads[-1].kind is not Kind.DRIVER:
                raise UsageError("--wrap belongs behind the driver that it is for: -d packet ifname=eth0 --wrap pcap file=trace.pcapng")
            line.loads[-1].wrap.append((name, rest.pop(0) if rest and not rest[0].startswith("-") else ""))
        elif option == "-i":
            line.instance = _number(option, _value(option, glued, rest, "a number"), INSTANCES - 1)
        elif option == "-t":
            line.threads = _number(option, _value(option, glued, rest, "a number of threads"), THREADS_MAX, 1)
        elif option == "--slow":
            line.slow_ms = _number(option, _value(option, glued, rest, "milliseconds"), SLOW_MAX)
        elif option == "--ready-fd":
            line.ready_fd = _number(option, _value(option, glued, rest, "a descriptor"), 1 << 20)
        elif option == "--poll":
            line.poll_us = _number(option, _value(option, glued, rest, "microseconds"), POLL_MAX)
        elif option == "--run-dir":
            line.run_dir = _value(option, glued, rest, "a folder")
        elif option == "--options":
            line.options_of = _value(option, glued, rest, "the name of a module")
        elif option in _SETTINGS:
            field, what, parse = _SETTINGS[option]
            text = _value(option, glued, rest, what, dashes=option == "-P")
            try:
                setattr(line, field, parse(text))
            except ValueError as error:
                raise UsageError(f"{option} {text}: {error}") from None
        elif option == "-v" and glued is None:
            line.verbose = True
        elif option in ("-h", "--help") and glued is None:
            line.help = True
        else:
            raise UsageError(_unknown(option, glued))
    if line.keep and line.user is None:
        raise UsageError("--keep-caps belongs to -U: without it all rights are kept")
    if not line.loads and not line.help and line.options_of is None:
        raise UsageError("nothing to load: give at least one driver, like -d packet ifname=eth0")
    return line


def _split_option(word: str) -> tuple[str, str | None]:
    """`--run-dir=x` and `-dpacket` into option and value."""
    if word.startswith("--"):
        option, equals, value = word.partition("=")
        return option, value if equals else None
    if word.startswith("-") and len(word) > 2:
        return word[:2], word[2:]
    return word, None


def _value(option: str, glued: str | None, rest: list[str], what: str, dashes: bool = False) -> str:
    """The value behind *option*. *dashes*: it may begin with one."""
    if glued:
        return glued
    if glued is None and rest and (dashes or not rest[0].startswith("-")):
        return rest.pop(0)
    raise UsageError(f"{option} needs {what}")


def _number(option: str, text: str, most: int, least: int = 0) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise UsageError(f"{option} {text}: expected a number from {least} to {most}")
    return int(text)


def _prefix(text: str) -> str:
    names = text.rstrip("/").split("/")
    if not text.startswith("/") or "" in names[1:] or "." in names or ".." in names or not text.isprintable():
        raise ValueError("expected an absolute path without dots, like /alt")
    return text.rstrip("/")


_SETTINGS: dict[str, tuple[str, str, Callable[[str], object]]] = {
    "--prefix": ("prefix", "a path, like /alt", _prefix),
    "--group": ("group", "a group", parse_group),
    "--keep-caps": ("keep", "capabilities, like net_admin,sys_nice", lambda text: tuple(map(parse_capability, text.split(",")))),
    "-U": ("user", "a user, like 1000:1000 or nobody:nogroup", parse_user),
    "-P": ("scheduling", "a priority, like rr:21 or nice:-5", parse_scheduling),
}


def _unknown(option: str, glued: str | None) -> str:
    if option in _REFUSED:
        return f"{option} has no meaning here: {_REFUSED[option]}"
    if not option.startswith("-"):
        return f"{option!r} is not expected here: options of a module stand right behind its name, as one word without spaces"
    if option in _KNOWN:
        return f"{option} takes no value"
    near = difflib.get_close_matches(option, _KNOWN, n=1, cutoff=0.5) if option.startswith("--") else []
    return f"there is no option {option}; " + (f"did you mean {near[0]}?" if near else "see io-pkt --help")
