"""The node's configuration: defaults that work, rules that types cannot say, and an example that matches the code."""

from __future__ import annotations

import tomllib
from pathlib import Path

import attrs
import pytest

from qnetpy import config, settings
from qnetpy.config import Config
from qnetpy.settings import SettingsError
from stack.core.options import parse_options
from stack.drivers.udp_socket.options import UdpOptions


def test_the_defaults_are_consistent() -> None:
    assert config.check(Config()) == Config()


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    path = tmp_path / "qnet.toml"
    path.write_text('[node]\nname = "n1"\n[qnet]\ninterfaces = ["eth0"]\n[[stack.drivers]]\nfault = "drop=5%"\n')

    loaded = config.load(path)

    assert loaded.node.name == "n1"
    assert loaded.stack.drivers[0] == config.Driver(fault="drop=5%")
    assert loaded.qnet.timers == config.Timers()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[qnet]\nethertype = 5", "qnet.ethertype: 0x5 is not an ethertype: 0x0600 to 0xffff"),
        ("[qnet]\nethertype = 0x81a8", "qnet.ethertype: 0x81a8 could be taken for a VLAN tag; choose another"),
        ("[qnet.timers]\nsuspect = 5", "qnet.timers: heartbeat < suspect < down is needed, all above 0"),
        ('[qnet]\ndiscovery = "static"', "qnet.peers: discovery is static, so at least one peer is needed"),
        ('[qnet]\npeers = [{name = "b", mac = "1:2"}]', "qnet.peers[0].mac: '1:2' is not an Ethernet address such as 02:00:00:00:00:01"),
        ('[qnet]\npeers = [{address = "gate"}]', 'qnet.peers[0].address: needs the UDP bearer: bearers = ["ethernet", "udp"]'),
        (
            '[qnet]\nbearers = ["udp"]\npeers = [{address = "gate", mac = "02:00:00:00:00:01"}]',
            "qnet.peers[0].address: a peer is given by address, or by mac and interface, not by both",
        ),
        ('[qnet]\nbearers = ["udp"]\npeers = [{address = "gate:0"}]', "qnet.peers[0].address: 'gate:0': a port is 1 to 65535"),
        ("[qnet]\nbearers = []", "qnet.bearers: at least one bearer is needed: ethernet or udp"),
        ('[qnet]\nbearers = ["ip"]', "qnet.bearers[0]: one of ethernet, udp expected, not 'ip'"),
        ("[qnet.udp]\nport = 70000", "qnet.udp.port: 0 to 65535"),
        ("[qnet.udp]\nmtu = 100", "qnet.udp.mtu: 0, or 1200 to 65507 bytes"),
        ('[qnet.udp]\nbind = ["eth0"]', "qnet.udp.bind[0]: 'eth0' is not an IP address"),
        ('[node]\nrun_dir = "run"', "node.run_dir: 'run' is not an absolute path"),
        ('[qnet]\nsuites = ["aes-128-gcm", "aes-128-gcm"]', "qnet.suites: a cipher is named twice"),
        ('[qnet]\nsuites = ["null"]', "qnet.suites[0]: one of aes-128-gcm, chacha20-poly1305, aes-256-gcm expected, not 'null'"),
        ('[[access.exports]]\npath = "home"', "access.exports[0].path: 'home' is not an absolute path without dot components"),
        (
            '[[access.users]]\nmapping = "root"',
            "access.users[0].mapping: one of identity, names, table, squash, none, all:USER expected, not 'root'",
        ),
        ("[[access.users]]\nusers = {alice = 'bob'}", "access.users[0]: 'alice' is not a number: what the other node says is a number"),
        ("[access.spawn]\ncommands = ['sort']", "access.spawn.commands[0]: 'sort' is not an absolute path"),
        ('[qnet.mount]\noptions = "max_write=1"', "qnet.mount.options: max_write: 4K to 1M expected, not 1"),
        ('[qnet.mount]\noptions = "rw1"', "qnet.mount.options: there is no mount option 'rw1'; did you mean 'rw'?"),
    ],
)
def test_wrong_settings_are_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "qnet.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        config.load(path)
    assert str(caught.value) == f"{path}: {message}"


def test_the_example_is_the_default_configuration() -> None:
    text = settings.example(Config)
    live = "\n".join(line[1:] if line[:1] == "#" and line[1:2] not in (" ", "") else line for line in text.splitlines())

    assert settings.structure(Config, tomllib.loads(text)) == Config()
    assert settings.structure(Config, tomllib.loads(live)) == Config()


def test_every_field_is_explained() -> None:
    def walk(kind: type[attrs.AttrsInstance]) -> None:
        assert kind.__doc__
        for field in attrs.fields(kind):
            own = type(field.default)
            if attrs.has(own) and own.__name__ != "Factory":
                walk(own)
            else:
                assert field.metadata["doc"].endswith("."), f"{kind.__name__}.{field.name}"

    walk(Config)


def test_the_reference_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"

    assert page.read_text() == config.reference_page()


@pytest.mark.parametrize("bearer", ['[qnet]\nbearers = ["ethernet", "udp"]', '[stack]\ndrivers = [{driver = "udp"}]\n[qnet]'])
def test_a_choice_of_paths_may_name_the_udp_interface_beside_chosen_ethernets(tmp_path: Path, bearer: str) -> None:
    path = tmp_path / "qnet.toml"
    text = 'interfaces = ["eth0"]\npaths = "preferred:udp0"\npolicies = [{node = "b", paths = "exclusive:udp0"}]\n'
    path.write_text(f"{bearer}\n{text}")
    assert config.load(path).qnet.paths == "preferred:udp0"
    path.write_text(f"[qnet]\n{text}")
    with pytest.raises(SettingsError, match=r"qnet\.paths: 'udp0' is none of qnet\.interfaces: eth0"):
        config.load(path)


def test_the_bearers_are_drivers(tmp_path: Path) -> None:
    path = tmp_path / "qnet.toml"
    path.write_text(
        """
        [qnet]
        bearers = ["ethernet", "udp"]
        ethertype = 0x88b6
        peers = [{address = "gate.example.org"}, {address = "[2001:db8::1]:7"}, {mac = "02:00:00:00:00:01"}]
        udp = {bind = ["10.0.0.1", "fe80::1%eth0"], port = 7, mtu = 1400}
        """
    )
    made = config.load(path)
    packet, udp = config.drivers(made, ["eth0"])
    assert (packet.driver, packet.options) == ("packet", "ifname=eth0")
    assert parse_options(UdpOptions, udp.options, "udp") == UdpOptions(("10.0.0.1", "fe80::1%eth0"), port=7, ethertype=0x88B6, mtu=1400)
    assert config.drivers(Config(), ["eth0"]) == (packet,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('point = "mnt"', "qnet.mounts[0].point: 'mnt': an absolute path is needed, each once"),
        ('point = "/net/"', "qnet.mounts[0].point: '/net/': an absolute path is needed, each once"),
        ('point = "/mnt"\nsource = "b"', "qnet.mounts[0].source: 'b': NODE:/DIRECTORY expected, or nothing for all of /net"),
        ('point = "/mnt"\noptions = "hardly"', "qnet.mounts[0].options: there is no mount option 'hardly'; did you mean 'hard'?"),
    ],
)
def test_further_mounts_are_checked(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "qnet.toml"
    path.write_text(f"[[qnet.mounts]]\n{text}\n")
    with pytest.raises(SettingsError) as caught:
        config.load(path)
    assert str(caught.value) == f"{path}: {message}"
