"""Peers from configuration: hints that always stand while their interface is there. Also the simulator's discovery.

Static peers need no IP address on the interface and send nothing, so nobody on the link learns of this node before the first handshake.
Those that are given by name or IP address are in `qnetpy.discovery.lookup`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from qnetpy.discovery.hint import TOKEN_LENGTH, Announcement, Hint, Interface, OnHint
from resmgr.dispatch import Dispatch
from resmgr.errors import Misuse


@attrs.frozen
class StaticPeer:
    """Where a configured peer is. `interface` "" means: behind every interface."""

    mac: bytes
    interface: str = ""
    ethertype: int | None = None
    """None: the one that this node announces."""


class StaticDiscovery:
    """A `Discovery` over a fixed list of peers. A peer that is one of our own interfaces is left out."""

    def __init__(self, peers: Sequence[StaticPeer]) -> None:
        self._peers = tuple(peers)
        self._interfaces: dict[str, Interface] = {}
        self._standing: dict[str, list[Hint]] = {}
        self._dispatch: Dispatch | None = None
        self._announce: Announcement | None = None
        self._on_hint: OnHint | None = None
        self._on_gone: OnHint | None = None

    def start(self, dispatch: Dispatch, interfaces: Sequence[Interface], announce: Announcement, on_hint: OnHint, on_gone: OnHint) -> None:
        if self._dispatch is not None:
            raise Misuse("discovery started twice")
        self._dispatch, self._announce, self._on_hint, self._on_gone = dispatch, announce, on_hint, on_gone
        for interface in interfaces:
            self.interface_added(interface)

    def interface_added(self, interface: Interface) -> None:
        if self._dispatch is None:
            raise Misuse("discovery not started")
        if interface.name in self._interfaces:
            self.interface_removed(interface.name)
        self._interfaces[interface.name] = interface
        if not interface.mac:
            return
        # Later in the turn: the caller is still in the middle of setting the interface up.
        self._dispatch.call_soon(lambda: self._tell(interface))

    def interface_removed(self, name: str) -> None:
        self._interfaces.pop(name, None)
        for hint in self._standing.pop(name, []):
            if self._on_gone is not None:
                self._on_gone(hint)

    def close(self) -> None:
        self._on_hint = self._on_gone = None
        self._interfaces.clear()
        self._standing.clear()

    def _tell(self, interface: Interface) -> None:
        if self._on_hint is None or self._announce is None or self._interfaces.get(interface.name) is not interface:
            return
        own = {other.mac for other in self._interfaces.values()}
        for peer in self._peers:
            if peer.interface not in ("", interface.name) or peer.mac in own:
                continue
            ethertype = self._announce.ethertype if peer.ethertype is None else peer.ethertype
            # A configured peer has no boot token; its address stands in, so that its hints have distinct keys.
            token = peer.mac.ljust(TOKEN_LENGTH, b"\0")
            hint = Hint(interface.name, peer.mac, ethertype, token, math.inf)
            self._standing.setdefault(interface.name, []).append(hint)
            self._on_hint(hint)
