"""What `nicinfo`, `ifconfig` and `netstat` show of layer 2: ports of bridges and aggregates, the spanning tree, LACP, and what an engine
carried.

Facts come from a running io-pkt, perhaps of another version: what is not there is not shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qnetpy.cli import iopkt
from qnetpy.cli.output import table

Fact = Mapping[str, object]


def own(one: Fact) -> Fact:
    """What only the driver of this interface has."""
    found = one.get("specific")
    return found if isinstance(found, dict) else {}


def tree_state(port: Fact) -> str:
    """`designated forwarding` of a port of a bridge, `absent` and why; empty when it is in no spanning tree."""
    if port.get("present") is False:
        return f"absent ({port.get('why')})"
    tree = port.get("stp")
    if not isinstance(tree, dict):
        return ""
    return "guarded" if tree.get("guarded") else f"{tree.get('role')} {tree.get('state')}"


def lacp_state(port: Fact) -> str:
    """`current, collecting_distributing` of a port of an aggregate, or `absent` and why."""
    if port.get("present") is False:
        return f"absent ({port.get('why')})"
    return f"{port.get('receive')}, {port.get('mux')}"


def how(carried: Fact) -> str:
    """How an engine carries for a port, or why it does not."""
    off = carried.get("off")
    return f"off: {'; '.join(map(str, off))}" if isinstance(off, list) and off else str(carried.get("how") or "-")


def lines(one: Fact) -> Iterator[tuple[str, object]]:
    """Labels and values for `nicinfo`."""
    groups = one.get("groups")
    for group, members in groups.items() if isinstance(groups, dict) else ():
        yield "Multicast Group", f"{group}, for {members}"
    for port in iopkt.listed(one.get("port")):
        whose = str(port.get("of"))
        if port.get("present") is False:
            yield f"Port of {whose}", lacp_state(port)
            continue
        if "mux" in port:
            yield f"Port of {whose}", lacp_state(port)
            yield f"{whose}: LACP actor", port.get("actor")
            yield f"{whose}: LACP partner", port.get("partner")
            yield f"{whose}: LACPDUs Received, Sent", f"{port.get('received')}, {port.get('sent')}"
            continue
        state = tree_state(port)
        yield f"Port of {whose}", ", ".join(filter(None, [state, *map(str, _list(port.get("flags")))]))
        yield f"{whose}: Frames Received, Forwarded", f"{port.get('received')}, {port.get('forwarded')}"
        tree = port.get("stp")
        if isinstance(tree, dict):
            yield f"{whose}: BPDUs Received, Sent", f"{tree.get('received')}, {tree.get('sent')}"
        for reason, count in sorted(iopkt.numbers(port.get("drops")).items()):
            yield f"{whose}: Dropped: {reason}", count
    for row in iopkt.listed(one.get("carried")):
        label = f"Engine {row.get('engine')} of {row.get('of')}"
        yield label, how(row)
        yield f"{label}: Carried In", f"{row.get('in')} frames, {row.get('in_bytes')} bytes"
        yield f"{label}: Carried Out", f"{row.get('out')} frames, {row.get('out_bytes')} bytes"
        for name in ("up", "dropped"):
            for reason, count in sorted(iopkt.numbers(row.get(name)).items()):
                yield f"{label}: {'Handed Up' if name == 'up' else 'Dropped'}: {reason}", count
    if "does not say" in own(one):
        yield "Does not say", own(one)["does not say"]
    tree = own(one).get("stp")
    if isinstance(tree, dict):
        yield "Spanning Tree", f"{tree.get('protocol')}, root {tree.get('root')}, root port {tree.get('root_port') or 'none'}"
        yield "Topology Changes", tree.get("topology_changes")
    for reason, count in sorted(iopkt.numbers(own(one).get("drops")).items()):
        yield f"Dropped by {one.get('name')}: {reason}", count


def ports_of(one: Fact) -> list[str]:
    """Lines for `ifconfig`: the ports of an aggregate or bridge, the parent of a VLAN."""
    told = own(one)
    found = []
    if "vlanif" in told:
        here = (f" ({told['lacks']})" if told.get("lacks") else "") if told.get("present") else " (not there)"
        found.append(f"vlan: {told.get('vlan')} priority: {told.get('vlanprio')} parent: {told['vlanif']}{here}")
    if "ports" in told and "partner" in told:
        mode = "active" if told.get("active") else "passive"
        found.append(f"lacp: {mode} {told.get('timeout')} key {told.get('key')} partner {told['partner'] or 'none'}")
        for port in iopkt.listed(told["ports"]):
            partner = f" partner {port['partner']}" if "partner" in port else ""
            found.append(f"port: {port.get('interface')} {lacp_state(port)}{partner}")
    for member in iopkt.listed(told.get("members")):
        found.append(
            " ".join(filter(None, [f"member: {member.get('interface')}", tree_state(member), *map(str, _list(member.get("flags")))]))
        )
    return found


def tables(interfaces: list[dict[str, object]]) -> list[str]:
    """For `netstat -s`: ports of bridges with the spanning tree, ports of aggregates, engines."""
    bridged, trees, aggregated, engines = [], [], [], []
    for one in interfaces:
        for port in iopkt.listed(one.get("port")):
            if port.get("present") is False:
                continue
            place = [port.get("of"), one["name"]]
            if "mux" in port:
                aggregated.append([*place, *map(port.get, ("receive", "mux", "partner", "received", "sent"))])
                continue
            bridged.append([*place, port.get("received"), port.get("forwarded"), iopkt.counted(port.get("drops")) or "nothing"])
            tree = port.get("stp")
            if isinstance(tree, dict):
                trees.append([*place, tree_state(port), tree.get("cost"), tree.get("received"), tree.get("sent")])
        for row in iopkt.listed(one.get("carried")):
            up, dropped = (iopkt.counted(row.get(name)) or "nothing" for name in ("up", "dropped"))
            engines.append([row.get("engine"), row.get("of"), one["name"], row.get("in"), row.get("out"), up, dropped, how(row)])
    found = [
        (bridged, ("BRIDGE", "PORT", "RECEIVED", "FORWARDED", "DROPPED")),
        (trees, ("SPANNING TREE", "PORT", "STATE", "COST", "BPDUS IN", "BPDUS OUT")),
        (aggregated, ("AGGREGATE", "PORT", "RECEIVE", "MUX", "PARTNER", "LACPDUS IN", "LACPDUS OUT")),
        (engines, ("ENGINE", "BRIDGE", "PORT", "CARRIED IN", "CARRIED OUT", "HANDED UP", "DROPPED", "HOW")),
    ]
    dropped_by = [[one["name"], drops] for one in interfaces if (drops := iopkt.counted(own(one).get("drops")))]
    return [table(rows, header) for rows, header in found if rows] + ([table(dropped_by, ("LAYER 2", "DROPPED"))] if dropped_by else [])


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
