"""io-pkt's command line, as QNX users write it."""

from __future__ import annotations

import pytest

from stack.core.commandline import CommandLine, Load, UsageError, parse_command_line
from stack.core.module import Kind


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
        ("-d packet -P 21", "-P has no meaning here: use nice or chrt to set the priority"),
        ("-t4", "-t has no meaning here: there are no packet threads to number"),
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
