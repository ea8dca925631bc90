"""The requests of a bridge, by their names in brconfig(8), and the facts that it tells."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import attrs

from stack.core.specific import Named, Rows
from stack.l2 import arguments as given
from stack.l2.absent import Absent
from stack.l2.arguments import refused
from stack.l2.engine import Engine, PortStatistics
from stack.l2.membership import Membership
from stack.l2.stations import MAX_LIMIT, STATIC_MAX, Station
from stack.l2.storm import StormControl
from stack.l2.stp.settings import PortSettings, Protocol, TreeSettings
from stack.wire.bpdu import bridge_text
from stack.wire.ethernet import mac_text

if TYPE_CHECKING:
    from stack.l2.bridge_driver import BridgeDriver, Member

Arguments = Mapping[str, object]
S = TypeVar("S", PortSettings, TreeSettings)
Setter = Callable[["BridgeDriver", Arguments], None]


def _member(driver: BridgeDriver, arguments: Arguments) -> Member:
    return driver.member(given.text(arguments, "interface"))


def _add(driver: BridgeDriver, arguments: Arguments) -> None:
    driver.add(given.text(arguments, "interface"))


def _delete(driver: BridgeDriver, arguments: Arguments) -> None:
    driver.delete(given.text(arguments, "interface"))


def _add_span(driver: BridgeDriver, arguments: Arguments) -> None:
    driver.add(given.text(arguments, "interface"), span=True)


def _delete_span(driver: BridgeDriver, arguments: Arguments) -> None:
    name = given.text(arguments, "interface")
    if not driver.membership(name).spans:
        raise refused(f"{name} is a member, not a span port")
    driver.delete(name)


def _flush(driver: BridgeDriver, arguments: Arguments) -> None:
    driver.forget(None)


def _flush_all(driver: BridgeDriver, arguments: Arguments) -> None:
    driver.forget(None, statics=True)
    for absent in driver.absent.values():
        absent.kept = attrs.evolve(absent.kept, statics=())


def _static(driver: BridgeDriver, arguments: Arguments) -> None:
    member, mac = _member(driver, arguments), given.address(arguments, "address")
    if driver.bridge.is_own(mac):
        raise refused(f"{mac_text(mac)} is an address of this bridge itself")
    stations = driver.bridge.stations
    before = stations.known.get(mac)
    held = [address for absent in driver.absent.values() for address in absent.kept.statics]
    full = stations.statics + len(held) >= STATIC_MAX and mac not in held and (before is None or not before.static)
    if full or not stations.add_static(mac, member.port.number, 0.0):
        raise refused(f"{driver.name} has as many static addresses as it can have", errno.ENOSPC)
    _forget_absent(driver, mac)
    driver.engine.learned(mac, member.interface)


def _forget_absent(driver: BridgeDriver, mac: bytes) -> bool:
    """*mac* is no static address of an absent member any more. Whether it was."""
    found = False
    for absent in driver.absent.values():
        if mac in absent.kept.statics:
            left = tuple(one for one in absent.kept.statics if one != mac)
            absent.kept = attrs.evolve(absent.kept, statics=left)
            found = True
    return found


def _delete_address(driver: BridgeDriver, arguments: Arguments) -> None:
    mac = given.address(arguments, "address")
    absent = _forget_absent(driver, mac)
    if not driver.bridge.stations.remove(mac) and not absent:
        raise refused(f"{driver.name} does not know {mac_text(mac)}", errno.ENOENT)
    driver.engine.forget(mac)


def _max_addresses(driver: BridgeDriver, arguments: Arguments) -> None:
    driver.bridge.stations.maximum = given.number(arguments, "value", 1, MAX_LIMIT)
    driver.trim()


def _timeout(driver: BridgeDriver, arguments: Arguments) -> None:
    driver.bridge.stations.timeout = float(given.number(arguments, "value", 0, 10_000_000))


def _storm(driver: BridgeDriver, arguments: Arguments) -> None:
    _member(driver, arguments).port.storm = StormControl(given.number(arguments, "value", 0, 10_000_000))


def _most(driver: BridgeDriver, arguments: Arguments) -> None:
    member = _member(driver, arguments)
    member.port.most = given.number(arguments, "value", 0, MAX_LIMIT)
    driver.trim(member)


def _learn(driver: BridgeDriver, arguments: Arguments) -> None:
    member = _member(driver, arguments)
    member.port.learn = given.switch(arguments, "on")
    if not member.port.learn:
        driver.forget(member.port.number)


def _discover(driver: BridgeDriver, arguments: Arguments) -> None:
    _member(driver, arguments).port.discover = given.switch(arguments, "on")


def _ipf(driver: BridgeDriver, arguments: Arguments) -> None:
    driver.set_ipf(given.switch(arguments, "on"))


def _stp(driver: BridgeDriver, arguments: Arguments) -> None:
    driver.join_tree(_member(driver, arguments), given.switch(arguments, "on"))


def _changed(settings: S, field: str, value: object) -> S:
    """*settings* with another value; ModuleError when they refuse it."""
    evolve: Callable[..., S] = attrs.evolve
    try:
        return evolve(settings, **{field: value})
    except ValueError as error:
        raise refused(str(error).splitlines()[0]) from None


def _port_switch(field: str) -> Setter:
    def setter(driver: BridgeDriver, arguments: Arguments) -> None:
        member = _member(driver, arguments)
        driver.configure_tree(member, _changed(member.settings, field, given.switch(arguments, "on")))

    return setter


def _port_number(field: str, low: int, high: int) -> Setter:
    def setter(driver: BridgeDriver, arguments: Arguments) -> None:
        member = _member(driver, arguments)
        value = given.number(arguments, "value", low, high)
        driver.configure_tree(member, _changed(member.settings, field, value))

    return setter


def _tree_number(field: str, low: int, high: int) -> Setter:
    def setter(driver: BridgeDriver, arguments: Arguments) -> None:
        _configure(driver, field, given.number(arguments, "value", low, high))

    return setter


def _protocol(driver: BridgeDriver, arguments: Arguments) -> None:
    name = given.text(arguments, "value")
    if name not in ("rstp", "stp"):
        raise refused(f"{name} is no spanning tree protocol: rstp, stp")
    _configure(driver, "protocol", Protocol(name))


def _configure(driver: BridgeDriver, field: str, value: object) -> None:
    driver.tree.configure(_changed(driver.tree.settings, field, value), driver.now())


SETTERS: Mapping[str, Setter] = {
    "add": _add,
    "delete": _delete,
    "addspan": _add_span,
    "delspan": _delete_span,
    "flush": _flush,
    "flushall": _flush_all,
    "static": _static,
    "deladdr": _delete_address,
    "maxaddr": _max_addresses,
    "timeout": _timeout,
    "storm": _storm,
    "ifmaxaddr": _most,
    "learn": _learn,
    "discover": _discover,
    "ipf": _ipf,
    "stp": _stp,
    "edge": _port_switch("edge"),
    "autoedge": _port_switch("auto_edge"),
    "ptp": _port_switch("point_to_point"),
    "guard": _port_switch("guard"),
    "rootguard": _port_switch("restricted_role"),
    "tcnguard": _port_switch("restricted_tcn"),
    "ifpriority": _port_number("priority", 0, 0xF0),
    "ifpathcost": _port_number("cost", 1, 200_000_000),
    "proto": _protocol,
    "priority": _tree_number("priority", 0, 0xF000),
    "hellotime": _tree_number("hello", 1, 10),
    "fwddelay": _tree_number("forward_delay", 2, 30),
    "maxage": _tree_number("max_age", 6, 40),
    "holdcnt": _tree_number("hold_count", 1, 10),
}


def facts(driver: BridgeDriver) -> Mapping[str, object]:
    """All that `qnet bridge` shows, as JSON can say it."""
    tree, stations, now = driver.tree, driver.bridge.stations, driver.now()
    names = {member.port.number: name for name, member in driver.members.items()}

    def station(item: tuple[bytes, Station]) -> Mapping[str, object]:
        mac, entry = item
        idle = 0.0 if entry.static else round(stations.silent(mac, entry, now), 1)
        return {"address": mac_text(mac), "interface": names.get(entry.port), "static": entry.static, "idle": idle}

    def member(name: str) -> Mapping[str, object] | None:
        if name in driver.members:
            return _member_facts(driver, driver.members[name])
        return _absent_facts(name, driver.absent[name]) if name in driver.absent else None

    changed = tree.topology_changed_at
    return {
        "bridge": driver.name,
        "mac": mac_text(driver.mac),
        "up": driver.up,
        "mtu": driver.mtu,
        "maxaddr": stations.maximum,
        "timeout": stations.timeout,
        "ipf": driver.ipf,
        "addresses": Rows(list(stations), station),
        "drops": dict(driver.drops) | dict(tree.drops),
        "members": Rows(driver.below, member, driver.below),
        "stp": {
            "protocol": tree.settings.protocol.value,
            "priority": tree.settings.priority,
            "hellotime": tree.settings.hello,
            "fwddelay": tree.settings.forward_delay,
            "maxage": tree.settings.max_age,
            "holdcnt": tree.settings.hold_count,
            "identifier": bridge_text(tree.identifier),
            "root": bridge_text(tree.root.root),
            "root_cost": tree.root.cost,
            "root_port": None if tree.root_port is None else names[tree.root_port],
            "topology_changes": tree.topology_changes,
            "flushes_put_off": driver.flushes_put_off,
            "topology_changed_seconds_ago": None if changed is None else round(now - changed, 1),
        },
        "engine": _engine_facts(driver.engine),
    }


def _engine_facts(engine: Engine) -> Mapping[str, object]:
    statistics = engine.statistics()
    return {
        "name": statistics.engine,
        "why": statistics.why,
        "frames": statistics.frames,
        "stations": statistics.stations,
        "stations_refused": statistics.stations_refused,
        "ports": Named(statistics.ports, lambda name: _port_facts(statistics.ports[name])),
    }


def _port_facts(port: PortStatistics) -> Mapping[str, object]:
    return {
        "off": list(port.off),
        "how": port.how,
        "in": port.in_frames,
        "in_bytes": port.in_bytes,
        "out": port.out_frames,
        "out_bytes": port.out_bytes,
        "up": dict(port.up),
        "dropped": dict(port.dropped),
    }


def _flags(learn: bool, discover: bool, tree: bool, spans: bool) -> list[str]:
    if spans:
        return ["span"]
    return [name for name, is_set in (("learn", learn), ("discover", discover), ("stp", tree)) if is_set]


def _absent_facts(name: str, absent: Absent[Membership]) -> Mapping[str, object]:
    """As of a member, without what only one with an interface has. `guarded`: BPDU guard has struck."""
    kept = absent.kept
    return {
        "interface": name,
        "present": False,
        "why": absent.why,
        "number": kept.number,
        "up": False,
        "flags": _flags(kept.learn, kept.discover, kept.tree, kept.spans),
        "ifmaxaddr": kept.most,
        "storm": kept.storm,
        "guarded": kept.guarded,
        "statics": list(map(mac_text, kept.statics)),
        "received": 0,
        "forwarded": 0,
        "drops": {},
    }


def _member_facts(driver: BridgeDriver, member: Member) -> Mapping[str, object]:
    port = member.port
    flags = _flags(port.learn, port.discover, port.tree, port.spans)
    told: dict[str, object] = {
        "interface": member.interface.name,
        "present": True,
        "number": port.number,
        "up": port.up,
        "flags": flags,
        "ifmaxaddr": port.most,
        "storm": port.storm.rate,
        "received": port.received,
        "forwarded": port.forwarded,
        "drops": dict(port.drops),
    }
    if port.tree:
        view = driver.tree.view(port.number)
        told["stp"] = {
            "role": view.role,
            "state": view.state,
            "protocol": view.protocol,
            "edge": view.edge,
            "priority": view.identifier >> 8 & 0xF0,
            "cost": view.cost,
            "designated_root": bridge_text(view.designated_root),
            "designated_bridge": bridge_text(view.designated_bridge),
            "designated_port": view.designated_port,
            "designated_cost": view.designated_cost,
            "guarded": view.guarded,
            "received": view.received,
            "sent": view.sent,
        }
    return told
