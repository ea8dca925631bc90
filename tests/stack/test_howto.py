"""The pages for who writes a module, done as their reader does: each file is written where the page says, pytest runs the tests in it, and
the sessions are typed into a shell, on a machine of their own where nobody runs yet."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from stack.core.module import Module
from stack.testing.machines import World
from tests import howto

ROOT = Path(__file__).parents[2]
PAGES = ("driver.md", "protocol.md", "crypto-provider.md", "routed-flows.md")
SECONDS = 120
STARTED = re.compile(r"io-pkt -i (\d+) .*&")
SHELL = """set -eu
ulimit -c 0
io-pkt() { exec "$PYTHON" -m stack.core.main "$@"; }
qnet() { "$PYTHON" -m qnetpy.cli.main "$@"; }
ready() { for _ in $(seq 600); do [ ! -S "/run/io-pkt$1/socket" ] || return 0; kill -0 $! && sleep 0.05; done; return 1; }
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
"""
"""What a reader has in his PATH, and that he waits for what he started."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for page in PAGES:
        howto.write(page, tmp_path)
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), *filter(None, sys.path)])}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_a_file_and_every_module_has_a_test(page: str) -> None:
    names = howto.files(page)
    assert names
    assert not howto.nameless(page)
    modules = [name for name in names if name.startswith("your/") and not name.startswith("your/test_")]
    assert not [name for name in modules if name.replace("your/", "your/test_") not in names]


@pytest.mark.host
def test_the_tests_of_the_pages_pass(folder: Path) -> None:
    texts = [text for page in PAGES for name, text in howto.files(page).items() if name.startswith("your/test_")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder), "your"]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(re.findall(r'^def test_', chr(10).join(texts), re.MULTILINE))} passed" in done.stdout


def typed(folder: Path, session: str) -> str:
    """What the shell says, in namespaces of its own where /run is empty."""
    lines = [SHELL]
    for line in session.splitlines():
        begun = STARTED.fullmatch(line)
        lines += [f"echo {shlex.quote('$ ' + line)}", line.replace("PYTHONPATH=.", 'PYTHONPATH="$PWD:$PYTHONPATH"')]
        if begun is not None:
            lines.append(f"ready {begun[1]}")
    inside = f"mount -t tmpfs none /run && cd {shlex.quote(str(folder))} && exec bash session"
    (folder / "session").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        ["unshare", "--mount", "--net", "bash", "-c", inside],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.priv
@pytest.mark.host
@pytest.mark.parametrize(
    ("page", "said"),
    [
        (
            "driver.md",
            ["driver unixlink is loaded as #2, interface ul0", "Physical Node ID ................... 02000000000B", "bridge:   bridge0"],
        ),
        ("protocol.md", ["protocol neighbours is loaded as #2", "0x88b6", "neighbours is unloaded"]),
        ("crypto-provider.md", ["card serves from now on", "protocol card is unloaded"]),
    ],
)
def test_the_session_of_the_page(page: str, said: list[str], folder: Path) -> None:
    (session,) = [block for block in howto.sessions(page) if "io-pkt -i" in block]
    asks = "ask.py" in howto.files(page)
    if asks:
        session = re.sub(r"(?m)^(kill)", r'"$PYTHON" ask.py\n\1', session)
    told = typed(folder, session)
    for words in [*said, *(["'name': 'anna'"] if asks else [])]:
        assert words in told, told
    assert not {"a", "b"} & set(os.listdir(folder)), "the driver left its sockets"


@pytest.mark.priv
@pytest.mark.host
def test_the_router_is_started_as_the_page_says(folder: Path) -> None:
    (session,) = howto.sessions("routed-flows.md")
    links = "\n".join(f"ip link add p{number} type veth peer name far{number}; ip link set p{number} up" for number in range(2))
    told = typed(folder, f"{links}\n{session.strip()}\nqnet mount -T io-pkt1")
    assert "10.9.2.0/24 p0 02:00:00:00:02:01" in told.split("qnet specific -T io-pkt1 router\n")[1], told
    assert "10.9.1.0" not in told.split("qnet specific -T io-pkt1 router\n")[1].split("$ ")[0], told


def module_with(old: str, new: str) -> dict[str, object]:
    """The names of the protocol of the page, after an error was made in it."""
    text = howto.files("protocol.md")["your/neighbours.py"]
    assert old in text
    made = sys.modules["your_neighbours"]
    exec(compile(text.replace(old, new), "neighbours.py", "exec"), made.__dict__)
    return made.__dict__


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("self._timer.cancel()", "pass", "a: module neighbours left a timer behind"),
        ("self._listener.revoke()", "pass", "left an interface listener behind"),
        ("self._files.destroy()", "pass", "left channel"),
        ("self._paths.detach(self._attached)", "pass", "a module left the path /dev attached"),
        (", self._hello)", ", lambda: [][0])", "a: exceptions left callbacks"),
    ],
)
def test_the_kit_sees_what_a_module_forgets(old: str, new: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "your_neighbours", ModuleType("your_neighbours"))
    world = World(1)
    machine = world.machine("a", 0)
    machine.stack.load("ip")
    names = module_with(old, new)
    module = names["MODULE"]
    assert isinstance(module, Module)
    machine.stack.load(module)
    world.dispatch.run_for(5.0)
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        world.close()


def test_the_kit_says_what_there_is() -> None:
    with World(1) as world:
        machine = world.machine("a", 0)
        machine.stack.load("ip")
        with pytest.raises(AssertionError, match="a has no module or interface neighbours; there is: en0, ip"):
            machine.ask("neighbours", "rename", name="b")
        with pytest.raises(AssertionError, match="ip takes no requests"):
            machine.facts("ip")
