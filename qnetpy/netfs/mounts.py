"""All mounts of a node: that of /net which its configuration asks for, and those that people ask for while it runs.

mount(2) and umount2(2) are called in a thread, since they look at the mountpoint, which may lie on a file system that does not answer, or
in another mount of this node, whose answer is this node's to give. Each mount is a
session of its own with options of its own; they share nothing but the /net manager. What is unmounted by somebody
else, by umount(8), is forgotten here when the kernel says so.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from weakref import WeakKeyDictionary

import attrs

from qnetpy.handed import Handed
from qnetpy.mountsource import parse_source, source_text
from qnetpy.netfs import record
from qnetpy.netfs.mount import NET_OPTIONS, NetMount
from resmgr.channel import CHID_PATHMGR, ND_LOCAL, PID_SYSTEM, Connection, Credentials, Kernel
from resmgr.dispatch import Dispatch
from resmgr.fuse.machine import Machine
from resmgr.fuse.mount import Device, Mount
from resmgr.fuse.options import WHOLE, FuseOptions, OptionError, Part, options_text, parse_options
from resmgr.fuse.state import State
from resmgr.iomsg import Target
from resmgr.users import Accounts

log = logging.getLogger(__name__)
MOUNTS_MAX = 64
"""Each has a thread that watches for copies of it."""
Answer = Callable[[Mapping[str, object]], None]
Request = Mapping[str, object]


class NetMounts:
    """Dispatch context. *namespace* tells the mount namespace of the node's users; None: mounting is not possible. *run_dir*: where it is
    written down what is mounted, for a daemon that comes after one that was killed; empty: nowhere. *left*: what such a one has left."""

    def __init__(
        self,
        dispatch: Dispatch,
        kernel: Kernel,
        accounts: Accounts,
        root: Target,
        namespace: Callable[[], int | None],
        run_dir: str = "",
        left: Iterable[record.Left] = (),
    ) -> None:
        self._run_dir = run_dir
        self._record = record.Record(run_dir)
        self._left: dict[str, set[Device]] = {}
        """Devices by their points."""
        for one in left:
            self._left.setdefault(one.point, set()).add(one.device)
        self._dispatch = dispatch
        self._kernel = kernel
        self._accounts = accounts
        self._root = root
        self._namespace = namespace
        self._mounts: dict[str, NetMount] = {}
        self._numbers: WeakKeyDictionary[NetMount, int] = WeakKeyDictionary()
        self._next = count()
        self._underway: set[str] = set()
        self.main: NetMount | None = None
        """The one of the configuration."""
        self._closed = False

    def serve(self, mount: Mount, device: int, on_end: Callable[[str], None], part: Part = WHOLE) -> NetMount:
        """Serve what was mounted before. OSError if that cannot be; then it is unmounted."""
        try:
            made = self._made(mount, device, on_end, part)
        except OSError:
            os.close(device)
            mount.detach(abort=True)
            raise
        made.start()
        return made

    def _made(self, mount: Mount, device: int, on_end: Callable[[str], None], part: Part) -> NetMount:
        point = mount.mountpoint

        def ended(reason: str) -> None:
            self._mounts.pop(point, None)
            self._write_down()
            made.gone()
            on_end(reason)

        made = self._mounts[point] = NetMount(self._dispatch, self._kernel, self._accounts, self._root, mount, device, ended, part)
        self._numbers[made] = next(self._next)
        self._write_down()
        return made

    def _write_down(self, *, now: bool = False) -> None:
        if not self._run_dir:
            return
        write = self._record.writing(record.Left(one.point, one.device) for one in self._mounts.values() if one.device is not None)
        if now:
            write()
        else:
            self._dispatch.call_blocking(write, lambda _: None)

    @property
    def closed(self) -> bool:
        """Nothing is served any more, or is about to be."""
        return self._closed

    def points(self) -> list[str]:
        return list(self._mounts)

    def forget(self, name: bytes) -> None:
        """What is said of the entry *name* of /net may not be true any more."""
        for mount in self._mounts.values():
            mount.forget(name)

    def silent(self, nd: int, silent: bool) -> None:
        """Node *nd* tells nothing at the moment, or does again."""
        for mount in self._mounts.values():
            mount.silent(nd, silent)

    def machines(self) -> list[tuple[int, str, Machine]]:
        """A number that no other mount had, mountpoint, and who answers the kernel."""
        return [(self._numbers[mount], mount.point, mount.machine) for mount in self._mounts.values()]

    def names(self) -> int:
        """How many names the kernel knows of them all."""
        return sum(len(mount.machine.nodes) for mount in self._mounts.values())

    def facts(self) -> list[dict[str, object]]:
        """As JSON can say it."""
        return [_facts(mount) for mount in self._mounts.values()]

    # ---- what the control channel is asked

    def mount(self, request: Request, answer: Answer) -> None:
        """`{"source": TEXT, "point": PATH, "options": TEXT}`."""
        source, point, text = (request.get(name, "") for name in ("source", "point", "options"))
        if not isinstance(source, str) or not isinstance(point, str) or not isinstance(text, str) or not os.path.isabs(point):
            answer({"error": "a source, an absolute path and options are needed"})
            return
        try:
            self.add(source, point, text, lambda why: answer({"error": why} if why else {"point": point}))
        except ValueError as error:
            answer({"error": str(error)})

    def umount(self, request: Request, answer: Answer) -> None:
        """`{"point": PATH}`."""
        if self._closed:
            answer({"error": "the node ends"})
            return
        point = request.get("point")
        mount = self._mounts.get(point) if isinstance(point, str) else None
        if mount is None:
            answer({"error": f"{point} is no mount of this node"})
            return
        if mount.point in self._underway:
            answer({"error": f"{point} is being unmounted already"})
            return
        self._underway.add(mount.point)

        def detached(result: BaseException | None) -> None:
            self._underway.discard(mount.point)
            mount.end()
            answer({"point": mount.point})

        self._dispatch.call_blocking(mount.detach, detached)

    def add(self, source: str, point: str, text: str, done: Callable[[str], None]) -> None:
        """Mount *source* on *point*, and tell *done* why not, or nothing. ValueError (`OptionError`) for what is no source or option."""
        names = parse_source(source)
        options = parse_options(text, NET_OPTIONS)
        point = os.path.normpath(point)
        if point in self._mounts or point in self._underway:
            raise OptionError(f"{point} is a mount of this node already")
        if len(self._mounts.keys() | self._underway) >= MOUNTS_MAX:
            raise OptionError(f"{MOUNTS_MAX} mounts are the most")
        namespace = self._namespace()
        if namespace is None:
            raise OptionError("this daemon has no mount namespace of its own: it would wait for itself")
        links = b"" if self.main is None or not names else os.fsencode(self.main.point) + b"/" + names[0]
        part = Part(names, links)
        options = _named(options, names)
        mount = Mount(point, options, namespace)
        self._underway.add(point)

        left = self._left.pop(point, set())

        def attach() -> int:
            with suppress(FileExistsError):
                # Not exist_ok, which looks at what is there: the dead mount of a daemon that was killed, which mounting removes.
                os.makedirs(point, 0o755)
            return mount.attach(left)

        def attached(device: int | BaseException) -> None:
            self._underway.discard(point)
            if isinstance(device, BaseException):
                why = device.strerror if isinstance(device, OSError) and device.strerror else str(device)
                done(why if isinstance(device, OSError) and device.errno != errno.EEXIST else f"{point}: {why}")
                return
            if self._closed:
                mount.detach()
                os.close(device)
                done("the node ends")
                return
            try:
                self.serve(mount, device, lambda reason: log.info("%s is not mounted any more: %s", point, reason), part)
            except OSError as error:
                done(f"{point} cannot be served: {error.strerror}")
                return
            done("")

        self._dispatch.call_blocking(attach, attached)

    # ---- from one daemon to the next

    def hand_over(self, name_of: Callable[[int], str | None], done: Callable[[list[Handed]], None]) -> None:
        """Serve nothing any more, but leave it mounted: *done* is given what the next daemon has to know, with descriptors that are the
        caller's. There are no mounts afterwards. One that is being unmounted is not among them."""
        self._closed = True
        mounts = [mount for mount in self._mounts.values() if mount.point not in self._underway]
        handed: dict[int, Handed] = {}

        def one(number: int, mount: NetMount, fd: int, state: State) -> None:
            source, options = source_text(mount.part.names), options_text(mount.options, NET_OPTIONS)
            assert mount.device is not None
            handed[number] = Handed(mount.point, mount is self.main, source, options, mount.device, state.told(), fd)
            if len(handed) == len(mounts):
                self._mounts.clear()
                self._write_down(now=True)
                self.main = None
                done([handed[at] for at in range(len(mounts))])

        if not mounts:
            done([])
        for number, mount in enumerate(mounts):
            mount.hand_over(name_of, partial(one, number, mount))

    def take(self, handed: Handed, number_of: Callable[[str], int | None], on_end: Callable[[str], None]) -> NetMount:
        """Take one mount of an earlier daemon, and its descriptor. Served when `NetMount.resume` is called. ValueError if what was told of
        it cannot be read, OSError; then it is unmounted."""
        made: NetMount | None = None
        mount: Mount | None = None
        try:
            names = parse_source(handed.source) if handed.source else ()
            options = _named(parse_options(handed.options, NET_OPTIONS), names)
            mount = Mount(handed.point, options, self._namespace())
            mount.adopt(handed.number)
            links = b"" if self.main is None or not names else os.fsencode(self.main.point) + b"/" + names[0]
            made = self._made(mount, handed.fd, on_end, Part(names, links))
            made.take(State.parse(handed.state), number_of, self._gone)
        except BaseException:
            if made is None:
                os.close(handed.fd)
            else:
                self._mounts.pop(made.point, None)
                self._write_down()
                made.close()
            if mount is not None and mount.mounted:
                mount.detach(abort=True)
            raise
        return made

    def drop(self, handed: Handed) -> None:
        """Unmount one mount of an earlier daemon; its descriptor is closed. OSError."""
        os.close(handed.fd)
        mount = Mount(handed.point, NET_OPTIONS, self._namespace())
        mount.adopt(handed.number)
        mount.detach(abort=True)

    def _gone(self, uid: int, gid: int) -> Connection:
        """A closed connection of a user."""
        connection = self._kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_PATHMGR, Credentials(uid, gid, (), PID_SYSTEM))
        connection.close()
        return connection

    def close(self) -> None:
        """Unmount all of them. None is served any more before that, or one inside another would wait for this node."""
        self._closed = True
        mounts = list(self._mounts.values())
        for mount in mounts:
            mount.close()
        for mount in mounts:
            mount.detach(abort=True)
        self._mounts.clear()
        self._write_down(now=True)
        self.main = None


def _facts(mount: NetMount) -> dict[str, object]:
    counted = mount.machine.statistics()
    return {
        "point": mount.point,
        "source": source_text(mount.part.names) or "/net",
        "options": options_text(mount.options, NET_OPTIONS),
        "waiting": counted.outstanding,
        "requests": counted.requests,
        "errors": counted.errors,
        "events": counted.events,
    }


def _named(options: FuseOptions, names: tuple[bytes, ...]) -> FuseOptions:
    """With the source as mount(8) and df(1) show it."""
    return attrs.evolve(options, source=source_text(names)) if names else options
