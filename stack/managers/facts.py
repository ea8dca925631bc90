"""What a stack says of itself, as values that JSON can say: for `nicinfo`, `ifconfig`, `netstat` and programs. Times are in seconds."""

from __future__ import annotations

from collections.abc import Mapping

from stack.core.ifnet import Interface
from stack.core.loaded import Loaded
from stack.core.stack import Stack
from stack.wire.ethernet import mac_text

Facts = dict[str, object]


def interface(one: Interface, module: str, number: int) -> Facts:
    """One interface, its counters, and every drop by reason. *module*, *number*: of its driver."""
    counted = one.statistics
    return {
        "name": one.name,
        "index": one.index,
        "module": module,
        "number": number,
        "mac": mac_text(one.mac),
        "mtu": one.mtu,
        "driver_mtu": one.driver.mtu,
        "up": one.up,
        "enabled": one.enabled,
        "carrier": one.driver.up,
        "promiscuous": one.promiscuous,
        "owner": one.owner,
        "broadcast": one.endpoints is None,
        "addresses": list(one.addresses),
        "rx_frames": counted.rx_frames,
        "rx_bytes": counted.rx_bytes,
        "tx_frames": counted.tx_frames,
        "tx_bytes": counted.tx_bytes,
        "drops": dict(counted.drops),
        "info": dict(counted.info),
    }


def module(loaded: Loaded) -> Facts:
    """One module: what it is, what it has on the dispatch and in the stack, and what went wrong in it."""
    guard, restarts = loaded.guard, loaded.restarts
    return {
        "number": loaded.number,
        "name": loaded.module.name,
        "kind": loaded.module.kind.value,
        "options": loaded.options,
        "interface": None if loaded.interface is None else loaded.interface.name,
        "wrappers": [list(one) for one in loaded.wrap],
        "registrations": [one.what for one in guard.registrations],
        "dispatch": loaded.dispatch.sizes(),
        "failures": dict(guard.failures),
        "slow": dict(guard.slow),
        "longest": round(guard.longest, 6),
        "restarts": None if restarts is None else {"most": restarts.most, "done": restarts.done, "total": restarts.total},
    }


def interfaces(stack: Stack) -> list[Facts]:
    return [interface(one.interface, one.module.name, one.number) for one in stack.loaded if one.interface is not None]


def facts(stack: Stack) -> Facts:
    """All of it."""
    absent: Mapping[str, str] = stack.restarter.absent()
    return {
        "name": stack.name,
        "prefix": stack.prefix,
        "workers": stack.workers,
        "modules": [module(one) for one in stack.loaded],
        "absent": dict(absent),
        "interfaces": interfaces(stack),
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
