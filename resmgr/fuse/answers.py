"""Answers to the kernel: bytes, and what is remembered of what it was told.

Answers are collected in `output`: one item is one write, bytes or a tuple of parts that must go out with one writev. Parts belong to
whoever gave them until `on_output` returns, which is called for every answer given outside `Machine.receive`.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_IFREG
from typing import TYPE_CHECKING, Final

from resmgr.dispatch import Buffer
from resmgr.fuse import changing, formats, overdue
from resmgr.fuse.formats import AttrTuple
from resmgr.fuse.inode import STREAMS, Node
from resmgr.fuse.options import FuseOptions
from resmgr.fuse.request import Request, told

if TYPE_CHECKING:
    from resmgr.fuse.leases import Leases

OutputItem = bytes | tuple[Buffer, ...]
Valid = tuple[int, int, int, int]
"""Validity of an entry and of attributes, seconds; their nanoseconds."""
NOT_VALID: Valid = (0, 0, 0, 0)

DEVICES: Final = frozenset((S_IFCHR, S_IFBLK, S_IFIFO))
_OUT_HEADER: Final = formats.OUT_HEADER.pack
_NO_FIELDS: Final = (0,) * 16
_ENTRY_REPLY: Final = formats.ENTRY_REPLY.pack
_ATTR_REPLY: Final = formats.ATTR_REPLY.pack


class Answers:
    """The answering half of `Core`."""

    leases: Leases

    def __init__(self, options: FuseOptions) -> None:
        self.options = options
        self.output: list[OutputItem] = []
        self.just_answered: list[Request] = []
        """Requests whose answers are among `output`; who clears that clears it."""
        self.on_output: Callable[[], None] = lambda: None
        self.receiving = False
        self.at_home = False
        """Set when a request was answered without a message to anybody; the session takes it away."""
        self.errors: dict[tuple[int, int], int] = defaultdict(int)
        """Error answers by (opcode, errno)."""
        self.drops: dict[str, int] = defaultdict(int)
        """What did not go the straight way, by name."""
        self.outstanding: dict[int, Request] = {}
        self.on_answered: Callable[[], None] | None = None
        """Called for each request that is not outstanding any more, while something waits for that."""
        entry_s, entry_ns = divmod(round(options.entry_valid * formats.NSEC), formats.NSEC)
        attr_s, attr_ns = divmod(round(options.attr_valid * formats.NSEC), formats.NSEC)
        self._valid = (entry_s, attr_s, entry_ns, attr_ns)
        self._unsure = (entry_s, 0, entry_ns, 0)

    def emit(self, item: OutputItem) -> None:
        self.output.append(item)
        if not self.receiving:
            self.on_output()

    def take_back(self, node: Node) -> None:
        """Tell the kernel that what it was told of *node*'s attributes is not so. It waits for nothing to take that."""
        node.doubt_attr()
        self.emit(formats.inval_inode(node.nodeid))

    def _finish(self, request: Request) -> None:
        request.answered = True
        self.just_answered.append(request)
        if request.at_server:
            overdue.given_up(request)
        if request.changes:
            changing.doubt(request)
        if self.outstanding:
            self.outstanding.pop(request.unique, None)
            if self.on_answered is not None:
                self.on_answered()

    def error(self, request: Request, code: int) -> None:
        """Answer with errno *code*; 0 is success without data."""
        if request.answered:
            return
        if not request.unique:
            # Not the kernel's: whoever made it is told.
            request.answered = True
            request.step(request, -code, b"")
            return
        self._finish(request)
        if code:
            self.errors[request.opcode, code] += 1
        self.emit(_OUT_HEADER(16, -code, request.unique))

    def failed(self, request: Request, status: int) -> None:
        """Answer with the errno of a negative *status*."""
        self.error(request, told(status))

    def bad_reply(self, request: Request) -> None:
        self.drops["bad_reply"] += 1
        self.error(request, errno.EIO)

    def answer(self, request: Request, reply: bytes) -> None:
        """Answer with a whole reply, header included."""
        if not request.answered:
            self._finish(request)
            self.emit(reply)

    def answer_data(self, request: Request, *parts: Buffer) -> None:
        """Answer with data; nothing is joined."""
        if not request.answered:
            self._finish(request)
            self.emit((_OUT_HEADER(16 + sum(map(len, parts)), 0, request.unique), *parts))

    def answer_entry(self, request: Request, node: Node, valid: Valid | None = None) -> None:
        """Answer that the name leads to *node*, which counts as a lookup. *valid*: as for `entry_fields`."""
        if not request.answered:
            self._finish(request)
            node.lookups += 1
            self.emit(_ENTRY_REPLY(144, 0, request.unique, *self.entry_fields(node, valid)))

    def answer_made(self, request: Request, node: Node) -> None:
        """`answer_entry` to MKNOD. The kernel refuses another type than it asked for, so this once a device or FIFO is told as what it is,
        and not to be believed: the next lookup shows it as a file like any other."""
        if request.answered or node.attr[1] & 0o170000 not in DEVICES:
            self.answer_entry(request, node)
            return
        self._finish(request)
        node.lookups += 1
        fields = self.attr_fields(node)
        if self.options.devices_as_files:
            fields = formats.attr_fields(node.attr, fields[0], node.attr[1])
        self.emit(_ENTRY_REPLY(144, 0, request.unique, node.nodeid, 0, 0, 0, 0, 0, *fields))

    def answer_absent(self, request: Request, seconds: float) -> None:
        """Answer that the name does not exist, which the kernel may believe for *seconds*; at least for `negative_valid`, unless they are
        less than 0."""
        if seconds >= 0:
            seconds = max(seconds, self.options.negative_valid)
        if seconds <= 0:
            self.error(request, errno.ENOENT)
            return
        whole, nanoseconds = divmod(round(seconds * formats.NSEC), formats.NSEC)
        self.answer(request, _ENTRY_REPLY(144, 0, request.unique, 0, 0, whole, 0, nanoseconds, 0, *_NO_FIELDS))

    def answer_attr(self, request: Request, node: Node, valid: Valid | None = None) -> None:
        """Answer with attributes. *valid*: as for `entry_fields`."""
        if not request.answered:
            self._finish(request)
            fields = self.entry_fields(node, valid)
            self.emit(_ATTR_REPLY(120, 0, request.unique, fields[3], fields[5], *fields[6:]))

    def entry_fields(self, node: Node, valid: Valid | None = None) -> tuple[int, ...]:
        """Fields of ENTRY_LAYOUT for *node*; what they say is remembered as told. *valid*: what `left` gave, for what is not fresh."""
        behind = node.behind
        if behind is not None and behind.outdates(node.attr_at):
            node.attr = behind.adjusted(node.attr)
            return (node.nodeid, 0, *self._unsure, *self.attr_fields(node))
        if node.mode & 0o170000 in STREAMS:
            # Looked up at each open.
            valid = (0, (valid or self._valid)[1], 0, (valid or self._valid)[3])
        elif node.attr_sure or node.name_sure:
            valid = self.leases.valid(node, valid or self._valid)
        elif node.parent is not None and node.parent.lease is not None and node.parent.lease.overtaken(node.name, node.attr_at):
            valid = NOT_VALID
        return (node.nodeid, 0, *(valid or self._valid), *self.attr_fields(node))

    def left(self, age: float) -> Valid:
        """How long the kernel may believe an entry and attributes that were asked for *age* seconds ago."""
        options = self.options
        entry_s, entry_ns = divmod(max(0, round((options.entry_valid - age) * formats.NSEC)), formats.NSEC)
        attr_s, attr_ns = divmod(max(0, round((options.attr_valid - age) * formats.NSEC)), formats.NSEC)
        return (entry_s, attr_s, entry_ns, attr_ns)

    def attr_fields(self, node: Node) -> tuple[int, ...]:
        """Fields of ATTR_LAYOUT for *node*; what they say is remembered as told."""
        attr = node.attr
        mode = attr[1]
        if mode & 0o170000 in DEVICES and self.options.devices_as_files:
            mode = S_IFREG | mode & 0o7777
        node.told = attr
        node.fresh = False
        if self.options.owner is not None:
            attr = owned(attr, self.options.owner)
        return formats.attr_fields(attr, (attr[0] ^ node.server.salt) or 1, mode)


def owned(attr: AttrTuple, owner: tuple[int, int]) -> AttrTuple:
    """*attr* with another user and group."""
    return (attr[0], attr[1], attr[2], owner[0], owner[1], attr[5], attr[6], attr[7], attr[8], attr[9], attr[10], attr[11], attr[12])
