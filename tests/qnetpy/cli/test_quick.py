"""The quick beginning of `qnet on`: its bytes are those of the modules that it does without, its words mean what the parser says."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qnetpy.cli import on, quick
from qnetpy.cli.main import Parser
from resmgr import ids
from resmgr import message as wire
from resmgr.procmgr import client, message
from resmgr.transport.datagram import DATAGRAM_MAX, LENGTH, Assembler, fragments

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "bin" / "qnet"


def parsed(words: list[str]) -> tuple[object, str, str]:
    parser = Parser(prog="qnet on")
    on.add_arguments(parser)
    return on._arrange(parser.parse_args(words))


@pytest.mark.parametrize(
    "words",
    [
        ["b", "true"],
        ["b", "--", "true"],
        ["-f", "b", "--", "sh", "-c", "-x"],
        ["-T", "b", "--no-input", "cat", "--", "-T"],
        ["--no-input", "-f", "b", "ls", "-f", "c"],
        ["b", "-T", "--", "--"],
        ["b", "-f", "c", "true"],
        ["-f", "b", "c", "true"],
        ["--", "b", "true"],
    ],
)
def test_plain_words_mean_what_the_parser_says(words: list[str]) -> None:
    try:
        node, command, no_input = quick.plain(words)
    except quick.Unusual:
        return
    args, named, device = parsed(words)
    assert (named, device, args.command, args.no_input) == (node, "", command, no_input)  # type: ignore[attr-defined]  # a Namespace
    assert not args.terminal  # type: ignore[attr-defined]  # a Namespace


def test_random_words_too() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    taken = 0
    for _ in range(300):
        words = generator.choices(["b", "c", "--", "-T", "-f", "--no-input", "true", "-x"], k=generator.randint(1, 5))
        try:
            node, command, no_input = quick.plain(list(words))
        except quick.Unusual:
            continue
        taken += 1
        args, named, _ = parsed(list(words))
        assert (named, args.command, args.no_input) == (node, command, no_input), words  # type: ignore[attr-defined]  # a Namespace
    assert taken > 20


@pytest.mark.parametrize(
    "words",
    [[], ["b"], ["-n", "b", "true"], ["b~via:eth0", "true"], ["-d", "b", "true"], ["b", "-t", "true"], ["-f"], ["b/c", "x"], ["b,c", "x"]],
)
def test_what_is_not_plain_is_left_to_the_parser(words: list[str]) -> None:
    with pytest.raises(quick.Unusual):
        quick.plain(words)


def test_it_sends_what_the_modules_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    for words, more in ((["b", "printf", "%s", "\udcff"], message.SPAWN_STDIN), (["b", "--no-input", "true"], 0)):
        _, command, _ = quick.plain(words)
        args, _, _ = parsed(words)
        want = on._what(args, False, "")  # type: ignore[arg-type]  # a Namespace
        flags = message.SPAWN_STDOUT | message.SPAWN_STDERR | more
        assert want.flags == flags
        assert quick.spawn(command, flags) == message.pack_spawn(want._replace(flags=flags | message.SPAWN_BRIEF))
    assert client.LOOKUP == quick.LOOKUP


def test_its_numbers_are_those_of_the_modules() -> None:
    assert (wire.SEND, wire.REPLY, wire.HELLO, wire.VERSION, wire.CONNECT) == (
        quick.SEND,
        quick.REPLY,
        quick.HELLO,
        quick.VERSION,
        quick.CONNECT,
    )
    for ours, theirs in (
        (quick.SEND_HEADER, wire.SEND_HEADER),
        (quick.REPLY_HEADER, wire.REPLY_HEADER),
        (quick.HELLO_HEADER, wire.HELLO_HEADER),
        (quick.BLOCK, wire.BLOCK),
        (quick.LENGTH, LENGTH),
        (quick.ANSWER, message.BRIEF),
    ):
        assert ours.format == theirs.format
    numbers = quick.PID_SYSTEM, quick.CHID_PATHMGR, quick.CHID_PROCMGR, quick.PRIORITY, quick.FIRST_PART
    assert numbers == (ids.PID_SYSTEM, ids.CHID_PATHMGR, ids.CHID_PROCMGR, ids.PRIORITY_DEFAULT, ids.FIRST_PART_DEFAULT)
    assert (quick.LIMITS, quick.END, quick.DATAGRAM_MAX) == (message.LIMITS, message.BRIEF_END, DATAGRAM_MAX)
    assert tuple(map(os.fsencode, on.PASSED_ON)) == quick.PASSED_ON
    told = message.pack_brief(message.Brief(0, 1, message.Ended(None, 9), (b"", b""), (True, True)))
    assert quick.ANSWER.unpack_from(told)[2] == quick.KILLED
    assert len(told) + quick.OUTPUT + wire.REPLY_HEADER.size + LENGTH.size < DATAGRAM_MAX


@pytest.mark.host
def test_it_asks_as_the_client_does() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        late = wire.REPLY_HEADER.pack(wire.REPLY, 1, 0, 0, 6, 0, 0) + b"another"
        reply = wire.REPLY_HEADER.pack(wire.REPLY, 1, 0, 0, 7, 0, -2)
        theirs.send(LENGTH.pack(len(late)) + late + LENGTH.pack(len(reply)) + reply)
        assert quick.ask(ours, 7, 3, 2, b"request", 99) == (-2, b"")
        (sent,) = Assembler().feed(theirs.recv(DATAGRAM_MAX))
        flags, priority, _, txn, number, room, length, block, data = wire.parse_send(sent)
        assert (flags, priority, txn, number, room, length, bytes(data)) == (wire.CONNECT, ids.PRIORITY_DEFAULT, 7, 7, 99, 7, b"request")
        assert block == wire.ConnectBlock(3, 1, 2, 0, 0, 0)


def test_a_message_in_several_datagrams_is_refused() -> None:
    first = b"".join(bytes(part) for part in fragments([bytes(DATAGRAM_MAX)], DATAGRAM_MAX)[0])
    with pytest.raises(ValueError, match="datagram"):
        quick.items(first)


@pytest.mark.host
def test_it_loads_nothing_that_takes_time() -> None:
    heavy = ("typing", "enum", "re", "argparse", "socket", "collections", "resmgr.client", "resmgr.message", "functools", "signal")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import qnetpy.cli.quick; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.host
@pytest.mark.parametrize(
    "first",
    [
        "#!{}\n# -*- coding: utf-8 -*-\n",
        "#!/bin/sh\n'''exec' \"{}\" \"$0\" \"$@\"\n' '''\n",
        "#!/bin/sh\n'''exec' {} \"$0\" \"$@\"\n' '''\n",
        "#!/bin/sh\n'''exec' '{}' \"$0\" \"$@\"\n' '''\n",
    ],
    ids=["plain", "long", "bare", "single quotes"],
)
def test_the_script_finds_its_interpreter(first: str, tmp_path: Path) -> None:
    folder = tmp_path / "with blanks"
    folder.mkdir()
    (folder / "qnet").write_bytes(SCRIPT.read_bytes())
    (folder / "qnet").chmod(0o755)
    (folder / "io-pkt").write_text(first.format(sys.executable))
    (tmp_path / "link").symlink_to(folder / "qnet")
    for words, said in ((["on"], "a node is needed"), (["up", "--no-such"], "no option")):
        result = subprocess.run([tmp_path / "link", *words], capture_output=True, text=True, check=False)
        assert (result.returncode, said in result.stderr) == (2, True), result.stderr


@pytest.mark.host
def test_the_script_finds_a_tree_that_is_installed_in_place(tmp_path: Path) -> None:
    packages = tmp_path / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    facts = packages / "qnetpy-9.dist-info"
    facts.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "qnet"
    script.write_bytes(SCRIPT.read_bytes())
    script.chmod(0o755)
    (tmp_path / "bin" / "io-pkt").write_text(f"#!{sys.executable}\n")
    (facts / "direct_url.json").write_text(f'{{"dir_info": {{"editable": true}}, "url": "file://{ROOT}"}}')
    verbose = {"PYTHONVERBOSE": "1", "PATH": os.environ["PATH"]}
    result = subprocess.run([str(script), "on"], capture_output=True, text=True, check=False, env=verbose)
    assert result.returncode == 2
    assert "import 'site'" not in result.stderr
    assert "qnetpy/cli/quick.py" in result.stderr
