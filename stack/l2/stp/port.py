"""The variables of one port (802.1D-2004 17.19). The state machines change them; names are the standard's, in this language's writing.

A timer of the standard counts down once a second. Here it is the time at which it ends; it is *held* (HELD) where the standard sets it
anew each time it has counted, and 0 when it has ended.
"""

from __future__ import annotations

import enum
import math

import attrs

from resmgr.bucket import TokenBucket
from stack.l2.stp.settings import PortSettings
from stack.wire.bpdu import Bpdu, Priority, Times

HELD = math.inf
MIGRATE_TIME = 3.0
"""Seconds during which a port keeps to the protocol that it took up."""


class PortRole(enum.Enum):
    DISABLED = "disabled"
    ROOT = "root"
    DESIGNATED = "designated"
    ALTERNATE = "alternate"
    BACKUP = "backup"


class Info(enum.Enum):
    """Where `priority` and `times` of a port come from."""

    DISABLED = "disabled"
    AGED = "aged"
    MINE = "mine"
    RECEIVED = "received"


class Migration(enum.Enum):
    CHECKING = "checking"
    SENSING = "sensing"
    SELECTING = "selecting"


class Change(enum.Enum):
    """States of the topology change machine that last."""

    INACTIVE = "inactive"
    LEARNING = "learning"
    ACTIVE = "active"


@attrs.define(eq=False, repr=False)
class Port:
    """One port of the tree. `number` is 1 to `PORTS_MAX` of `stack.l2.stp.machine`."""

    number: int
    settings: PortSettings
    priority: Priority
    times: Times
    designated: Priority
    designated_times: Times
    credit: TokenBucket
    """BPDUs that may be sent: `txCount`, seen from the other side."""
    linked: bool = False
    """It has a link, and the bridge is not switched off."""
    enabled: bool = False
    """`portEnabled`: it has a link, and no guard has struck."""
    guarded: bool = False
    """BPDU guard has struck."""
    role: PortRole = PortRole.DISABLED
    selected_role: PortRole = PortRole.DISABLED
    info: Info = Info.DISABLED
    learning: bool = False
    forwarding: bool = False

    reselect: bool = True
    selected: bool = False
    update: bool = False
    proposing: bool = False
    proposed: bool = False
    agree: bool = False
    agreed: bool = False
    disputed: bool = False
    sync: bool = True
    synced: bool = False
    reroot: bool = True
    oper_edge: bool = False

    message: Bpdu | None = None
    """Received, and not looked at yet."""
    message_priority: Priority | None = None
    message_times: Times | None = None

    migration: Migration = Migration.CHECKING
    send_rstp: bool = True
    heard_rstp: bool = False
    heard_stp: bool = False

    change: Change = Change.INACTIVE
    flush: bool = False
    got_change: bool = False
    got_notice: bool = False
    got_acknowledgement: bool = False
    propagate: bool = False
    acknowledge: bool = False
    new_info: bool = True

    # Timers
    age_timer: float = 0.0
    """rcvdInfoWhile"""
    forward_timer: float = HELD
    """fdWhile"""
    recent_root: float = 0.0
    """rrWhile"""
    recent_backup: float = 0.0
    """rbWhile"""
    change_timer: float = 0.0
    """tcWhile"""
    edge_delay: float = 0.0
    migrate_timer: float = 0.0
    hello_at: float = 0.0

    received: int = 0
    sent: int = 0

    @property
    def identifier(self) -> int:
        return self.settings.priority << 8 | self.number

    @property
    def settled(self) -> bool:
        """The roles are selected, and nothing waits to be taken over."""
        return self.selected and not self.update

    def timers(self) -> tuple[float, ...]:
        """All that may make something happen."""
        return (
            self.age_timer,
            self.forward_timer,
            self.recent_root,
            self.recent_backup,
            self.change_timer,
            self.edge_delay,
            self.migrate_timer,
            self.hello_at,
        )
