"""Operations on names: LOOKUP, MKDIR, MKNOD, SYMLINK, LINK, UNLINK, RMDIR, RENAME, READLINK."""

from __future__ import annotations

import errno
from math import inf, nextafter
from typing import Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.fuse import changing, formats, owned
from resmgr.fuse.core import CONNECT, ENTRY_MAX, Core, Found
from resmgr.fuse.formats import BODY, AttrTuple, device_64, name_at, names_at, strings_at
from resmgr.fuse.inode import JOINED, Node, same_type
from resmgr.fuse.removals import unsaid
from resmgr.fuse.request import Request, Step
from resmgr.fuse.walk import RETRIES_MAX
from resmgr.iomsg import LOOKUP_WATCH, MAKE, MKDIR_WATCH, PATH_MAX, RENAME, SURE, SYMLINK, Connect

RENAME_EXCHANGE: Final = 2


def lookup(core: Core, request: Request, view: memoryview) -> None:
    request.name = name_at(view, BODY)
    node = request.node
    if core.replaced.kept and (kept := core.replaced.find(request)) is not None:
        replacing = core.nodes.enter(node, request.name, kept.found.server, kept.attr)
        replacing.attr_at = kept.at
        core.leases.entered(node, request.name, replacing, kept.at, request.user)
        core.answer_entry(request, replacing, core.left(request.at - kept.at))
        return
    if node.lease is not None and core.leases.lookup(request):
        return
    listed = core.ahead.find(request)
    if listed is None or not _known(core, request, *listed):
        _ask(core, request)


def _ask(core: Core, request: Request) -> None:
    flags = LOOKUP_WATCH if core.leases.wanted(request.node.children.get(request.name)) else 0
    core.on_base(request, request.node, CONNECT, Connect.LOOKUP, flags, b"", request.name, ENTRY_MAX, _looked_up)


def _overtaken(request: Request, status: int, reply: Buffer) -> bool:
    """Whether the answer is of before a change of the name that was made from here and answered since: then it is asked again. The kernel
    asks whether a name leads where it did without the lock of its directory."""
    core, directory = request.core, request.node
    child = directory.children.get(request.name)
    if child is None or request.retries >= RETRIES_MAX or not core.logs.since(directory, request.name, nextafter(request.at, inf)):
        return False
    if status == 0:
        found, attr = core.entry(request, reply)
        if found.server is child.server and attr[0] == child.ino and same_type(child, attr):
            return False
    elif status != -errno.ENOENT:
        return False
    core.drops["looked_up_again"] += 1
    if status == 0:
        core.close_entry(request, reply)
    request.retries += 1
    request.at = core.dispatch.now()
    request.via = None
    _ask(core, request)
    return True


def _known(core: Core, request: Request, attr: AttrTuple, at: float, sure: float) -> bool:
    """Answer from what was read ahead, asked for at *at*, for leases at *sure*. False: something newer speaks against it, so the server is
    asked."""
    directory, name = request.node, request.name
    other = core.nodes.of(directory.server, attr)
    if other is not None and (other.attr_at > at or other.changed >= at or (other.behind is not None and other.behind.outdates(at))):
        return False
    node = directory.children.get(name)
    if node is not None:
        if node.server is not directory.server or node.changed >= at or (node.behind is not None and node.behind.outdates(at)):
            return False
        if node.attr_at > at:
            # Asked for later, by another way; that the name leads there is what was read ahead.
            if node.ino != attr[0] or not same_type(node, attr):
                return False
            attr = node.attr
    node = core.nodes.enter(directory, name, directory.server, attr)
    if node.attr_at < at:
        node.attr_at = at
    core.leases.entered(directory, name, node, sure, request.user)
    core.drops["ahead_hits"] += 1
    core.at_home = True
    core.answer_entry(request, node, core.left(request.at - at))
    return True


