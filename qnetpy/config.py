"""The configuration of a node: one TOML file, one frozen tree, every field with its explanation.

Without a file every default holds, and `qnet up` works on a machine that has an identity: the packet driver on each interface that has a
carrier, Qnet with zeroconf, /net mounted, files readable by every node of the cluster, programs started by none. Nothing here is read after
start, except where a field says so. `qnet config --example` prints the file, `docs/reference/configuration.md` is made from it.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import attrs

from qnetpy import settings
from qnetpy.mountsource import parse_source
from qnetpy.qos import QosError, parse_choice
from qnetpy.settings import SettingsError, setting
from resmgr.fuse.options import OptionError, parse_options
from resmgr.procmgr.rules import CommandPattern, directory_pattern, variable_pattern
from stack.wire.endpoint import DATAGRAM_MAX, MTU_MIN, PORT_DEFAULT, PORT_MAX, split_host
from stack.wire.ethernet import ETHERTYPE_EXPERIMENTAL, mac_bytes

ETHERTYPE_DEFAULT = ETHERTYPE_EXPERIMENTAL
"""IEEE 802 local experimental ethertype 1. QNX uses 0x8204, which is assigned to it and means another format."""
CONFIG_PATH = "/etc/qnet/qnet.toml"


@attrs.frozen
class Node:
    """This node and where it keeps its things."""

    name: str = setting("The node's name. Empty: the name in its certificate, which it has to match anyway.", "")
    run_dir: str = setting("Sockets, process id and log of the running daemon. Made at start, mode 0755.", "/run/qnet")
    key_dir: str = setting("The node's private key, its certificate and the cluster's root certificates.", "/etc/qnet")
    key_command: str = setting(
        "A command that prints the node's private key (PKCS #8, PEM), in place of the file node.key. It runs at start, without a shell.", ""
    )
    log: Literal["error", "warning", "info", "debug"] = setting("What is written to the log, from fewest to most lines.", "info")


@attrs.frozen
class Driver:
    """One driver to load, as `io-pkt -d DRIVER OPTIONS` does."""

    driver: str = setting("Name of a driver of stack.drivers, an installed entry point, or a dotted path.", "packet")
    options: str = setting("The driver's options, as on the command line: key=value,flag.", "")
    fault: str = setting(
        "Faults put around the driver, for trials: drop=5%,dup=2%,reorder=5%,corrupt=0.5%,delay=20ms,rate=10M,apply=tx. Shown by status.",
        "",
    )


@attrs.frozen
class Protocol:
    """One more protocol module to load, as `io-pkt -p PROTOCOL OPTIONS` does. Qnet itself has its own table."""

    protocol: str = setting("Name of a module.", "")
    options: str = setting("The module's options: key=value,flag.", "")


@attrs.frozen
class Stack:
    """io-pkt: drivers and protocol modules."""

    drivers: tuple[Driver, ...] = setting(
        "Drivers to load, in place of those that [qnet] bearers asks for. Empty: those.",
        (),
    )
    protocols: tuple[Protocol, ...] = setting("Protocol modules to load besides Qnet.", ())
    cryptodev: bool = setting("Serve /dev/crypto, the ciphers of this node for programs.", True)
    poll_us: int = setting(
        "Microseconds for which the daemon looks for more work before it sleeps. It costs CPU only while there is traffic; 0 turns it off.",
        200,
    )


@attrs.frozen
class Timers:
    """How soon a silent node is noticed. Seconds."""

    heartbeat: float = setting("A silent link is asked after this time whether the other side is there.", 0.3)
    suspect: float = setting("A node that was silent for this long is suspect: operations wait.", 1.0)
    down: float = setting("A node that was silent for this long is down: operations fail with EHOSTDOWN.", 3.0)
    rekey: float = setting("A session's keys are exchanged at least this often.", 120.0)


@attrs.frozen
class StaticPeer:
    """A node that need not be discovered: by Ethernet address, or by UDP. Through one of the latter the others are found (a seed)."""

    name: str = setting("Its node name.", "")
    mac: str = setting("Its Ethernet address.", "")
    interface: str = setting("The interface of ours through which the Ethernet address is reached.", "")
    address: str = setting(
        "In place of mac, where it is reached by UDP: host, host:port or [IPv6 address]:port. Names are looked up again every minute.", ""
    )


@attrs.frozen
class PathPolicy:
    """Which paths messages to one node take."""

    node: str = setting("Its node name.", "")
    paths: str = setting("As `paths` of [qnet].", "loadbalance")


@attrs.frozen
class Mount:
    """/net as a file system of this machine."""

    enabled: bool = setting("Mount it. Without, /net is there for programs that send messages, but not for others.", True)
    point: str = setting("Where it is mounted. The directory is made if it is missing.", "/net")
    options: str = setting(
        "Mount options, separated by commas, as -o of `qnet mount` (docs/reference/mount-options.md): ro,attr_valid=5.", ""
    )


@attrs.frozen
class FurtherMount:
    """One more mount, with options of its own. `qnet mount` makes them while the node runs."""

    point: str = setting("Where it is mounted. The directory is made if it is missing.", "")
    source: str = setting("What is mounted: NODE:/DIRECTORY. Empty: all of /net.", "")
    options: str = setting("As `options` of [qnet.mount].", "")


@attrs.frozen
class Udp:
    """The UDP bearer, for nodes that no Ethernet joins."""

    bind: tuple[str, ...] = setting(
        "Addresses of this machine to use, IPv6 link-local ones with %interface. Empty: all, of IPv4 and IPv6, also those that come later.",
        (),
    )
    port: int = setting(
        "UDP port; also the one called where a peer's address has none. 0: any, for a node that only calls others.", PORT_DEFAULT
    )
    mtu: int = setting(
        "Longest datagram, bytes without headers of IP and UDP. 0: what the interfaces take; the path's is found by probes.", 0
    )


@attrs.frozen
class Qnet:
    """The protocol between nodes."""

    bearers: tuple[Literal["ethernet", "udp"], ...] = setting(
        "What carries our frames. Nodes that both reach use both. With udp, up nodes tell each other where the others are.", ("ethernet",)
    )

    ethertype: int = setting("Ethertype of our frames; the same on all nodes.", ETHERTYPE_DEFAULT)
    interfaces: tuple[str, ...] = setting("Ethernet interfaces to use. Empty: every one that is up at start. UDP is not bound to them.", ())
    discovery: Literal["auto", "zeroconf", "ethernet", "static"] = setting(
        "How nodes are found: zeroconf (mDNS, multicast DNS, on each interface that has an IP address), ethernet (frames of our own to all "
        "on each Ethernet interface, no IP address needed), auto (both), or static: only the peers below, and nothing is sent to find "
        "others or to be found.",
        "auto",
    )
    peers: tuple[StaticPeer, ...] = setting("Static peers; used besides whatever discovery says.", ())
    suites: tuple[Literal["aes-128-gcm", "chacha20-poly1305", "aes-256-gcm"], ...] = setting(
        "Ciphers this node accepts, best first. Both sides' lists are part of the handshake, so nobody can make them choose a worse one. "
        "Empty: aes-128-gcm, chacha20-poly1305, aes-256-gcm; without AES in the processor, chacha20-poly1305 first. "
        "Change them at run time with qnet suites.",
        (),
    )
    paths: str = setting(
        "Which paths messages take where a node is reached over several interfaces: loadbalance (who delivers soonest; the bandwidths add "
        "up), preferred:IF (that interface of ours while it works), exclusive:IF (only that one), redundant (all; the first copy counts). "
        "A program chooses for itself by name: /net/NODE~preferred:IF.",
        "loadbalance",
    )
    policies: tuple[PathPolicy, ...] = setting("The same for single nodes.", ())
    udp: Udp = setting("", Udp())
    timers: Timers = setting("", Timers())
    mount: Mount = setting("", Mount())
    mounts: tuple[FurtherMount, ...] = setting("More mounts.", ())


@attrs.frozen
class Enrol:
    """How machines join by a code (`qnet invite`), on nodes that may issue."""

    port: int = setting(
        "TCP port on which they do. It is open only while an invitation is, and has to be known only where mDNS does not reach; 0: any.",
        18815,
    )


@attrs.frozen
class Export:
    """A part of this node's pathname space that others may use. Exports add up; the longest path that matches decides.

    Who may read /net here may also go on from here to other nodes (/net/B/net/C), as his own node and user.
    """

    path: str = setting("The directory.", "/")
    verbs: tuple[Literal["read", "write"], ...] = setting(
        "What may be done there. Empty: hidden, though a wider export would show it.", ("read",)
    )
    nodes: tuple[str, ...] = setting("Nodes that may. Empty together with roles: every node of the cluster.", ())
    roles: tuple[str, ...] = setting("Roles that may; a node's roles stand in its certificate.", ())
    devices: tuple[str, ...] = setting(
        "Special files there that may be opened: memory (null, zero, full, random, urandom), fifos, terminals, all, and paths of device "
        "files of this machine, with * and ?.",
        ("memory", "fifos"),
    )
    users: tuple[str, ...] = setting(
        "Mapped users (names or numbers on this machine, @GROUP for a group's members) whom it is for. Empty: all.", ()
    )
    setuid: bool = setting(
        "Whether files there may be given set-user-ID and set-group-ID bits, which count for users of this machine.", False
    )


@attrs.frozen
class UserRule:
    """Whom users of other nodes become here. Rules are tried in order; the first that names the node or one of its roles decides."""

    mapping: str = setting(
        "identity: the user with the same number; names: the user with the same name, as the other node tells them; table: as "
        "listed. Who is neither is nobody. squash: everybody is nobody; none: refused; all:USER: everybody is USER. Root becomes "
        "nobody unless `root` says otherwise. Owners of files are told, and given by chown, by the same mapping "
        "(docs/howto/share-files.md).",
        "identity",
    )
    nodes: tuple[str, ...] = setting("Nodes for which the rule is. Empty together with roles: every node of the cluster.", ())
    roles: tuple[str, ...] = setting("Roles for which the rule is.", ())
    users: dict[str, str] = setting("For table: number there = user (name or number) here.", attrs.Factory(dict))
    groups: dict[str, str] = setting("For table: number there = group here, if the user here is a member of it.", attrs.Factory(dict))
    root: str = setting("Whom root of another node becomes under identity, names and table. Empty: nobody.", "")
    nobody: str = setting("The user here who stands for nobody. Empty: number 65534.", "")


@attrs.frozen
class SpawnRule:
    """Another rule about who may start programs here, besides the one in [access.spawn] itself. One that allows a start is enough."""

    nodes: tuple[str, ...] = setting("Nodes that may. `*` is every node of the cluster.", ())
    roles: tuple[str, ...] = setting("Roles that may.", ())
    users: tuple[str, ...] = setting(
        "Mapped users (names or numbers on this machine) under which programs may run. Empty: all but root.", ()
    )
    commands: tuple[str, ...] = setting(
        "Programs that may be started: patterns of absolute paths, with patterns of arguments if those are to fit. Empty: every program.",
        (),
    )
    nice: int = setting("The lowest nice value that may be asked for.", 0)
    environment: tuple[str, ...] = setting(
        "With `commands`: names of variables (patterns) that may be sent besides LANG, LANGUAGE, LC_*, TERM and COLORTERM.", ()
    )
    directories: tuple[str, ...] = setting("With `commands`: directories (patterns) in which they may be started besides the home.", ())
    signal: bool = setting(
        "With `commands`: whether everything of these users may be seen and signalled, not only what was started from that node. "
        "Without `commands` it may.",
        False,
    )


@attrs.frozen
class Spawn(SpawnRule):
    """Who may start programs here, see and signal processes. Nobody, unless said."""

    rules: tuple[SpawnRule, ...] = setting("More rules, for other nodes, users or programs.", ())
    audit: str = setting("The file of the audit log. Empty: `audit` in the run directory.", "")


@attrs.frozen
class Send:
    """Who may send messages to named servers here. Each server may still refuse."""

    nodes: tuple[str, ...] = setting("Nodes that may. `*` is every node of the cluster.", ("*",))
    roles: tuple[str, ...] = setting("Roles that may.", ())


@attrs.frozen
class Administer:
    """Who may change this node's stack: load and unload modules. Nobody, unless said. Root of another node is nobody here: see `users`."""

    nodes: tuple[str, ...] = setting("Nodes that may. `*` is every node of the cluster.", ())
    roles: tuple[str, ...] = setting("Roles that may.", ())


