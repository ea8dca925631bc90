"""The io-pkt program, as a process: ready, traffic, signals, and one line for everything that goes wrong."""

from __future__ import annotations

import ast
import fcntl
import importlib
import os
import pkgutil
import re
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

import stack.drivers
from qnetpy.cli.iopkt import ask_at
from qnetpy.cli.main import main as qnet
from stack.core.main import main
from stack.core.module import Module
from stack.rights import User, unreadable
from stack.testing.namespace import Namespace, Veth

ROOT = Path(__file__).parents[3]
IO_PKT = [sys.executable, "-m", "stack.core.main"]
READY_MAX = 8.0
"""What io-pkt may take until it is ready, in starts of an interpreter that imports Trio: 3 to 4 are usual."""
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


class Manager:
    """An io-pkt in a namespace. Those that a test leaves behind are ended by the fixture `run_dir`."""

    started: ClassVar[list[subprocess.Popen[str]]] = []

    def __init__(self, namespace: Namespace, run_dir: Path, *words: str) -> None:
        ready, tell = os.pipe()
        with namespace.entered():
            self.process = subprocess.Popen(
                [*IO_PKT, "--run-dir", str(run_dir), "--ready-fd", str(tell), *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=ENV,
                pass_fds=(tell,),
            )
        os.close(tell)
        self.told = os.read(ready, 100)
        os.close(ready)
        self.started.append(self.process)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=10)
        return self.process.returncode, out, err

    def processor(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Resident kilobytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1])


PACKET = "; did you mean packet?"
OWN = "; a file of your own goes into a folder on Python's path: FOLDER/NAME.py is FOLDER.NAME"


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    while Manager.started:
        left = Manager.started.pop()
        if left.poll() is None:
            left.kill()
            left.communicate()


def importing(what: str) -> float:
    """Seconds of processor time of an interpreter that imports *what*."""
    code = f"import {what}, resource; print(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=ENV).stdout)


@pytest.mark.priv
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_and_a_clean_end(veth: Veth, run_dir: Path, number: signal.Signals) -> None:
    manager = Manager(veth.a, run_dir, "-d", "packet", "ifname=va", "--fault", "drop=5%")
    assert manager.told == b"READY=1\n"
    assert manager.processor() < READY_MAX * statistics.median(importing("trio") for _ in range(3))
    assert manager.memory() < 80_000
    status, out, err = manager.stop(number)
    assert (status, err) == (0, "")
    assert out == "io-pkt0 ready: va 02:00:00:00:00:0a mtu 1500 up; modules packet\n"
    assert not run_dir.exists()


THIRD_PARTY = """
import attrs
from stack.core.module import Kind, Module

@attrs.frozen
class Options:
    name: str

class Protocol:
    def __init__(self, context, options):
        self.name = options.name
        self.links = [interface.name for interface in context.stack.interfaces]

    def detach(self):
        print(f"{self.name} detached, had {self.links}", flush=True)

MODULE = Module("third", Kind.PROTOCOL, Options, Protocol)
"""


@pytest.mark.priv
def test_modules_are_loaded_in_order_and_unloaded_in_reverse(
    veth: Veth, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thirdparty").mkdir()
    (tmp_path / "thirdparty" / "proto.py").write_text(THIRD_PARTY)
    monkeypatch.setitem(ENV, "PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    manager = Manager(
        veth.a, run_dir, "-p", "thirdparty.proto", "name=first", "-d", "packet", "ifname=va", "-p", "thirdparty.proto", "name=second"
    )
    assert manager.told == b"READY=1\n"
    status, out, err = manager.stop()
    assert (status, err) == (0, "")
    assert out.splitlines()[1:] == ["second detached, had ['va']", "first detached, had []"]


@pytest.mark.priv
def test_an_idle_manager_sleeps(veth: Veth, run_dir: Path) -> None:
    """Frames of other protocols do not wake it: both ends talk IPv6 neighbour discovery all the time."""
    manager = Manager(veth.a, run_dir, "-d", "packet", "ifname=va")
    stat = Path(f"/proc/{manager.process.pid}/stat")
    before = sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13]))
    for number in range(20):
        veth.b.ip("address", "add", f"10.77.{number}.1/24", "dev", "vb")
    after = sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13]))
    manager.stop()
    assert after - before <= 2, "ticks of 10 ms"


@pytest.mark.priv
def test_one_manager_per_instance(veth: Veth, run_dir: Path) -> None:
    manager = Manager(veth.a, run_dir, "-d", "packet", "ifname=va")
    second = Manager(veth.a, run_dir, "-d", "packet", "ifname=va")
    assert second.told == b""
    out, err = second.process.communicate(timeout=10)
    assert (second.process.returncode, out) == (1, "")
    assert err == f"io-pkt: io-pkt0 is running already, as process {manager.process.pid}; -i N starts another instance\n"
    manager.process.kill()
    manager.process.communicate(timeout=10)
    third = Manager(veth.a, run_dir, "-i", "3", "-d", "packet", "ifname=va")
    assert third.told == b"READY=1\n"
    assert third.stop()[1].startswith("io-pkt3 ready")


