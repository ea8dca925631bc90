"""io-pkt's command line, as QNX users write it."""

from __future__ import annotations

import pytest

from stack.core.commandline import CommandLine, Load, UsageError, parse_command_line
from stack.core.module import Kind
from stack.rights import Scheduling, User


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-d packet ifname=eth0", CommandLine([Load(Kind.DRIVER, "packet", "ifname=eth0")])),
        ("-dpacket ifname=eth0 -pqnet", CommandLine([Load(Kind.DRIVER, "packet", "ifname=eth0"), Load(Kind.PROTOCOL, "qnet")])),
        (
            "-i1 -ptcpip prefix=/alt -v",
            CommandLine([Load(Kind.PROTOCOL, "tcpip", "prefix=/alt")], instance=1, verbose=True),
        ),
        (
            "-p qnet -d packet ifname=a --fault drop=5% --fault delay=1ms -d packet ifname=b",
            CommandLine(
                [
                    Load(Kind.PROTOCOL, "qnet"),
                    Load(Kind.DRIVER, "packet", "ifname=a", [("fault", "drop=5%"), ("fault", "delay=1ms")]),
                    Load(Kind.DRIVER, "packet", "ifname=b"),
                ]
            ),
        ),
        (
            "-d my.driver:THIS --run-dir /x --ready-fd=7 -i 12",
            CommandLine([Load(Kind.DRIVER, "my.driver:THIS")], instance=12, run_dir="/x", ready_fd=7),
        ),
        (
            "-d lo --wrap tracer --fault drop=5% --wrap pcap file=f -d packet ifname=b",
            CommandLine(
                [
                    Load(Kind.DRIVER, "lo", "", [("tracer", ""), ("fault", "drop=5%"), ("pcap", "file=f")]),
                    Load(Kind.DRIVER, "packet", "ifname=b"),
                ]
            ),
        ),
        ("--help", CommandLine(help=True)),
        ("--options packet", CommandLine(options_of="packet")),
    ],
)
def test_command_lines(words: str, expected: CommandLine) -> None:
    assert parse_command_line(words.split()) == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "nothing to load: give at least one driver, like -d packet ifname=eth0"),
        ("-v", "nothing to load"),
        ("-d", "-d needs the name of a module"),
        ("-d -p qnet", "-d needs the name of a module"),
        ("-d packet a=1 b=2", "'b=2' is not expected here: options of a module stand right behind its name, as one word without spaces"),
        ("packet", "'packet' is not expected here"),
        ("--fault drop=5% -d packet", "--fault belongs behind the driver that it is for"),
        ("-p qnet --fault drop=5%", "--fault belongs behind the driver"),
        ("-d packet --fault", "--fault needs faults, like drop=5%,delay=20ms"),
        ("-p qnet --wrap pcap", "--wrap belongs behind the driver"),
        ("-d packet --wrap", "--wrap needs the name of a wrapper"),
        ("-d packet --fault=", "--fault needs faults"),
        ("-i x -d packet", "-i x: expected a number from 0 to 99"),
        ("-i 100 -d packet", "-i 100: expected a number from 0 to 99"),
        ("-d packet --ready-fd -1", "--ready-fd needs a descriptor"),
        ("-d packet -D", "-D has no meaning here: there is one stack context, and it is this process"),
        ("-d packet -r 21", "-r has no meaning here: frames are received by the one dispatch, whose priority -P sets"),
        ("-u x", "-u has no meaning here: -U is there"),
        ("-d packet -P 100", "-P 100: 100 is not between 1 and 99"),
        ("-d packet -P batch:1", "-P batch:1: 'batch' is no policy: rr:N, fifo:N or nice:N"),
        ("-d packet -P nice:x", "-P nice:x: 'x' is not a number"),
        ("-d packet -P", "-P needs a priority, like rr:21 or nice:-5"),
        ("-t101 -d packet", "-t 101: expected a number from 1 to 100"),
        ("-t 0 -d packet", "-t 0: expected a number from 1 to 100"),
        ("-U nosuchuser -d packet", "-U nosuchuser: there is no user 'nosuchuser' on this machine"),
        ("-U 4242 -d packet", "-U 4242: user 4242 has no account: its group is needed, 4242:GID"),
        ("-U 0:nosuchgroup -d packet", "-U 0:nosuchgroup: there is no group 'nosuchgroup' on this machine"),
        ("--keep-caps net_raw -d packet", "--keep-caps belongs to -U"),
        ("-U 0:0 --keep-caps fly -d packet", "--keep-caps fly: there is no capability 'fly'"),
        ("--prefix alt -d packet", "--prefix alt: expected an absolute path without dots"),
        ("--prefix /a/../b -d packet", "--prefix /a/../b: expected an absolute path without dots"),
        ("--slow 1s -d packet", "--slow 1s: expected a number from 0 to 10000"),
        ("--falt x", "there is no option --falt; did you mean --fault?"),
        ("-x", "there is no option -x; see io-pkt --help"),
        ("-vv -d packet", "-v takes no value"),
        ("--help=1", "--help takes no value"),
    ],
)
def test_mistakes_are_sentences(words: str, sentence: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_command_line(words.split())
    assert str(raised.value).startswith(sentence)


def test_the_settings_of_the_process() -> None:
    words = "-P nice:-5 -t8 -U 4242:7,8 --keep-caps net_admin,CAP_SYS_NICE --prefix /alt/ --group 9 --slow 0 -d packet"

    line = parse_command_line(words.split())

    assert line.scheduling == Scheduling("nice", -5)
    assert (line.threads, line.slow_ms, line.prefix, line.group) == (8, 0, "/alt", 9)
    assert line.user == User(4242, 7, (7, 8))
    assert line.keep == ("NET_ADMIN", "SYS_NICE")
    assert parse_command_line(["-P", "21", "-d", "packet"]).scheduling == Scheduling("rr", 21)
    assert parse_command_line(["-P21", "-d", "packet"]).scheduling == Scheduling("rr", 21)