@attrs.frozen
class Manager:
    """Who besides root may attach resource managers, programs that serve a part of this machine's names. Each user may below
    /dev/user/NAME."""

    path: str = setting("Where they may attach, and below it.", "")
    users: tuple[str, ...] = setting("Users of this machine, names or numbers.", ())


@attrs.frozen
class Announce:
    """Whose global names (/dev/name/global) count. Who attaches one attracts clients of every node that believes it."""

    nodes: tuple[str, ...] = setting("Nodes whose names this node shows. `*` is every node of the cluster.", ("*",))
    roles: tuple[str, ...] = setting("Roles whose names it shows.", ())
    users: tuple[str, ...] = setting(
        "Users of this machine (names or numbers) that may attach global names, besides root and the daemon's user. `*` is everybody.", ()
    )


@attrs.frozen
class ReservedName:
    """Names of servers (qnet name, name_attach), local and global, that only these users' programs may attach, and root's.

    Without one, a local name is whose it was first: after the end of a server any user may take its place, and gets its clients.
    """

    names: tuple[str, ...] = setting("Names, with * and ?.", ())
    users: tuple[str, ...] = setting("Users of this machine (names or numbers). None: root alone.", ())


@attrs.frozen
class Access:
    """What other nodes may do here. A node is known by its certificate; a user by what that node says, mapped."""

    users: tuple[UserRule, ...] = setting("Rules that say whom users of other nodes become here. None: nobody gets in.", (UserRule(),))
    exports: tuple[Export, ...] = setting(
        "Exported directories. The default lets every node of the cluster read what the mapped user may read.", (Export(),)
    )
    managers: tuple[Manager, ...] = setting("Users who may attach resource managers. None: root, and each below /dev/user/NAME.", ())
    spawn: Spawn = setting("", Spawn())
    send: Send = setting("", Send())
    administer: Administer = setting("", Administer())
    announce: Announce = setting("", Announce())
    tell_accounts: bool = setting(
        "Whether other nodes are told the names and numbers of this machine's accounts and groups, which the mapping names needs there.",
        True,
    )
    names: tuple[ReservedName, ...] = setting("Reserved names. None: any user may attach any free local name.", ())