@pytest.mark.priv
@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        ("-d packet ifname=none0", 1, "there is no network interface none0 in this network namespace; there is: lo, va"),
        ("-d packet ifnam=va", 1, "packet: there is no option ifnam; did you mean ifname?"),
        ("-d packet", 1, "packet: option ifname is missing: ifname=TEXT"),
        (
            "-d packt ifname=va",
            1,
            "there is no driver called packt: not in stack.drivers and not among the installed io_pkt.modules" + PACKET,
        ),
        ("-d packet ifname=va --fault drop=5", 1, "fault: drop=5: expected a share between 0 and 1, or with a percent sign, like 5%"),
        ("-d packet ifname=va -d packet ifname=va", 1, "io-pkt0 has an interface va already"),
        ("-p packet", 1, "there is no protocol called packet: not in stack.inet and not among the installed io_pkt.modules" + OWN),
        ("-x", 2, "there is no option -x; see io-pkt --help"),
    ],
)
def test_errors_are_one_line(veth: Veth, run_dir: Path, words: str, status: int, line: str) -> None:
    manager = Manager(veth.a, run_dir, *words.split())
    out, err = manager.process.communicate(timeout=10)
    assert (manager.process.returncode, out, err) == (status, "", f"io-pkt: {line}\n")
    assert manager.told == b""


