"""What `-d bridge` and `ifconfig bridge0 create` can be told. Later changes are requests: `stack.l2.bridge_requests`."""

from __future__ import annotations

from typing import Literal

import attrs
from attrs.validators import ge, le

from stack.core.options import Duration
from stack.l2.stations import MAX_DEFAULT, MAX_LIMIT, TIMEOUT_DEFAULT
from stack.l2.storm import STORM_RATE


@attrs.frozen
class BridgeOptions:
    """Options of `-d bridge`. `add` and `span` name interfaces that are there already; `stp`: all members take part in the tree."""

    name: str = "bridge0"
    add: tuple[str, ...] = ()
    span: tuple[str, ...] = ()
    mac: str = ""
    station: bool = False
    maxaddr: int = attrs.field(default=MAX_DEFAULT, validator=[ge(1), le(MAX_LIMIT)])
    timeout: Duration = Duration(TIMEOUT_DEFAULT)
    storm: int = attrs.field(default=STORM_RATE, validator=[ge(0), le(10_000_000)])
    stp: bool = False
    proto: Literal["rstp", "stp"] = "rstp"
    priority: int = 0x8000
    hellotime: Duration = Duration(2.0)
    fwddelay: Duration = Duration(15.0)
    maxage: Duration = Duration(20.0)
    ipf: bool = False
    """IP filters see what is bridged."""
    engine: Literal["auto", "none", "kernel", "threads", "kernel-native", "kernel-generic"] = "auto"
    """Who forwards what is known: docs/stack/forwarding.md."""
