"""The pathname space of a node: a tree of prefixes, each attached by one or more servers (QNX: the process manager's prefix tree).

The longest attached prefix of a path decides. Several servers may attach to one prefix (QNX: union mounts); they are tried in order, the
latest before the earlier ones unless it asked to be after them. QNX also tries shorter prefixes; here a longer prefix hides what lies below
it, so that `/net` or `/dev/name` of a node can never be answered by its disk. Unless all at the longer one asked to be after: then what has
the name through a shorter prefix comes before them.

Pure. Paths are bytes without a leading slash, components separated by one slash; the empty path is the root.
"""

from __future__ import annotations

import enum

import attrs

from resmgr.iomsg import Target


class Attach(enum.IntFlag):
    """How a prefix is attached."""

    DEFAULT = 0
    AFTER = 1
    """Asked only when those attached before do not have the name (QNX _RESMGR_FLAG_AFTER)."""
    EXACT = 2
    """One name, not a subtree: paths below it do not exist (QNX without _RESMGR_FLAG_DIR)."""
    TRANSIT = 4
    """Leads to other nodes: hidden from clients of other nodes unless the path manager allows transit."""
    LOCAL = 8
    """For clients of this node only."""


@attrs.frozen
class Attached:
    """One server at one prefix. `order` tells servers of one prefix apart."""

    prefix: tuple[bytes, ...]
    target: Target
    flags: Attach
    order: int


class _Branch:
    __slots__ = ("children", "servers")

    def __init__(self) -> None:
        self.children: dict[bytes, _Branch] = {}
        self.servers: list[Attached] = []


def split(path: bytes) -> tuple[bytes, ...]:
    """Components of a path; leading, trailing and doubled slashes do not count."""
    return tuple(name for name in path.split(b"/") if name)


class PathSpace:
    """The prefix tree. Every call is O(components)."""

    def __init__(self) -> None:
        self._root = _Branch()
        self._order = 0

    def attach(self, path: bytes, target: Target, flags: Attach = Attach.DEFAULT) -> Attached:
        """Attach *target* to *path*. The result is what `detach` takes. The same target may attach many times."""
        prefix = split(path)
        if b"." in prefix or b".." in prefix or b"\0" in path:
            raise ValueError("prefix has a dot component or a NUL")
        branch = self._root
        for name in prefix:
            branch = branch.children.setdefault(name, _Branch())
        self._order += 1
        attached = Attached(prefix, target, flags, self._order)
        if flags & Attach.AFTER:
            branch.servers.append(attached)
        else:
            branch.servers.insert(0, attached)
        return attached

    def detach(self, attached: Attached) -> bool:
        """Undo one `attach`; False if it was already undone. Branches that lead nowhere disappear."""
        trail = [self._root]
        for name in attached.prefix:
            branch = trail[-1].children.get(name)
            if branch is None:
                return False
            trail.append(branch)
        if attached not in trail[-1].servers:
            return False
        trail[-1].servers.remove(attached)
        for depth in range(len(attached.prefix), 0, -1):
            if trail[depth].servers or trail[depth].children:
                break
            del trail[depth - 1].children[attached.prefix[depth - 1]]
        return True

    def detach_target(self, target: Target) -> int:
        """Undo everything that *target* attached (its process ended). Returns how many attachments that were."""
        gone = [attached for attached in self.attachments() if attached.target.same(target)]
        for attached in gone:
            self.detach(attached)
        return len(gone)

    def attachments(self) -> list[Attached]:
        """Everything attached, in path order."""
        found: list[Attached] = []
        stack = [self._root]
        while stack:
            branch = stack.pop()
            found.extend(branch.servers)
            stack.extend(branch.children[name] for name in sorted(branch.children, reverse=True))
        return found

    def resolve(self, path: bytes, hidden: Attach = Attach.DEFAULT) -> list[tuple[Attached, bytes]]:
        """Servers of the longest attached prefix of *path*, in the order to try them, each with the rest of the path.

        Attachments with a flag of *hidden* do not exist for this caller; where one hides all servers of a prefix, nothing shorter answers
        in their place. An empty list: nobody serves the path.
        """
        branch = self._root
        levels = [(branch.servers, 0)]
        offset = 0
        length = len(path)
        while branch.children and offset < length:
            end = path.find(b"/", offset)
            if end < 0:
                end = length
            below = branch.children.get(path[offset:end])
            if below is None:
                break
            branch = below
            offset = end + 1
            if branch.servers:
                levels.append((branch.servers, offset))
        found: list[tuple[Attached, bytes]] = []
        while levels:
            servers, start = levels.pop()
            rest = path[start:] if start else path
            found[:0] = [(one, rest) for one in servers if not one.flags & hidden and not (rest and one.flags & Attach.EXACT)]
            if not all(one.flags & Attach.AFTER for one in servers):
                break
        return found

    def below(self, path: bytes, hidden: Attach = Attach.DEFAULT) -> list[bytes] | None:
        """Names directly below *path* that are attached or lead to an attachment; None if there are none.

        A path with such names is a directory of the path manager: its listing is these names and what the servers have there.
        """
        branch = self._branch(path)
        if branch is None or not branch.children:
            return None
        names = [name for name in sorted(branch.children) if not hidden or _shown(branch.children[name], hidden)]
        return names or None

    def attached_below(self, path: bytes) -> frozenset[bytes]:
        """Names directly below *path* at which something is attached, hidden or not."""
        branch = self._branch(path)
        return frozenset() if branch is None else frozenset(name for name, below in branch.children.items() if below.servers)

    def _branch(self, path: bytes) -> _Branch | None:
        branch = self._root
        if path:
            for name in path.split(b"/"):
                below = branch.children.get(name)
                if below is None:
                    return None
                branch = below
        return branch


def _shown(branch: _Branch, hidden: Attach) -> bool:
    return any(not attached.flags & hidden for attached in branch.servers) or any(
        _shown(child, hidden) for child in branch.children.values()
    )
