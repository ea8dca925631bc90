"""The paths of all links by address: who is reached where, in one look, however many links and strangers there are."""

from __future__ import annotations

from qnetpy.link.calls import Hint
from qnetpy.link.link import Link, LinkPath
from qnetpy.link.wire import Address


class PathIndex:
    """*links*: those of the machine, by name. `add` and `remove` follow what happens to their paths."""

    def __init__(self, links: dict[str, Link]) -> None:
        self._links = links
        self._paths: dict[Address, list[LinkPath]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._paths.values()))

    def add(self, path: LinkPath) -> None:
        self._paths.setdefault(path.address, []).append(path)

    def remove(self, path: LinkPath) -> None:
        there = self._paths[path.address]
        there.remove(path)
        if not there:
            del self._paths[path.address]

    def forget(self, link: Link) -> None:
        """The link has ended."""
        for path in link.paths.values():
            self.remove(path)

    def linked(self, hint: Hint) -> bool:
        """Whether a call to that hint is needless: there is a link to its node, or, where it is a stranger's, a path that was
        answered there."""
        if hint.name:
            return hint.name in self._links
        return any(path.asked for path in self._paths.get(hint.address, ()))

    def wanting(self, interface: str) -> bool:
        """Whether a node to which there is a link has no path on that interface."""
        return any(all(path.address[0] != interface for path in link.paths.values()) for link in self._links.values())

    def answers(self, name: str, address: Address) -> bool:
        """Whether the node of that name is at *address* now: there is a path, and it works."""
        link = self._links.get(name)
        return link is not None and any(
            path.address == address and path.state.valid and link.transport.usable(path.number) for path in link.paths.values()
        )
