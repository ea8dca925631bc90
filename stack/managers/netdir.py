"""`/dev/io-net`: a file per interface that holds its facts, in JSON. QNX's legacy drivers had their names there.

With `--prefix /alt` it is `/alt/dev/io-net`. Programs of this machine may all read; clients of other nodes need an export with the verb
read that covers the file.

What a file says is made when it is opened, in the time that those have who only ask (`stack.managers.share`). While that is used up, files
say again what they said.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping

from resmgr.access import MappedUser, Verb
from resmgr.channel import ND_LOCAL, ClientInfo
from resmgr.iofunc.node import local_or_nobody
from resmgr.iofunc.static import tree
from stack.core.ifnet import Interface
from stack.core.specific import plain
from stack.core.stack import Stack
from stack.managers.facts import interface_of
from stack.managers.share import Share

PATH = "/dev/io-net"


class InterfaceFiles(Mapping[str, Callable[[], bytes]]):
    """The interfaces of now, by name, as callables that make text."""

    def __init__(self, stack: Stack, share: Share) -> None:
        self._stack = stack
        self._share = share
        self._said: dict[Interface, bytes] = {}

    def __getitem__(self, name: str) -> Callable[[], bytes]:
        if self._stack.interface(name) is None:
            raise KeyError(name)
        return lambda: self._text(name)

    def __iter__(self) -> Iterator[str]:
        return iter([one.name for one in self._stack.interfaces])

    def __len__(self) -> int:
        return len(self._stack.interfaces)

    def _text(self, name: str) -> bytes:
        interface = self._stack.interface(name)
        said = None if interface is None else self._said.get(interface)
        if said is not None and self._share.wait() > 0.0:
            return said
        self._share.begin()
        try:
            said = self._made(name)
        finally:
            self._share.end()
        self._said = {one: text for one, text in self._said.items() if one.attached}
        if interface is not None:
            self._said[interface] = said
        return said

    def _made(self, name: str) -> bytes:
        found = interface_of(self._stack, name)
        return b"" if found is None else json.dumps(plain(found), indent=1, default=str).encode() + b"\n"


class NetDirectory:
    """Serves the directory until `close`."""

    def __init__(self, stack: Stack, share: Share | None = None) -> None:
        """*share*: as of `IoPktManager`."""
        self._system = stack.system
        self._path = (stack.prefix + PATH).encode()
        self._tree = tree(stack.kernel, InterfaceFiles(stack, share or Share()), name="io-net", user=self.reader)
        self._attached = self._system.paths.attach(self._path.lstrip(b"/"), self._tree.target)
        self._system.guard(self._tree.channel)

    def reader(self, info: ClientInfo) -> MappedUser | int:
        """As whom a client reads, or the errno with which it is refused."""
        if info.nd != ND_LOCAL and Verb.READ not in self._system.policy.verbs(info, self._path):
            return errno.EACCES
        return local_or_nobody(info)

    def close(self) -> None:
        self._system.paths.detach(self._attached)
        self._tree.destroy()
