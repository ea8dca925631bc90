"""mount, umount, ifconfig, nicinfo and netstat, typed at a real io-pkt that an ordinary user started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qnetpy.cli.ifconfig import settings, shown
from qnetpy.cli.main import main
from qnetpy.cli.output import CommandError, scaled
from qnetpy.cli.rates import rates
from resmgr.client import Client

pytestmark = pytest.mark.host
Type = Callable[..., str]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("io-pkt") / "run"
    words = ["-m", "stack.core.main", "--run-dir", str(folder), "-d", "udp", "port=0,name=udp0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"io-pkt0 ready")
        yield folder
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


@pytest.fixture
def typed(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Type:
    """Types a command; returns what it printed, an error as `STATUS: line`."""

    def run(command: str, *words: str) -> str:
        status = main([command, "--run-dir", str(run_dir), *words])
        out, err = capsys.readouterr()
        assert (status == 0) == (err == "")
        return f"{status}: {err}" if status else out

    return run


def test_an_answer_that_was_cut_is_no_other_version(typed: Type, monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
    monkeypatch.setattr("stack.managers.protocol.REPLY_MAX", 64)
    assert typed("mount") == f"1: qnet mount: io-pkt at {run_dir}/socket answers with more than 64 bytes, which nobody takes\n"


def test_one_that_is_stopped_is_said_to_be(typed: Type, monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
    # A client says hello within its own time; here it is not waited for.
    monkeypatch.setattr("resmgr.client.Client.__init__.__kwdefaults__", {**(Client.__init__.__kwdefaults__ or {}), "timeout": 0.05})
    number = int((run_dir / "lock").read_text())
    os.kill(number, signal.SIGSTOP)
    try:
        said = typed("mount")
    finally:
        os.kill(number, signal.SIGCONT)
    assert said.startswith("1: qnet mount: ")
    assert f"process {number} is stopped: kill -CONT {number}" in said


def test_modules_come_and_go(typed: Type) -> None:
    assert typed("mount").splitlines()[1].split() == ["#1", "udp", "driver", "udp0", "port=0,name=udp0"]
    made = typed("mount", "-o", "port=0", "-o", "name=udp1", "--fault", "drop=5%", "/lib/dll/devnp-udp.so")
    assert made.startswith("driver udp is loaded as #")
    assert made.endswith(", interface udp1\n")
    assert "udp in fault" in typed("mount")
    listed = json.loads(typed("mount", "--json"))
    assert [one["interface"] for one in listed["modules"]] == ["udp0", "udp1"]
    assert typed("umount", "udp").startswith("1: qnet umount: udp is loaded 2 times: say which, #1 (udp0), #")
    assert typed("umount", "/dev/io-net/udp1") == "driver udp is unloaded\n"
    assert typed("umount", "udp1") == "1: qnet umount: io-pkt0 has no module or interface udp1; loaded: udp (ENXIO)\n"
    assert typed("mount", "nosuch").startswith("1: qnet mount: there is no module called nosuch: ")
    assert typed("mount", "-o", "prt=1", "udp") == "1: qnet mount: udp: there is no option prt; did you mean port? (EINVAL)\n"
    protocol = json.loads(typed("mount", "--json", "-o", "address=10.9.9.9,restart=2", "ip"))
    assert (protocol["kind"], protocol["restarts"]) == ("protocol", {"most": 2, "done": 0, "total": 0})
    assert typed("umount", "lsm-ip.so") == "protocol ip is unloaded\n"


def test_any_wrappers_in_their_order(typed: Type, tmp_path: Path) -> None:
    words = ("--wrap", f"pcap,file={tmp_path}/trace.pcapng", "--fault", "drop=5%", "--wrap", "tracer")
    made = json.loads(typed("mount", "--json", *words, "-o", "port=0,name=udp1", "udp"))
    assert made["wrappers"] == [["pcap", f"file={tmp_path}/trace.pcapng"], ["fault", "drop=5%"], ["tracer", ""]]
    assert "udp in pcap in fault in tracer" in typed("mount")
    assert typed("umount", "udp1") == "driver udp is unloaded\n"
    assert typed("mount", "--wrap", "nosuch", "udp").startswith("1: qnet mount: there is no wrapper called nosuch")
    assert typed("mount", "--wrap", "tracer").startswith("2: qnet mount: options and wrappers belong to a module")


def test_who_does_the_ciphers_of_an_io_pkt_without_qnet(typed: Type, run_dir: Path) -> None:
    assert typed("crypto").splitlines()[1].split()[:3] == ["openssl", "-", "ready"]
    assert typed("crypto", "use", "threads") == "threads serves from now on; 0 sessions moved, 0 stayed\n"
    assert json.loads(typed("crypto", "--json"))["providers"][0]["name"] == "threads"
    assert typed("crypto", "use", "rot13").startswith("1: qnet crypto: there is no crypto provider rot13; there are ")
    assert typed("crypto", "use", "reference").startswith("1: qnet crypto: reference is for tests")
    # The place may stand behind the verb, too.
    assert main(["crypto", "use", "--run-dir", str(run_dir), "openssl"]) == 0


def test_interfaces_are_made_switched_and_unmade(typed: Type) -> None:
    assert typed("ifconfig", "udp7", "create", "port", "0", "mtu=1400") == ""
    assert typed("ifconfig", "udp7").startswith("udp7: flags=841<UP,RUNNING,SIMPLEX> mtu 1400\n\taddress: ")
    assert typed("ifconfig", "udp7", "mtu", "1200", "down") == ""
    assert typed("ifconfig", "udp7").startswith("udp7: flags=800<SIMPLEX> mtu 1200\n")
    assert json.loads(typed("ifconfig", "--json", "udp7", "up")) == {"name": "udp7", "up": True, "enabled": True, "mtu": 1200}
    assert "between 68 and 1400" in typed("ifconfig", "udp7", "mtu", "1401")
    assert typed("ifconfig").count("flags=") == 2
    assert typed("ifconfig", "udp7", "destroy") == ""
    assert typed("ifconfig", "udp7") == "1: qnet ifconfig: io-pkt0 has no interface udp7; there is: udp0\n"
    assert typed("ifconfig", "udp7", "destroy") == "1: qnet ifconfig: io-pkt0 has no interface udp7; there is: udp0 (ENXIO)\n"
    for words in (("create",), ("udp", "create"), ("udp0", "sideways"), ("udp0", "mtu"), ("udp0", "mtu", "x"), ("udp0", "destroy", "it")):
        assert typed("ifconfig", *words)[0] in "12"


def test_views(typed: Type) -> None:
    text = typed("nicinfo", "udp0")
    for label in ("Driver ", "Physical Node ID ", "Packets Received OK ", "Bytes Transmitted OK "):
        assert label in text
    assert [one["name"] for one in json.loads(typed("nicinfo", "--json"))] == ["udp0"]
    assert "Packets Received per second " in typed("nicinfo", "--watch", "0.1", "-c", "1")
    (line,) = typed("nicinfo", "--watch", "0.1", "-c", "1", "--json").splitlines()
    assert json.loads(line)[0]["rates"] == {"rx_frames": 0.0, "rx_bytes": 0.0, "tx_frames": 0.0, "tx_bytes": 0.0, "drops": {}}
    assert typed("netstat").splitlines()[0].split()[:3] == ["NAME", "MTU", "ADDRESS"]
    assert typed("netstat", "-i", "-I", "udp0").splitlines()[1].startswith("udp0 ")
    assert "ETHERTYPE" in typed("netstat", "-s")
    assert json.loads(typed("netstat", "-s", "--json"))["modules"][0]["name"] == "udp"
    lines = typed("netstat", "-w", "0.1", "-c", "2").splitlines()
    assert [line.split()[0] for line in lines] == ["INTERFACE", "udp0", "udp0"]
    assert typed("netstat", "-w", "0.01").startswith("2: qnet netstat: an interval of 0.01 s is not between")
    assert typed("nicinfo", "en0").startswith("1: qnet nicinfo: io-pkt0 has no interface en0")


def test_no_manager_and_no_instance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["netstat", "--run-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"qnet netstat: no io-pkt listens at {tmp_path}/socket; try: qnet up")
    assert main(["netstat", "-T", "io-net"]) == 2
    assert capsys.readouterr().err == "qnet netstat: -T io-net: expected io-pkt or io-pktN\n"
    assert main(["netstat", "-T", "io-pkt5", "--run-dir", "/nowhere"]) == 2
    assert "-T io-pkt5 and --run-dir /nowhere both say which io-pkt: give one of them" in capsys.readouterr().err


def test_rates_of_counters() -> None:
    def reading(index: int, frames: int, lost: int) -> dict[str, object]:
        counters = dict.fromkeys(("rx_frames", "rx_bytes", "tx_frames", "tx_bytes"), frames)
        return {"interfaces": [{"name": "en0", "index": index, "drops": {"link_down": lost, "bad": 1}, **counters}]}

    (same,) = rates(reading(1, 100, 0), reading(1, 300, 4), 2.0)
    assert (same.rx_frames, same.tx_bytes, same.drops) == (100.0, 100.0, {"link_down": 2.0})
    (anew,) = rates(reading(1, 100, 0), reading(2, 10, 0), 2.0)
    assert anew.rx_frames == 5.0, "another interface of that name counts from zero"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7.6, "8"), (999, "999"), (1000, "1k"), (1234, "1.23k"), (123456, "123k"), (2.5e6, "2.5M"), (1e12, "1000G")],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert scaled(value) == text


def test_words_of_ifconfig() -> None:
    assert settings(["mtu", "1400", "up"]) == {"mtu": 1400, "up": True}
    with pytest.raises(CommandError, match="mtu needs a number"):
        settings(["mtu", "-1"])
    facts: dict[str, object] = {"name": "lo0", "module": "lo", "mac": "0", "mtu": 9, "enabled": True, "up": True, "carrier": True}
    facts |= {"promiscuous": 2, "broadcast": True, "addresses": ["127.0.0.1", "::1"]}
    assert shown(facts) == (
        "lo0: flags=894b<UP,BROADCAST,LOOPBACK,RUNNING,PROMISC,SIMPLEX,MULTICAST> mtu 9\n"
        "\taddress: 0\n\tstatus: active\n\tinet 127.0.0.1\n\tinet6 ::1"
    )
