"""Several sources of hints as one: configured peers beside zeroconf, for instance."""

from __future__ import annotations

from collections.abc import Sequence

from qnetpy.discovery.hint import Announcement, Discovery, Interface, OnHint
from resmgr.dispatch import Dispatch


class SeveralDiscovery:
    """A `Discovery`: every call goes to all of *sources*. The same address may be hinted at by more than one."""

    def __init__(self, sources: Sequence[Discovery]) -> None:
        self._sources = tuple(sources)

    def start(self, dispatch: Dispatch, interfaces: Sequence[Interface], announce: Announcement, on_hint: OnHint, on_gone: OnHint) -> None:
        for source in self._sources:
            source.start(dispatch, interfaces, announce, on_hint, on_gone)

    def interface_added(self, interface: Interface) -> None:
        for source in self._sources:
            source.interface_added(interface)

    def interface_removed(self, name: str) -> None:
        for source in self._sources:
            source.interface_removed(name)

    def close(self) -> None:
        for source in self._sources:
            source.close()
