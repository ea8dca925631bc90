"""What a stack says of itself, as values that JSON can say: for `nicinfo`, `ifconfig`, `netstat` and programs. Times are in seconds."""

from __future__ import annotations

from collections.abc import Mapping

from stack.core.counting import counters_of
from stack.core.ifnet import Interface
from stack.core.loaded import Loaded
from stack.core.restart import Restarts
from stack.core.specific import Rows
from stack.core.stack import Stack
from stack.core.statistics import Counters
from stack.crypto.registry import Crypto
from stack.managers.layer2 import Layer2, summed
from stack.wire.ethernet import mac_text

Facts = dict[str, object]
REGISTRATIONS_MAX = 256
"""Of a module, that are told one by one."""
NAME_MAX = 100
"""Characters of the name of one that are told."""


def interface(one: Interface, module: str, number: int, layer2: Layer2) -> Facts:
    """One interface, its counters, and every drop by reason. *module*, *number*: of its driver. What an engine carried past the stack is
    in the counters, and by itself in `carried`."""
    counted, carriers = one.statistics, layer2.carriers(one.name)
    carried = summed(carriers)
    drops = dict(counted.drops)
    for reason, count in carried.drops.items():
        drops[reason] = drops.get(reason, 0) + count
    return {
        "name": one.name,
        "index": one.index,
        "module": module,
        "number": number,
        "mac": mac_text(one.mac),
        "mtu": one.mtu,
        "driver_mtu": one.driver_mtu,
        "up": one.up,
        "enabled": one.enabled,
        "carrier": one.carrier,
        "promiscuous": one.promiscuous,
        "groups": {mac_text(group): members for group, members in sorted(one.groups.items())},
        "owner": one.owner,
        "broadcast": one.endpoints is None,
        "addresses": list(one.addresses),
        "rx_frames": counted.rx_frames + carried.received,
        "rx_bytes": counted.rx_bytes + carried.rx_bytes,
        "tx_frames": counted.tx_frames + carried.tx_frames,
        "tx_bytes": counted.tx_bytes + carried.tx_bytes,
        "drops": drops,
        "info": dict(counted.info),
        "carried": carriers,
        "port": layer2.ports(one.name),
        "specific": layer2.own(one.name),
    }


def module(loaded: Loaded) -> Facts:
    """One module: what it is, what it has on the dispatch and in the stack, and what went wrong in it, before it was restarted, too."""
    guard, restarts = loaded.guard, loaded.restarts
    before = Restarts(0) if restarts is None else restarts
    return {
        "number": loaded.number,
        "name": loaded.module.name,
        "kind": loaded.module.kind.value,
        "options": loaded.options,
        "interface": None if loaded.interface is None else loaded.interface.name,
        "wrappers": [list(one) for one in loaded.wrap],
        "registrations": _names([one.what for one in guard.registrations]),
        "dispatch": loaded.dispatch.sizes(),
        "counters": counters_of(loaded),
        "failures": _added(before.failures, guard.failures),
        "slow": _added(before.slow, guard.slow),
        "longest": round(max(before.longest, guard.longest), 6),
        "restarts": None if restarts is None else {"most": restarts.most, "done": restarts.done, "total": restarts.total},
    }


def _names(every: list[str]) -> list[str]:
    """*every*, or as many as leave room for others in an answer, and how many are left out."""
    told = [one[:NAME_MAX] for one in every[:REGISTRATIONS_MAX]]
    return told if len(told) == len(every) else [*told, f"and {len(every) - len(told)} more"]


def _added(before: Counters, now: Counters) -> dict[str, int]:
    both = Counters(before)
    for what, number in now.items():
        both.count(what, number)
    return dict(both)


def interface_of(stack: Stack, name: str) -> Facts | None:
    """One interface, by its name."""
    found = stack.interface(name)
    layer2 = Layer2(stack)
    return next((interface(found, one.module.name, one.number, layer2) for one in stack.loaded if one.interface is found and found), None)


def interfaces(stack: Stack, layer2: Layer2) -> Rows:
    """All interfaces, made when they are looked at: what a module does meanwhile, it may do."""

    def row(one: Loaded) -> Facts | None:
        there = one.interface
        return interface(there, one.module.name, one.number, layer2) if there is not None and there.attached else None

    return Rows([one for one in stack.loaded if one.interface is not None], row)


def modules(stack: Stack) -> Rows:
    """All modules, likewise."""
    return Rows(stack.loaded, lambda one: module(one) if one in stack.loaded else None)


def facts(stack: Stack) -> Facts:
    """All of it. Its long tables are `Rows`."""
    absent: Mapping[str, str] = stack.restarter.absent()
    layer2 = Layer2(stack)
    return {
        "name": stack.name,
        "prefix": stack.prefix,
        "workers": stack.workers,
        "modules": modules(stack),
        "absent": dict(absent),
        "interfaces": interfaces(stack, layer2),
        "engines": layer2.engines,
        "ethertypes": [{"ethertype": kind, "frames": frames, "module": name} for kind, frames, name in stack.ethertypes()],
        "ip_protocols": [{"protocol": number, "packets": packets, "module": name} for number, packets, name in stack.ip_protocols()],
        "hooks": [
            {
                "point": entry.point.value,
                "order": entry.order,
                "name": entry.name,
                "module": name,
                "everything": entry.everything,
                "interfaces": None if entry.interfaces is None else sorted(entry.interfaces),
            }
            for entry, name in stack.hooks()
        ],
        "shed": stack.shed(),
        "failures": dict(stack.failures()),
    }


def crypto(registry: Crypto) -> Facts:
    """Providers in order of preference, what they serve, and the sessions that are alive."""
    return {
        "providers": [
            {
                "name": one.name,
                "module": one.module,
                "by_name": one.by_name,
                "problem": one.problem,
                "hardware": sorted(one.hardware),
                "algorithms": {algorithm.name: algorithm.kind.value for algorithm in one.algorithms},
                "sessions": one.sessions,
            }
            for one in registry.facts()
        ],
        "moves": dict(registry.moves),
    }