@attrs.frozen
class Config:
    """Configuration of one qnetpy node. Every line that is commented out shows the default."""

    node: Node = setting("", Node())
    stack: Stack = setting("", Stack())
    qnet: Qnet = setting("", Qnet())
    access: Access = setting("", Access())
    enrol: Enrol = setting("", Enrol())


def check(config: Config, source: str = "configuration") -> Config:
    """What types cannot say. Returns *config*; SettingsError names the place."""

    def wrong(place: str, why: str) -> SettingsError:
        return SettingsError(f"{source}: {place}: {why}")

    if not 0x0600 <= config.qnet.ethertype <= 0xFFFF:
        raise wrong("qnet.ethertype", f"{config.qnet.ethertype:#x} is not an ethertype: 0x0600 to 0xffff")
    if config.qnet.ethertype & 0xFF in (0x00, 0xA8):
        raise wrong("qnet.ethertype", f"{config.qnet.ethertype:#06x} could be taken for a VLAN tag; choose another")
    if not 0 <= config.enrol.port <= 0xFFFF:
        raise wrong("enrol.port", f"{config.enrol.port} is not a port: 0 to 65535")
    timers = config.qnet.timers
    if not 0 < timers.heartbeat < timers.suspect < timers.down:
        raise wrong("qnet.timers", "heartbeat < suspect < down is needed, all above 0")
    if timers.rekey <= 0:
        raise wrong("qnet.timers.rekey", "must be above 0")
    if len(set(config.qnet.suites)) != len(config.qnet.suites):
        raise wrong("qnet.suites", "a cipher is named twice")
    chosen = [("qnet.paths", config.qnet.paths)]
    for index, entry in enumerate(config.qnet.policies):
        if not entry.node or [other.node for other in config.qnet.policies].count(entry.node) > 1:
            raise wrong(f"qnet.policies[{index}].node", f"{entry.node!r}: a node's name is needed, each once")
        chosen.append((f"qnet.policies[{index}].paths", entry.paths))
    for place, text in chosen:
        try:
            choice = parse_choice(text)
        except QosError as error:
            raise wrong(place, str(error)) from None
        # What a UDP driver's interface is called is known only when it is loaded.
        if choice.interface and config.qnet.interfaces and choice.interface not in config.qnet.interfaces and not _uses_udp(config):
            raise wrong(place, f"{choice.interface!r} is none of qnet.interfaces: {', '.join(config.qnet.interfaces)}")
    if config.qnet.discovery == "static" and not config.qnet.peers:
        raise wrong("qnet.peers", "discovery is static, so at least one peer is needed")
    _check_bearers(config, wrong)
    for place, path in (
        ("node.run_dir", config.node.run_dir),
        ("node.key_dir", config.node.key_dir),
        ("qnet.mount.point", config.qnet.mount.point),
    ):
        if not os.path.isabs(path):
            raise wrong(place, f"{path!r} is not an absolute path")
    for index, export in enumerate(config.access.exports):
        if not os.path.isabs(export.path) or {".", ".."} & set(export.path.split("/")):
            raise wrong(f"access.exports[{index}].path", f"{export.path!r} is not an absolute path without dot components")
    for index, manager in enumerate(config.access.managers):
        if not os.path.isabs(manager.path) or {".", ".."} & set(manager.path.split("/")):
            raise wrong(f"access.managers[{index}].path", f"{manager.path!r} is not an absolute path without dot components")
    for index, rule in enumerate(config.access.users):
        kinds = ("identity", "names", "table", "squash", "none")
        if rule.mapping not in kinds and not (rule.mapping.startswith("all:") and len(rule.mapping) > 4):
            raise wrong(f"access.users[{index}].mapping", f"one of {', '.join(kinds)}, all:USER expected, not {rule.mapping!r}")
        for name in (*rule.users, *rule.groups):
            if not name.isdecimal():
                raise wrong(f"access.users[{index}]", f"{name!r} is not a number: what the other node says is a number")
    _check_spawn(config.access.spawn, wrong)
    _check_mounts(config, wrong)
    return config


