"""What lsm-qnet does before it is attached, and what may take long: it reads configuration and keys, imports what it will serve with, and
mounts /net, which nobody serves yet. All of it blocks, and none of it needs the stack: `Module.prepare` of `stack.core.module`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from pathlib import Path

import attrs

from qnetpy import config as configuration
from qnetpy.config import Config
from qnetpy.fastsuites import fast_suites, processor_flags
from qnetpy.handed import Handed, take
from qnetpy.link.machine import LinkTimers
from qnetpy.link.session import RekeyPolicy
from qnetpy.members.store import DirectoryStore, Kept
from qnetpy.netfs import record
from qnetpy.netfs.mount import NET_OPTIONS
from qnetpy.parameters import QnetSettings
from qnetpy.settings import SettingsError
from resmgr.fuse.mount import Mount, private_namespace
from resmgr.fuse.options import parse_options
from resmgr.system import System
from stack.core.errors import ModuleError

log = logging.getLogger(__name__)


@attrs.frozen
class QnetOptions:
    """Options of the module. What is empty comes from the configuration file."""

    config: str = ""
    keys: str = ""
    mount: str = ""
    """Where /net is mounted; `none`: nowhere."""
    serve: bool = True
    """Serve the files and programs of this machine to other nodes, under the access rules."""


@attrs.define(eq=False)
class PreparedQnet:
    """`stack.core.module.Prepared`. `point`: where /net is to be, empty for nowhere."""

    settings: Config
    link: QnetSettings
    keys: DirectoryStore
    kept: Kept
    point: str
    locked: frozenset[tuple[int, int, str, bool]] = frozenset()
    """What other nodes had locked here when the daemon before ended: `resmgr.hostfs.grace`."""
    handed: list[Handed] = attrs.Factory(list)
    """Mounts of the daemon before; who takes them empties the list."""
    left: list[record.Left] = attrs.Factory(list)
    """Mounts of one that was killed. They are not written down any more when the first one of this daemon is."""
    _mount: tuple[Mount, int] | None = None
    """Of the mount namespace of the node's users, with its /dev/fuse."""

    def take_mount(self, system: System) -> tuple[Mount, int]:
        """The mount of /net and its /dev/fuse, which are the caller's from now on. In dispatch context. ModuleError when there is none and
        none can be made: a process that has no namespace of its own gets one here, because it must be the dispatch's thread that moves."""
        if self._mount is None:
            try:
                if system.namespace is None:
                    system.namespace = private_namespace()
                self._mount = _mounted(self.settings, self.point, system.namespace)
            except OSError as error:
                raise ModuleError(error.errno or errno.EPERM, error.strerror or str(error)) from None
        taken, self._mount = self._mount, None
        return taken

    def close(self) -> None:
        """Unmount what was not taken."""
        while self.handed:
            os.close(self.handed.pop().fd)
        if self._mount is not None:
            (mount, fd), self._mount = self._mount, None
            mount.detach()
            os.close(fd)


def prepare(system: System, options: QnetOptions) -> PreparedQnet:
    """`Module.prepare`."""
    try:
        settings = configuration.load(options.config or None)
    except SettingsError as error:
        raise ModuleError(errno.EINVAL, str(error)) from None
    except OSError as failed:
        raise ModuleError(failed.errno or errno.EIO, f"{failed.filename}: {failed.strerror}") from None
    try:
        keys = DirectoryStore(Path(options.keys or settings.node.key_dir), settings.node.key_command)
        kept = keys.load()
    except OSError as error:
        raise ModuleError(error.errno or errno.EIO, error.strerror or str(error)) from None
    name = kept.identity.name
    if settings.node.name not in ("", name):
        raise ModuleError(errno.EINVAL, f"the configuration calls this node {settings.node.name}, its certificate {name}")
    locked: frozenset[tuple[int, int, str, bool]] = frozenset()
    if options.serve:
        # Which the system imports when it serves files and starts programs.
        import resmgr.hostfs.manager
        import resmgr.procmgr.manager  # noqa: F401
        from resmgr.hostfs import grace
        from resmgr.hostfs.reopen import boot_id

        locked = frozenset(grace.read(locks_file(settings), boot_id()))
    point = options.mount or (settings.qnet.mount.point if settings.qnet.mount.enabled else "none")
    left = record.left(settings.node.run_dir)
    made = PreparedQnet(settings, link_settings(settings), keys, kept, "" if point == "none" else point, locked, take(log.error), left)
    kept_point = any(one.main and one.point == made.point for one in made.handed)
    if made.point and system.namespace is not None and not kept_point:
        try:
            made._mount = _mounted(settings, point, system.namespace)
        except OSError as error:
            raise ModuleError(error.errno or errno.EIO, error.strerror or str(error)) from None
    return made


def _mounted(settings: Config, point: str, namespace: int) -> tuple[Mount, int]:
    """Mount /net; blocks. OSError in one sentence."""
    try:
        with contextlib.suppress(FileExistsError):
            # Not exist_ok, which looks at what is there: the dead mount of a daemon that was killed, which mounting removes.
            os.makedirs(point, 0o755)
    except OSError as error:
        raise OSError(error.errno, f"{point}: {error.strerror}") from None
    options = parse_options(settings.qnet.mount.options, NET_OPTIONS)
    mount = Mount(point, options, namespace)
    return mount, mount.attach({one.device for one in record.left(settings.node.run_dir)})


def locks_file(settings: Config) -> str:
    """Where it is noted what other nodes have locked."""
    return os.path.join(settings.node.run_dir, "remote-locks")


def link_settings(settings: Config) -> QnetSettings:
    """What the link protocol is told."""
    timers = settings.qnet.timers
    return QnetSettings(
        ethertype=settings.qnet.ethertype,
        interfaces=frozenset(settings.qnet.interfaces),
        solicit=settings.qnet.discovery in ("auto", "ethernet"),
        suites=settings.qnet.suites or fast_suites(processor_flags()),
        timers=LinkTimers(timers.heartbeat, timers.suspect, timers.down),
        rekey=RekeyPolicy(after=timers.rekey),
        paths=settings.qnet.paths,
        policies={entry.node: entry.paths for entry in settings.qnet.policies},
    )
