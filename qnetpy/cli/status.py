"""`qnet status`: what this node's daemon is doing."""

from __future__ import annotations

import argparse
import time

from qnetpy.cli.output import as_json, facts, table
from resmgr.compiled import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon
    from qnetpy.cli.nodes import listing, paths

    found = daemon.ask("status", args.config)
    if args.json:
        print(as_json(found))
        return 0
    interfaces, nodes, drops, roles, modules = (found[name] for name in ("interfaces", "nodes", "drops", "roles", "modules"))
    handshake, failures, reach, discovery = found["handshake"], found["failures"], found["reach"], found["discovery"]
    assert isinstance(reach, dict)
    assert isinstance(discovery, dict)
    assert isinstance(interfaces, list)
    assert isinstance(nodes, list)
    assert isinstance(drops, dict)
    assert isinstance(handshake, dict)
    assert isinstance(failures, dict)
    assert isinstance(roles, list)
    assert isinstance(modules, list)
    flood = _flood(found["flood"])
    left, number, members = found["certificate_seconds_left"], found["compiled_modules"], found["membership"]
    assert isinstance(members, dict)
    assert isinstance(left, int)
    assert isinstance(number, int)
    print(
        facts(
            {
                "node": f"{found['node']} of cluster {found['cluster']}" + (f", roles {', '.join(roles)}" if roles else ""),
                "certificate": f"{left / 86400:.1f} days left" if left > 0 else "EXPIRED",
                **({"issues": f"until {time.strftime('%Y-%m-%d', time.gmtime(members['issues_until']))}"} if members["issues"] else {}),
                **({"WARNING": members["warning"]} if members["warning"] else {}),
                **({"roots": "two, one replaces the other (qnet root status)"} if members["roots"] != 1 else {}),
                "daemon": f"process {found['pid']}, up for {found['seconds']} s, modules {', '.join(modules)}",
                "code": describe(number, str(found["compiled_problem"])),
                "mount": found["mount"] or "none",
                **({"waiting": f"{waiting} (qnet top)"} if (waiting := _waiting(found["waiting"])) else {}),
                **({"recalled": recalled} if (recalled := _recalled(found["recalled"])) else {}),
                "handshakes": _counted(handshake) or "none",
                "dropped": _counted(drops) or "nothing",
                **({"discovery": _counted(discovery)} if any(discovery.values()) else {}),
                **({"flood": flood} if flood else {}),
                **({"endpoints": _counted(reach)} if any(reach.values()) else {}),
                **({"refused": refused} if (refused := _refused(found["refused"])) else {}),
                **({"faults": f"{_counted(failures)}; the log says more"} if failures else {}),
            }
        )
    )
    rows = []
    for one in interfaces:
        lost = _counted(one["drops"]) or "nothing"
        how = ", ".join(f"{name} {value}" for name, value in one["info"].items())
        rows.append([one["name"], one["mac"], one["mtu"], "up" if one["up"] else "down", one["rx_frames"], one["tx_frames"], lost, how])
    print()
    print(table(rows, ("INTERFACE", "MAC", "MTU", "STATE", "RX", "TX", "DROPPED", "DRIVER")))
    engines = carried_by(found["engines"], interfaces)
    if engines:
        print()
        print(engines)
    print()
    print(listing(str(found["node"]), nodes))
    if any(node["link"] for node in nodes):
        print()
        print(paths(nodes))
    return 0


def carried_by(engines: object, interfaces: list[dict[str, object]]) -> str:
    """Which engine forwards for each bridge, how many frames it carried, and for each port, or why it carries nothing there."""
    from qnetpy.cli.iopkt import listed
    from qnetpy.cli.layer2 import how

    rows: list[list[object]] = []
    for engine in listed(engines):
        rows.append([engine.get("interface"), engine.get("name"), engine.get("frames"), "", engine.get("why") or ""])
        for one in interfaces:
            ports = [port for port in listed(one.get("carried")) if port.get("of") == engine.get("interface")]
            rows += [[f"  {one['name']}", "", port.get("in"), port.get("out"), how(port)] for port in ports]
    return table(rows, ("BRIDGE", "ENGINE", "CARRIED IN", "OUT", "HOW")) if rows else ""


def _waiting(told: object) -> str:
    """Requests of /net that programs wait for, by node."""
    assert isinstance(told, dict)
    return ", ".join(f"{one['requests']} for {name}, the oldest {one['oldest']:.1f} s" for name, one in told.items())


def _recalled(told: object) -> str:
    """Files that programs of this machine, or other nodes, want to change and nodes have a delegation of."""
    assert isinstance(told, list)
    if not told:
        return ""
    return f"{len(told)} files are waited for, the longest {told[0]['seconds']:.1f} s, for {told[0]['node'] or 'this node'}"


def _flood(told: object) -> str:
    assert isinstance(told, dict)
    if not told["times"]:
        return ""
    return f"{'now' if told['on'] else 'over'}, {told['times']} so far, about {told['shed']} frames screened away"


def _refused(count: object) -> str:
    return f"{count} requests for what is not exported; qnet exports --refused" if count else ""


def _counted(numbers: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(numbers.items()) if count)
