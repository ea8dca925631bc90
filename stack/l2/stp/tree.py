"""What the state machines of one bridge share: its ports, its identity, the root that it believes in, and the time."""

from __future__ import annotations

import attrs

from stack.l2.stp.port import Info, Port, PortRole
from stack.l2.stp.settings import TreeSettings
from stack.wire.bpdu import Priority, Times, bridge_id


@attrs.define(eq=False, repr=False)
class Tree:
    """`mac` is the bridge's address, the lower half of its identifier."""

    mac: bytes
    settings: TreeSettings
    now: float
    ports: dict[int, Port] = attrs.Factory(dict)
    root_port: Port | None = None
    changes: int = 0
    """Topology changes: ports that began to forward, and what was heard."""
    changed_at: float | None = None
    root: Priority = attrs.field(init=False)
    """The root priority vector: ours while we are the root."""
    times: Times = attrs.field(init=False)
    """The root's times, as they are here."""

    def __attrs_post_init__(self) -> None:
        self.root = self.own
        self.times = self.settings.times

    @property
    def identifier(self) -> bytes:
        return bridge_id(self.settings.priority, self.mac)

    @property
    def own(self) -> Priority:
        """The vector of this bridge as the root."""
        return Priority(self.identifier, 0, self.identifier, 0)

    def over(self, timer: float) -> bool:
        return timer <= self.now

    def all_synced(self) -> bool:
        """Every port but the root port agrees with what the tree now is."""
        return all(
            port.settled and port.role is port.selected_role and (port.synced or port.role is PortRole.ROOT) for port in self.ports.values()
        )

    def rerooted(self, port: Port) -> bool:
        """No other port was the root port a short while ago."""
        return all(other is port or self.over(other.recent_root) for other in self.ports.values())

    def forward_delay(self, port: Port) -> float:
        """How long *port* listens, and how long it learns."""
        return port.designated_times.hello if port.send_rstp else port.designated_times.forward_delay

    def better_or_same(self, port: Port, kind: Info) -> bool:
        """What is about to be taken over is at least as good as what *port* has from the same source."""
        if port.info is not kind:
            return False
        if kind is Info.MINE:
            return port.designated <= port.priority
        return port.message_priority is not None and port.message_priority <= port.priority
