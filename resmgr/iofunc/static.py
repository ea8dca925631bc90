"""A read-only tree from a dictionary: names to callables that make text, to nodes, or to further dictionaries.

    tree(kernel, {"nodes": node_names, "net": {"drops": drops_text}}, name="stats")

The dictionaries are looked into at every request, so entries may come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Union

from resmgr.access import MappedUser
from resmgr.channel import ClientInfo, Kernel
from resmgr.iofunc.node import Directory, Node, TreeManager, Value, local_or_nobody

Tree = Mapping[str, Union[Callable[[], bytes], Node, "Tree"]]


class StaticDirectory(Directory):
    """A directory that shows *tree* as it is at each request."""

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self._tree = tree

    def lookup(self, name: bytes) -> Node | None:
        try:
            found = self._tree.get(name.decode())
        except UnicodeDecodeError:
            return None
        return None if found is None else _node(found)

    def entries(self) -> Iterable[tuple[bytes, Node]]:
        return self._nodes()

    def _nodes(self) -> Iterator[tuple[bytes, Node]]:
        for name, found in list(self._tree.items()):
            yield name.encode(), _node(found)


def _node(found: Callable[[], bytes] | Node | Tree) -> Node:
    if isinstance(found, Node):
        return found
    if isinstance(found, Mapping):
        return StaticDirectory(found)
    return Value(found)


def tree(
    kernel: Kernel,
    content: Tree,
    *,
    name: str,
    user: Callable[[ClientInfo], MappedUser | int] = local_or_nobody,
    remote: bool = True,
) -> TreeManager:
    """Serve *content*. Attach the result's `target` to a prefix."""
    return TreeManager(kernel, StaticDirectory(content), name=name, user=user, remote=remote)