def _check_mounts(config: Config, wrong: Callable[[str, str], SettingsError]) -> None:
    settings_of = [("qnet.mount", config.qnet.mount.options)]
    points = [config.qnet.mount.point] if config.qnet.mount.enabled else []
    for index, more in enumerate(config.qnet.mounts):
        place = f"qnet.mounts[{index}]"
        if not os.path.isabs(more.point) or os.path.normpath(more.point) in points:
            raise wrong(f"{place}.point", f"{more.point!r}: an absolute path is needed, each once")
        points.append(os.path.normpath(more.point))
        try:
            parse_source(more.source)
        except ValueError as error:
            raise wrong(f"{place}.source", str(error)) from None
        settings_of.append((place, more.options))
    for place, text in settings_of:
        try:
            parse_options(text)
        except OptionError as error:
            raise wrong(f"{place}.options", str(error)) from None


def _check_spawn(spawn: Spawn, wrong: Callable[[str, str], SettingsError]) -> None:
    places: list[tuple[str, SpawnRule]] = [("access.spawn", spawn)]
    places += [(f"access.spawn.rules[{index}]", rule) for index, rule in enumerate(spawn.rules)]
    for place, rule in places:
        lists: tuple[tuple[str, tuple[str, ...], Callable[[str], object]], ...] = (
            ("commands", rule.commands, CommandPattern.parse),
            ("environment", rule.environment, variable_pattern),
            ("directories", rule.directories, directory_pattern),
        )
        for key, patterns, parse in lists:
            for index, pattern in enumerate(patterns):
                try:
                    parse(pattern)
                except ValueError as error:
                    raise wrong(f"{place}.{key}[{index}]", f"{pattern!r} is {error}") from None
        if not rule.commands and (rule.environment or rule.directories or rule.signal):
            raise wrong(place, "environment, directories and signal widen a list of commands, and there is none: everything is allowed")
        if not -20 <= rule.nice <= 19:
            raise wrong(f"{place}.nice", "-20 to 19")
    for index, rule in enumerate(spawn.rules):
        if not rule.nodes and not rule.roles:
            raise wrong(f"access.spawn.rules[{index}]", "nodes or roles are needed; nodes = ['*'] is every node")
    if spawn.audit and not os.path.isabs(spawn.audit):
        raise wrong("access.spawn.audit", f"{spawn.audit!r} is not an absolute path")