def test_help_and_options_of_modules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "io-pkt [-v] [-i N]" in capsys.readouterr().out
    assert main(["--options", "packet"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["ifname=TEXT", "required"]
    assert main(["--options", "nosuch"]) == 1
    assert capsys.readouterr().err.startswith("io-pkt: there is no module called nosuch")


def test_a_run_directory_that_cannot_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--run-dir", str(tmp_path / "file" / "run"), "-d", "packet", "ifname=lo"]) == 1
    err = capsys.readouterr().err
    assert err == f"io-pkt: cannot use the run directory {tmp_path}/file/run: Not a directory; see --run-dir\n"


def test_a_run_directory_of_somebody_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", 12345, 12345)
    assert main(["--run-dir", str(tmp_path / "run"), "-d", "packet", "ifname=lo"]) == 1
    assert capsys.readouterr().err == f"io-pkt: the run directory {tmp_path}/run belongs to somebody else (user 12345); see --run-dir\n"


@pytest.mark.host
def test_the_lock_is_the_owners_alone_and_a_look_at_it_does_not_hinder(capsys: pytest.CaptureFixture[str], run_dir: Path) -> None:
    """Other users could lock what they can open. Whoever may look holds the lock for a moment only."""
    run_dir.mkdir()
    lock = run_dir / "lock"
    lock.write_text("1\n")
    lock.chmod(0o644)
    words = ["--run-dir", str(run_dir), "-d", "packet", "ifname=none0"]
    looking = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(looking, fcntl.LOCK_SH)
        letting_go = threading.Timer(0.02, fcntl.flock, (looking, fcntl.LOCK_UN))
        letting_go.start()
        assert main(words) == 1
        letting_go.join()
        assert "there is no network interface none0" in capsys.readouterr().err
        assert os.fstat(looking).st_mode & 0o777 == 0o600

        lock.write_text("1\n")
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_SH)
            assert main(words) == 1
        assert "is running already, as process 1" in capsys.readouterr().err
    finally:
        os.close(looking)


@pytest.mark.host
def test_many_at_once_and_one_wins(run_dir: Path) -> None:
    """Whatever the order in which they open, lock and remove the file."""
    managers = [
        subprocess.Popen([*IO_PKT, "--run-dir", str(run_dir), "-d", "packet", "ifname=none0"], stderr=subprocess.PIPE, env=ENV, text=True)
        for _ in range(6)
    ]
    said = [manager.communicate(timeout=20)[1] for manager in managers]
    assert all("is running already" in one or "there is no network interface none0" in one for one in said), said
    assert any("none0" in one for one in said)
    assert not run_dir.exists() or os.listdir(run_dir) == []


@pytest.mark.priv
def test_an_ordinary_user_with_what_its_modules_need(veth: Veth, run_dir: Path) -> None:
    """-U: no root left, frames still come and go, the folder is the user's, and root can still load another driver."""
    # The interpreter and the tree may lie where only root may look: in /root.
    words = ("-U", "4242:4343", "--keep-caps", "dac_read_search", "-d", "packet", "ifname=va")
    manager = Manager(veth.a, run_dir, "-P", "nice:3", *words)
    assert manager.told == b"READY=1\n"
    status = Path(f"/proc/{manager.process.pid}/status").read_text()
    assert "Uid:\t4242\t4242\t4242\t4242\n" in status
    assert "CapEff:\t0000000000802004\n" in status, "NET_RAW, for -P SYS_NICE, and what --keep-caps says"
    assert run_dir.stat().st_uid == 4242
    found = ask_at(str(run_dir / "socket"), "mount", module="packet", options="ifname=va,name=again")
    assert found["interface"] == "again"
    assert manager.stop() == (0, "io-pkt0 ready: va 02:00:00:00:00:0a mtu 1500 up; modules packet\n", "")
    assert os.listdir(run_dir) == []
    assert Manager(veth.a, run_dir, *words).stop()[0] == 0, "it is let into its own folder"


@pytest.mark.priv
def test_an_ordinary_user_makes_links(namespace: Namespace, run_dir: Path) -> None:
    # Files: the tree may lie in /root, and a container's /dev/net/tun is often root's alone.
    words = ("-U", "4242:4343", "--keep-caps", "dac_override", "-d", "tap", "ifname=ta", "-d", "veth", "ifname=vc,peer=vd")
    manager = Manager(namespace, run_dir, *words)
    code, out, err = manager.stop()
    assert (code, err) == (0, "")
    assert out.endswith("modules tap veth\n")


def test_what_a_driver_needs_is_what_it_declares() -> None:
    """The head of the file, for people, and `Module.capabilities`, for -U. What only some options need is not declared."""
    said = {}
    declared = {}
    for one in pkgutil.iter_modules(stack.drivers.__path__, "stack.drivers."):
        file = importlib.import_module(one.name)
        module = getattr(file, "MODULE", None)
        if isinstance(module, Module):
            # Compiled modules have no docstring: the source is read.
            source = ROOT / (module.attach.__module__.replace(".", "/") + ".py")
            needs = re.search(r"^Needs (CAP_[^;.]*)", ast.get_docstring(ast.parse(source.read_text())) or "", re.MULTILINE)
            said[module.name] = set(re.findall(r"CAP_(\w+)", needs[0])) if needs else set()
            declared[module.name] = set(module.capabilities)
    assert said == declared
    assert declared["tap"], "the pattern finds something"


@pytest.mark.priv
def test_two_instances_side_by_side(
    veth: Veth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has its interfaces and modules; the second is found by its prefix, as with QNX's SOCK."""
    first = Manager(veth.a, tmp_path / "io-pkt0", "-d", "packet", "ifname=va")
    second = Manager(veth.b, tmp_path / "io-pkt1", "-i1", "--prefix", "/alt", "-t", "3", "-d", "packet", "ifname=vb")
    assert (first.told, second.told) == (b"READY=1\n", b"READY=1\n")
    one, two = (ask_at(str(tmp_path / f"io-pkt{n}" / "socket"), "facts") for n in range(2))
    assert (one["name"], one["prefix"], two["name"], two["prefix"], two["workers"]) == ("io-pkt0", "", "io-pkt1", "/alt", 3)
    monkeypatch.setattr("stack.rundir.default_run_dir", lambda instance: str(tmp_path / f"io-pkt{instance}"))
    monkeypatch.setenv("QNET_RUN_DIR", str(tmp_path / "none"))
    for environment, words, interface in (
        ("", [], "va"),
        ("", ["-T", "io-pkt1"], "vb"),
        ("/alt", [], "vb"),
        ("/alt", ["-T", "io-pkt"], "va"),
    ):
        monkeypatch.setenv("SOCK", environment)
        assert qnet(["ifconfig", *words]) == 0
        assert capsys.readouterr().out.startswith(f"{interface}: flags=")
    monkeypatch.setenv("SOCK", "/nowhere")
    assert qnet(["ifconfig"]) == 1
    assert "no io-pkt of this machine has the prefix '/nowhere'" in capsys.readouterr().err
    for manager in (first, second):
        assert manager.stop()[0] == 0


@pytest.mark.priv
def test_a_user_who_cannot_read_the_library_is_refused_before_anything_is_made(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules import when they are loaded: as a traceback that would come late, with a run directory that is his."""
    private = tmp_path / "private.py"
    private.touch(0o600)
    monkeypatch.setattr("trio.__file__", str(private))
    assert main(["--run-dir", str(run_dir), "-U", "4242:4343", "-d", "lo"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"io-pkt: user 4242 cannot read /\S+\.py, which Python imports from: -U needs an installation that he can read\n", said
    )
    assert not run_dir.exists()
    monkeypatch.setattr("trio.__file__", os.devnull)
    assert unreadable(User(4242, 4343), (), [os.devnull, str(private)]) == str(private)
    assert unreadable(User(4242, 4343), ["DAC_READ_SEARCH"], [os.devnull, str(private)]) == ""
