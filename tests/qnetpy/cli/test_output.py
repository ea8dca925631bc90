"""What commands print is obeyed by terminals, and much of it was made up by others."""

from __future__ import annotations

import pytest

from qnetpy.cli.output import CommandError, facts, said, shown, table

HOSTILE = "a\x1b]0;title\x07\r\nb\x9b1m\u202e\udcff"
HARMLESS = r"a\x1b]0;title\x07\x0d\x0ab\x9b1m\u202e\udcff"


def test_what_others_called_something_is_no_command_for_the_terminal() -> None:
    assert shown(HOSTILE) == HARMLESS
    assert shown(HOSTILE.encode(errors="surrogateescape")) == HARMLESS.replace(r"\udcff", r"\xff")
    assert shown("plain, Größe 5 €") == "plain, Größe 5 €"
    assert table([[HOSTILE, 1]], ["NAME", "N"]).splitlines() == [f"NAME{' ' * len(HARMLESS)}"[: len(HARMLESS)] + "  N", f"{HARMLESS}  1"]
    assert facts({"node": HOSTILE}) == f"node: {HARMLESS}"
    assert str(CommandError(HOSTILE, "this")) == f"{HARMLESS}; try: this"
    assert said(OSError(2, "No such file", HOSTILE)) == f"{HARMLESS}: no such file"


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["-9", "-n", "n2", "sleep"], "9"),
        (["-n", "n2", "-KILL", "sleep"], "9"),
        (["-f", "-SIGHUP", "-n", "n2", "sleep"], "1"),
        (["-nn2", "-s", "USR1", "-ualice", "sleep"], "USR1"),
        (["-n", "n2", "sleep"], "TERM"),
    ],
)
def test_signals_as_kill_takes_them(words: list[str], number: str) -> None:
    from qnetpy.cli import slay
    from qnetpy.cli.main import Parser

    parser = Parser(prog="qnet slay")
    slay.add_arguments(parser)
    args = parser.parse_args(words)
    assert (args.signal, args.node, args.wanted) == (number, "n2", ["sleep"])


@pytest.mark.parametrize("name", [b"a\x1b[1m", b"a\nb", b"a\0b", b"\x7f"])
def test_no_server_takes_such_a_name(name: bytes) -> None:
    from resmgr.names.protocol import Scope, is_name

    assert not is_name(name, Scope.LOCAL)
    assert not is_name(name, Scope.GLOBAL)
    assert is_name("Größe 5".encode(), Scope.GLOBAL)
