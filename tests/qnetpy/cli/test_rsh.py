"""What `qnet rsh` makes of command lines that launchers write for ssh; the programs themselves are in tests/cluster/test_launchers.py."""

from __future__ import annotations

import shlex

import pytest

from qnetpy.cli import rsh
from qnetpy.cli.main import main
from qnetpy.cli.output import CommandError

SSH_OPTIONS = "46AaCfGgKkMNnqsTtVvXxYyBbcDEeFIiJLlmOopPQRSWw"
"""All that ssh(1) lists."""


def line(text: str, terminal: bool = False) -> list[str]:
    return rsh.command_line(rsh.parse(shlex.split(text)), terminal)


def shell(joined: str) -> list[str]:
    return ["/bin/sh", "-c", rsh.SHELL, "sh", joined]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        # rsync -e 'qnet rsh', and of b as alice.
        ("b rsync --server -logDtpre.iLsfxCIvu . /tmp/dst/", ["-T", "b", "--", *shell("rsync --server -logDtpre.iLsfxCIvu . /tmp/dst/")]),
        ("-l alice b rsync --server . x", ["-T", "-u", "alice", "b", "--", *shell("rsync --server . x")]),
        # git as for OpenSSH, and as for a program that it knows nothing of.
        ("-o SendEnv=GIT_PROTOCOL b \"git-upload-pack '/r'\"", ["-T", "b", "--", *shell("git-upload-pack '/r'")]),
        # Open MPI's agent: the words are the parts of one shell command.
        (
            "b orted -mca ess env -mca orte_node_regex 'a,b@0(2)'",
            ["-T", "b", "--", *shell("orted -mca ess env -mca orte_node_regex a,b@0(2)")],
        ),
        ("-x b orted", ["-T", "b", "--", *shell("orted")]),
        # execnet.
        ("-C -F conf b 'python -c \"import sys\"'", ["-T", "b", "--", *shell('python -c "import sys"')]),
        # scp -O -S.
        (
            "-x -oPermitLocalCommand=no -oClearAllForwardings=yes -oRemoteCommand=none -oRequestTTY=no -l alice -- b 'scp -t x'",
            ["-T", "-u", "alice", "b", "--", *shell("scp -t x")],
        ),
        # Clusters of letters, options behind the destination, the end of options.
        ("-nqlalice b true", ["-T", "-u", "alice", "--no-input", "b", "--", *shell("true")]),
        ("b -l alice -n true", ["-T", "-u", "alice", "--no-input", "b", "--", *shell("true")]),
        ("b -- -l alice", ["-T", "b", "--", *shell("-l alice")]),
        ("b - x", ["-T", "b", "--", *shell("- x")]),
        ("b true -l alice", ["-T", "b", "--", *shell("true -l alice")]),
        ("alice@b true", ["-T", "-u", "alice", "b", "--", *shell("true")]),
        ("-l bob alice@b true", ["-T", "-u", "bob", "b", "--", *shell("true")]),
        ("ssh://alice@b:22/ true", ["-T", "-u", "alice", "b", "--", *shell("true")]),
        ("-tt b top", ["-t", "b", "--", *shell("top")]),
        ("-o 'SetEnv A=1 B=\"2 3\"' b true", ["-T", "-e", "A=1", "-e", "B=2 3", "b", "--", *shell("true")]),
        ("-oRequestTTY=force -oUser=alice -oport=22 -oStdinNull=yes b x", ["-t", "-u", "alice", "--no-input", "b", "--", *shell("x")]),
        # An empty word is a word.
        ("b '' x", ["-T", "b", "--", *shell(" x")]),
    ],
)
def test_a_command_line_means_what_it_means_to_ssh(given: str, wanted: list[str]) -> None:
    assert line(given) == wanted


def test_a_login_shell_has_a_terminal_if_there_is_one_here() -> None:
    assert line("b", terminal=True) == ["-t", "b", "--"]
    assert line("b") == ["-T", "b", "--"]
    assert line("-T b", terminal=True) == ["-T", "b", "--"]
    assert line("-n b", terminal=True) == ["-T", "--no-input", "b", "--"]


def test_variables_of_here_go_along_by_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_PROTOCOL", "version=2")
    assert line("-o SendEnv=GIT_PROT* b x")[:3] == ["-T", "-e", "GIT_PROTOCOL"]


def test_every_option_of_ssh_is_done_or_taken_or_refused() -> None:
    for letter in SSH_OPTIONS:
        kinds = [letter in rsh.DONE | frozenset("lop"), letter in rsh.NO_MATTER, letter in rsh.REFUSED]
        assert kinds.count(True) == 1, letter
    assert frozenset("BbcDEeFIiJLlmOopPQRSWw") == rsh.WITH_ARGUMENT


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "a node is needed; try: qnet rsh NODE COMMAND"),
        ("-l", "-l needs something behind it"),
        ("-X b x", "-X means nothing here: no X11 is forwarded"),
        ("-nX b x", "-X means nothing here: no X11 is forwarded"),
        ("-L 1:b:2 b", "-L means nothing here: no ports are forwarded"),
        ("-s b sftp", "-s means nothing here: there are no subsystems; for sftp use scp -O, or the files in /net"),
        ("-p 2222 b x", "port 2222: a node has no ports for this; try: leave the port out"),
        ("ssh://b:2222 x", "port 2222: a node has no ports for this; try: leave the port out"),
        ("-Z b x", "ssh has no option -Z"),
        ("-o ForwardX11=yes b x", "-o ForwardX11=yes means nothing here"),
        ("-o LocalForward=1 b x", "-o LocalForward means nothing here"),
        ("-o RequestTTY=perhaps b x", "-o RequestTTY=perhaps is not understood; try: -o RequestTTY=no"),
        ("alice@ x", "alice@: there is no node in it; try: qnet rsh NODE COMMAND"),
    ],
)
def test_what_has_no_meaning_is_refused_as_ssh_fails(given: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError) as refused:
        rsh.parse(shlex.split(given))
    assert (str(refused.value), refused.value.status) == (said, 255)
    assert main(["rsh", *shlex.split(given)]) == 255
    assert capsys.readouterr().err == f"qnet rsh: {said}\n"


def test_git_can_ask_what_would_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rsh", "-G", "alice@b"]) == 0
    assert capsys.readouterr().out == "host b\nuser alice\nhostname b\nport 22\n"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rsh", "--help"]) == 0
    assert "ssh's options" in capsys.readouterr().out
    assert main(["rsh", "-V"]) == 0
    assert capsys.readouterr().err.startswith("qnet rsh ")