def _uses_udp(config: Config) -> bool:
    return "udp" in config.qnet.bearers or any(one.driver == "udp" for one in config.stack.drivers)


def _check_bearers(config: Config, wrong: Callable[[str, str], SettingsError]) -> None:
    qnet = config.qnet
    if not qnet.bearers:
        raise wrong("qnet.bearers", "at least one bearer is needed: ethernet or udp")
    udp = _uses_udp(config)
    for index, peer in enumerate(qnet.peers):
        place = f"qnet.peers[{index}]"
        if peer.address:
            if peer.mac or peer.interface:
                raise wrong(f"{place}.address", "a peer is given by address, or by mac and interface, not by both")
            if not udp:
                raise wrong(f"{place}.address", 'needs the UDP bearer: bearers = ["ethernet", "udp"]')
            try:
                split_host(peer.address, qnet.udp.port or PORT_DEFAULT)
            except ValueError as error:
                raise wrong(f"{place}.address", str(error)) from None
            continue
        try:
            mac_bytes(peer.mac)
        except ValueError:
            raise wrong(f"{place}.mac", f"{peer.mac!r} is not an Ethernet address such as 02:00:00:00:00:01") from None
    if not 0 <= qnet.udp.port <= PORT_MAX:
        raise wrong("qnet.udp.port", f"0 to {PORT_MAX}")
    if qnet.udp.mtu and not MTU_MIN <= qnet.udp.mtu <= DATAGRAM_MAX:
        raise wrong("qnet.udp.mtu", f"0, or {MTU_MIN} to {DATAGRAM_MAX} bytes")
    for index, text in enumerate(qnet.udp.bind):
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise wrong(f"qnet.udp.bind[{index}]", f"{text!r} is not an IP address") from None


def drivers(config: Config, interfaces: Sequence[str]) -> tuple[Driver, ...]:
    """What [qnet] bearers asks for, the packet driver being for *interfaces*."""
    packet = tuple(Driver("packet", f"ifname={name}") for name in interfaces)
    if "udp" not in config.qnet.bearers:
        return packet
    udp = config.qnet.udp
    options = [f"port={udp.port}", f"ethertype={config.qnet.ethertype:#06x}", *(f"bind={address}" for address in udp.bind)]
    if udp.mtu:
        options.append(f"mtu={udp.mtu}")
    return (*packet, Driver("udp", ",".join(options)))


def load(path: str | Path | None = None) -> Config:
    """The checked configuration of *path*; of CONFIG_PATH if that exists; else the defaults. SettingsError or OSError otherwise."""
    if path is None:
        if not os.path.exists(CONFIG_PATH):
            return Config()
        path = CONFIG_PATH
    return check(settings.load(Config, path), str(path))


def reference_page() -> str:
    """docs/reference/configuration.md; a test compares."""
    return "# Configuration\n\nMade from `qnetpy/config.py`; `qnet config --example` prints the same as a file.\n\n" + settings.reference(
        Config
    )
