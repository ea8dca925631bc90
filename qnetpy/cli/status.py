"""`qnet status`: what this node's daemon is doing."""

from __future__ import annotations

import argparse

from qnetpy.cli.output import as_json, facts, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon
    from qnetpy.cli.nodes import listing

    found = daemon.ask("status", args.config)
    if args.json:
        print(as_json(found))
        return 0
    interfaces, nodes, drops, roles, modules = (found[name] for name in ("interfaces", "nodes", "drops", "roles", "modules"))
    handshake, failures, reach = found["handshake"], found["failures"], found["reach"]
    assert isinstance(reach, dict)
    assert isinstance(interfaces, list)
    assert isinstance(nodes, list)
    assert isinstance(drops, dict)
    assert isinstance(handshake, dict)
    assert isinstance(failures, dict)
    assert isinstance(roles, list)
    assert isinstance(modules, list)
    left = found["certificate_seconds_left"]
    assert isinstance(left, int)
    print(
        facts(
            {
                "node": f"{found['node']} of cluster {found['cluster']}" + (f", roles {', '.join(roles)}" if roles else ""),
                "certificate": f"{left / 86400:.1f} days left" if left > 0 else "EXPIRED",
                "daemon": f"process {found['pid']}, up for {found['seconds']} s, modules {', '.join(modules)}",
                "mount": found["mount"] or "none",
                "handshakes": _counted(handshake) or "none",
                "dropped": _counted(drops) or "nothing",
                **({"endpoints": _counted(reach)} if any(reach.values()) else {}),
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
    print()
    print(listing(str(found["node"]), nodes))
    return 0


def _counted(numbers: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(numbers.items()) if count)
