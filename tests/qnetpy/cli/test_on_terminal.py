"""Which terminal the words of `qnet on -t` name, and one of another place in front of this program."""

from __future__ import annotations

import argparse
import os
import re
import select
import signal
import termios
import time

import pytest

from qnetpy.cli import elsewhere, on
from qnetpy.cli.elsewhere import Elsewhere
from qnetpy.cli.output import CommandError


def arranged(*words: str) -> tuple[str, str, list[str]]:
    parser = argparse.ArgumentParser()
    on.add_arguments(parser)
    args, node, device = on._arrange(parser.parse_args(words))
    return node, device, args.command


def test_which_terminal() -> None:
    assert arranged("-t", "/dev/tty2", "n2", "--", "top") == ("n2", "/dev/tty2", ["top"])
    assert arranged("n2", "-t", "/net/n1/dev/pts/3", "top") == ("n2", "/net/n1/dev/pts/3", ["top"])
    assert arranged("-t", "-f", "n2", "/net/n1/dev/pts/3", "--", "/bin/top") == ("n2", "/net/n1/dev/pts/3", ["/bin/top"])
    assert arranged("-t", "n2", "--", "/bin/top") == ("n2", "", ["/bin/top"])
    with pytest.raises(SystemExit):
        arranged("-d", "-t", "/net/n1/dev/pts/3", "n2", "top")


def test_which_node() -> None:
    assert arranged("--", "n2", "true", "-x") == ("n2", "", ["true", "-x"])
    assert arranged("--", "n2", "--", "true") == ("n2", "", ["true"])
    assert arranged("-n", "n2", "--", "true") == ("n2", "", ["true"])
    assert arranged("--all", "--", "true") == ("", "", ["true"])
    assert arranged("-f", "n2,n3", "true") == ("n2,n3", "", ["true"])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("n2", "-n", "uname"), "n2 and -n uname both name a node"),
        (("n2", "-f", "n3", "true"), "n2 and -f n3 both name a node"),
        (("-t", "n2,n3", "true"), "several nodes go neither with -t nor with -d"),
        (("--", ""), "a node is needed"),
    ],
)
def test_words_that_mean_nothing(words: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arranged(*words)
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["n2", ""], "the program's name is empty"),
        (["n2", "--", "-x"], "-x: a program's name must not begin with a dash; try: ./-x"),
        (["n2", "echo", *["1"] * 8192], "8193 arguments; a node takes 8192"),
        (["n2", "echo", "x" * 300_000], "arguments and variables of 29"),
        (["--cwd", "tmp", "n2", "true"], "--cwd tmp: a directory of another node has to be an absolute path"),
    ],
)
def test_what_every_node_would_refuse_is_said_here(words: list[str], why: str) -> None:
    parser = argparse.ArgumentParser()
    on.add_arguments(parser)
    args, _, _ = on._arrange(parser.parse_args(words))
    with pytest.raises(CommandError, match=re.escape(why)):
        on._what(args, False, "")


def test_variables_that_are_left_out_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("UNSET", raising=False)
    wanted = ["PATH=/x", "LD_PRELOAD=x", "UNSET", "a-b=1", "GOOD=1"]
    assert b"GOOD=1" in on._environment(wanted, False, False)
    assert capsys.readouterr().err.splitlines() == [
        "qnet on: -e PATH is left out: its value is that of the account there",
        "qnet on: -e LD_PRELOAD is left out: it would steer the loader or the shell there",
        "qnet on: -e UNSET is left out: there is no such variable here",
        "qnet on: -e a-b is left out: not a name of a variable",
    ]
    assert b"PATH=/x" in on._environment(["PATH=/x"], False, True)


def test_what_is_no_terminal() -> None:
    for path, why in (("/dev/null", "is not a terminal"), ("/nowhere", "no such file or directory")):
        with pytest.raises(CommandError, match=why) as refused:
            Elsewhere(path, 255)
        assert refused.value.status == 255


def read(fd: int) -> bytes:
    assert select.select([fd], [], [], 10)[0]
    return os.read(fd, 100)


def test_standard_input_and_output_become_the_far_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "LOOK", 0.01)
    master, slave = os.openpty()
    termios.tcsetwinsize(master, (30, 100))
    before = termios.tcgetattr(slave)
    caught: list[int] = []
    handlers = {number: signal.signal(number, lambda which, _: caught.append(which)) for number in (signal.SIGWINCH, signal.SIGHUP)}
    own = os.fstat(0), os.fstat(1)
    try:
        with Elsewhere(os.ttyname(slave), 255):
            assert os.isatty(0)
            assert tuple(os.get_terminal_size(1)) == (100, 30)
            assert not termios.tcgetattr(slave)[3] & termios.ECHO
            os.write(master, b"typed\x03")
            assert read(0) == b"typed\x03"
            os.write(1, b"shown")
            assert read(master) == b"shown"
            termios.tcsetwinsize(master, (31, 100))
            until(lambda: signal.SIGWINCH in caught)
            assert tuple(os.get_terminal_size(1)) == (100, 31)
            os.write(1, b"last")
        assert read(master) == b"last"
        assert (os.fstat(0), os.fstat(1)) == own
        assert termios.tcgetattr(slave) == before
        with Elsewhere(os.ttyname(slave), 255):
            caught.clear()
            os.close(slave)
            os.close(master)
            until(lambda: signal.SIGHUP in caught)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