def _looked_up(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if _overtaken(request, status, reply):
        return
    if status == -errno.EACCES:
        core.ahead.forget_user(request.node, request.connection)
    elif status == -errno.ENOENT:
        _forget_name(core, request.node, request.name)
        core.answer_absent(request, core.leases.absent(request))
        return
    _entered(request, status, reply)
    if status == 0:
        core.ahead.looked_up(request)
        core.leases.searched(request)


def _entered(request: Request, status: int, reply: Buffer) -> None:
    """The reply is an entry for the request's name in the request's directory."""
    core = request.core
    if status < 0:
        core.failed(request, status)
        return
    core.answer_entry(request, core.enter(request, request.node, request.name, *core.entry(request, reply)))


def _forget_name(core: Core, parent: Node, name: bytes) -> None:
    child = parent.children.get(name)
    if child is not None:
        core.nodes.unname(child, parent, name)


def mkdir(core: Core, request: Request, view: memoryview) -> None:
    mode, umask = formats.MKDIR_IN.parse(view, BODY)
    request.name = name_at(view, BODY + formats.MKDIR_IN.size)
    fixed = MAKE.pack(mode & 0o7777, umask, 0)
    changing.changes_name(request, request.node, request.name)
    flags = MKDIR_WATCH if core.leases.on else 0
    core.on_base(request, request.node, CONNECT, Connect.MKDIR, flags, fixed, request.name, ENTRY_MAX, _made_directory)


def _made_directory(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if status < 0:
        core.failed(request, status)
        return
    found, attr = core.entry(request, reply)
    before = request.node.children.get(request.name)
    node = _made_new(request, found, attr)
    if found.empty and node is not before:
        core.leases.empty(node, request)
    core.answer_entry(request, node)


def _made_new(request: Request, found: Found, attr: AttrTuple) -> Node:
    """The node of what the request has made under its name."""
    core = request.core
    changing.changed(request)
    node = core.enter(request, request.node, request.name, found, attr)
    owned.believe(request)
    return node


def mknod(core: Core, request: Request, view: memoryview) -> None:
    mode, rdev, umask, _ = formats.MKNOD_IN.parse(view, BODY)
    request.name = name_at(view, BODY + formats.MKNOD_IN.size)
    fixed = MAKE.pack(mode, umask, device_64(rdev))
    changing.changes_name(request, request.node, request.name)
    core.on_base(request, request.node, CONNECT, Connect.MKNOD, 0, fixed, request.name, ENTRY_MAX, _made)


def _made(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if status < 0:
        core.failed(request, status)
        return
    core.answer_made(request, _made_new(request, *core.entry(request, reply)))


def symlink(core: Core, request: Request, view: memoryview) -> None:
    # The kernel sends the name first, then the text.
    (request.name,) = names_at(view, BODY, 1)
    _, text = strings_at(view, BODY, 2)
    if text.startswith(b"/") and core.options.transform_links:
        root = root_of(core, request.node)
        if root and (text + b"/").startswith(root + b"/"):
            text = text[len(root) :] or b"/"
    path = request.name + text
    changing.changes_name(request, request.node, request.name)
    core.on_base(request, request.node, CONNECT, Connect.SYMLINK, 0, SYMLINK.pack(len(request.name)), path, ENTRY_MAX, _made_link)


def _made_link(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if status < 0:
        core.failed(request, status)
        return
    core.answer_entry(request, _made_new(request, *core.entry(request, reply)))


def link(core: Core, request: Request, view: memoryview) -> None:
    (old_id,) = formats.LINK_IN.parse(view, BODY)
    request.name = name_at(view, BODY + formats.LINK_IN.size)
    old = core.nodes.get(old_id)
    if old is None or old.parent is None:
        core.error(request, errno.ESTALE)
        return
    directory = request.node
    changing.changes_node(request, old)
    changing.changes_name(request, directory, request.name)

    def linked(request: Request, status: int, reply: Buffer) -> None:
        if status < 0:
            core.failed(request, status)
            return
        found, attr = core.entry(request, reply)
        if attr[0] == old.ino and found.server is old.server:
            if attr[1] & 0o170000 in JOINED:
                core.nodes.add_name(old, directory, request.name)
            else:
                # Another node for the kernel, of the same object: its number of links is not what it was told.
                core.take_back(old)
        core.answer_entry(request, _made_new(request, found, attr))

    if not old.named:
        _link_open(core, request, old, linked)
        return
    _two_directories(core, request, Connect.LINK, 0, (old.parent, old.name), (directory, request.name), ENTRY_MAX, linked)


def _link_open(core: Core, request: Request, old: Node, step: Step) -> None:
    """Give a name to what has none, by its open file: the OCB is the base, and no path."""
    directory = request.node

    def send(connection: Connection, handle: int) -> None:
        file = old.file_of(connection)
        if file is None:
            # Opened by another user, or on another server.
            core.error(request, errno.EXDEV if old.server is not directory.server else errno.ESTALE)
            return
        fixed = RENAME.pack(handle, 0, 0)
        core.direct(request, connection, (file.ocb, b""), Connect.LINK, 0, fixed, request.name, ENTRY_MAX, step)
        request.via = None

    core.with_handle(request, directory, send)


def rename(core: Core, request: Request, view: memoryview) -> None:
    (new_id,) = formats.RENAME_IN.parse(view, BODY)
    _rename(core, request, view, new_id, 0, formats.RENAME_IN.size)


def rename2(core: Core, request: Request, view: memoryview) -> None:
    new_id, flags = formats.RENAME2_IN.parse(view, BODY)
    _rename(core, request, view, new_id, flags, formats.RENAME2_IN.size)


def _rename(core: Core, request: Request, view: memoryview, new_id: int, flags: int, size: int) -> None:
    old_name, new_name = names_at(view, BODY + size, 2)
    old_dir, new_dir = request.node, core.nodes.get(new_id)
    if new_dir is None:
        core.error(request, errno.ESTALE)
        return
    # What is closed under another name than it was opened by is told to who closes it, too.
    core.handles.hurry()
    changing.changes_name(request, old_dir, old_name)
    changing.changes_name(request, new_dir, new_name)

    def renamed(request: Request, status: int, reply: Buffer) -> None:
        if status < 0:
            core.failed(request, status)
        else:
            changing.changed(request)
            core.nodes.rename(old_dir, old_name, new_dir, new_name, bool(flags & RENAME_EXCHANGE))
            for directory, name, place in ((old_dir, old_name, (new_dir, new_name)), (new_dir, new_name, (old_dir, old_name))):
                moved = place[0].children.get(place[1])
                if moved is not None:
                    core.leases.moved(directory, name, moved)
            if bytes(reply) != SURE:
                # Two names of one file stay both, an exchange leaves the old one to another.
                request.undisturbed = [(lease, name) for lease, name in request.undisturbed if lease.node is new_dir and name == new_name]
            if not flags & RENAME_EXCHANGE:
                owned.believe(request)
            core.error(request, 0)

    _two_directories(core, request, Connect.RENAME, flags, (old_dir, old_name), (new_dir, new_name), ENTRY_MAX, renamed)


def _two_directories(
    core: Core,
    request: Request,
    subtype: int,
    flags: int,
    old: tuple[Node, bytes],
    new: tuple[Node, bytes],
    reply_len: int,
    step: Step,
) -> None:
    """Send a message with the base handles and names of two places. After a stale handle both are got again."""
    request.second = new[0]

    def begin() -> None:
        core.with_handle(request, new[0], send)

    def send(connection: Connection, handle: int) -> None:
        if old[0].parent is not None and old[0].server is not new[0].server:
            core.error(request, errno.EXDEV)
            return
        request.again = begin
        core.on_base(request, old[0], CONNECT, subtype, flags, RENAME.pack(handle, len(old[1]), 0), old[1] + new[1], reply_len, step)

    begin()


def unlink(core: Core, request: Request, view: memoryview) -> None:
    request.name = name_at(view, BODY)
    if core.removals.limit and core.removals.take(request):
        return
    # What was closed a moment ago holds its space: who removes a file to have room has it then.
    core.handles.hurry()
    changing.changes_name(request, request.node, request.name)
    core.on_base(request, request.node, CONNECT, Connect.UNLINK, 0, b"", request.name, ENTRY_MAX, _removed)


def rmdir(core: Core, request: Request, view: memoryview) -> None:
    request.name = name_at(view, BODY)
    changing.changes_name(request, request.node, request.name)
    core.on_base(request, request.node, CONNECT, Connect.RMDIR, 0, b"", request.name, ENTRY_MAX, _removed_directory)


def _removed(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if status < 0:
        core.failed(request, status)
    else:
        _is_gone(core, request)
        core.removals.done(request)


def _removed_directory(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if status == -errno.ENOTEMPTY and (error := unsaid(request.node.children.get(request.name), request.user, request.at)):
        # Something is in it, perhaps since that failed.
        core.error(request, error)
    elif status < 0:
        core.failed(request, status)
    else:
        _is_gone(core, request)
        core.error(request, 0)


def _is_gone(core: Core, request: Request) -> None:
    changing.changed(request)
    _forget_name(core, request.node, request.name)
    owned.believe(request)
    core.removals.removed(request.node, request.user)


def readlink(core: Core, request: Request, view: memoryview) -> None:
    core.on_leaf(request, request.node, Connect.READLINK, 0, b"", ENTRY_MAX, _read_link)


def _read_link(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if status >= 0 and not request.named(request.node):
        # The kernel would keep it for as long as it knows the link.
        status = -errno.ESTALE
    if status < 0:
        # EINVAL: something else has its name now. The kernel takes it for a link, and walks the path again.
        core.failed(request, -errno.ESTALE if status == -errno.EINVAL else status)
        return
    text = bytes(reply)
    if len(text) >= PATH_MAX or text.find(b"\0") >= 0:
        core.bad_reply(request)
        return
    if text.startswith(b"/") and core.options.transform_links:
        text = root_of(core, request.node) + text
        if len(text) >= PATH_MAX:
            core.error(request, errno.ENAMETOOLONG)
            return
    core.answer_data(request, text)


def root_of(core: Core, node: Node) -> bytes:
    """The path under which this machine sees the root of the node that serves *node*; empty for what this machine serves itself."""
    nd = node.server.key[0]
    if nd == 0:
        return b""
    top = node
    while top.parent is not None and top.parent.server.key[0] == nd:
        top = top.parent
    if top.above:
        return core.part.links
    path = top.path()
    return core.mountpoint if path == b"/" else core.mountpoint.rstrip(b"/") + path
