"""The module that `io-pkt -p qnet` loads: makes the node's Qnet of configuration and keys, and serves /net. Read this first.

    io-pkt -d packet ifname=eth0 -p qnet config=/etc/qnet/qnet.toml

What takes long comes before, and in a worker thread when frames flow: files are read, /net is mounted (`qnetpy.prepared`). What it starts
then, in this order: this node's files and processes for other nodes (under the access rules), the link protocol with discovery
(`qnetpy.qnet`), the live statistics, and whoever serves the mount. `detach` undoes it in reverse: goodbye is said first.
"""

from __future__ import annotations

import errno
import hmac
import json
import logging
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import attrs

from qnetpy import facts
from qnetpy.accessfacts import AccessFacts
from qnetpy.channels import CHID_CONTROL
from qnetpy.config import Config
from qnetpy.control import Control, suites_verb
from qnetpy.discovery.hint import TOKEN_LENGTH, Discovery, JoinOffer
from qnetpy.discovery.lookup import LookupDiscovery
from qnetpy.discovery.several import SeveralDiscovery
from qnetpy.discovery.static import StaticDiscovery, StaticPeer
from qnetpy.discovery.zeroconf import ZeroconfDiscovery
from qnetpy.enrol.service import EnrolmentService
from qnetpy.handed import NAMES_MAX, give, most
from qnetpy.members import commands
from qnetpy.members.membership import Membership
from qnetpy.netfs.mounts import NetMounts
from qnetpy.netfs.resumed import Resumed
from qnetpy.netfs.stats import StatsFile
from qnetpy.policy import announcers, attach_rules, policy, reserved_names, spawn_rules
from qnetpy.prepared import PreparedQnet, QnetOptions, locks_file, prepare
from qnetpy.qnet import Qnet
from qnetpy.resume import ResumeWatch
from qnetpy.settings import SettingsError
from qnetpy.stuck import Stuck, summary
from resmgr.access import Policy
from resmgr.channel import Channel, Message
from resmgr.ids import node_of
from resmgr.procmgr.inherit import catch_ignored_signals
from stack.core.errors import ModuleError
from stack.core.module import Context, Kind, Module
from stack.wire.endpoint import PORT_DEFAULT, split_host
from stack.wire.ethernet import mac_bytes

log = logging.getLogger(__name__)
OPEN_FILES = 1 << 19
"""Open files that a daemon with the right to it (CAP_SYS_RESOURCE) lets itself have: the hard limit that systemd gives services."""


@attrs.frozen
class KeptQnet:
    """What the module has besides its options and settings after a restart."""

    suites: tuple[str, ...]


class LsmQnet:
    """The module at work."""

    def __init__(self, context: Context, prepared: PreparedQnet, serve: bool) -> None:
        settings, kept, keys = prepared.settings, prepared.kept, prepared.keys
        self.qnet: Qnet | None = None
        """None only before the start and after the end."""
        self._control: Channel | None = None
        self._membership: Membership | None = None
        self._enrolment: EnrolmentService | None = None
        self._resume: ResumeWatch | None = None
        self._stats: StatsFile | None = None
        self._suites: tuple[str, ...] = ()
        """Chosen at run time; empty for those of the settings."""
        self._began = context.dispatch.now()
        self._mounts: NetMounts | None = None
        self._undo: list[Callable[[], None]] = []
        """What gives the process its own settings back."""
        self._context = context
        self.system = context.system
        self._point = prepared.point
        try:
            self._start(settings, kept.identity.name, serve)
            if self.system.files is not None:
                # The same at the next start: what other nodes' programs have open can be opened again.
                self.system.files.reopening.key = hmac.digest(kept.identity.static_private, b"qnetpy reopen 1", "sha256")
                self.system.files.remember_locks(locks_file(settings), prepared.locked)
                self.system.files.delegations.heed(settings.qnet.timers.suspect, settings.qnet.timers.down)
            membership = self._membership = Membership(context.dispatch, self.system.kernel, kept, keys, context.random)
            zeroconf = ZeroconfDiscovery() if settings.qnet.discovery in ("auto", "zeroconf") else None
            sources = discovery(settings, zeroconf)
            qnet = self.qnet = Qnet(
                *(context.stack, self.system, membership.keyring.identity, prepared.link, sources, context.random),
                *(membership, context.dispatch),
            )
            if self.system.processes is not None:
                self.system.processes.fingerprint = lambda node: _fingerprint(qnet, node)
            issuing = commands.Issuing(membership, context.dispatch)
            enrolment = self._enrolment = EnrolmentService(
                context.dispatch, issuing, context.random, settings.enrol.port, lambda port: self._announce(zeroconf, port)
            )

            self._resume = ResumeWatch(context.dispatch, self._cloned, self._jumped)

            def status() -> dict[str, object]:
                return self._status(qnet, zeroconf)

            mounts = self._mounts = NetMounts(
                *(context.dispatch, self.system.kernel, self.system.accounts, qnet.netfs.target),
                lambda: self.system.namespace,
                settings.node.run_dir,
                prepared.left,
            )
            qnet.netfs.listeners.append(mounts.forget)
            qnet.netfs.heeds.append(mounts.silent)
            verbs = commands.verbs(membership, enrolment, context.dispatch, zeroconf is not None)
            if isinstance(context.kept, KeptQnet):
                self._set_suites(context.kept.suites)
            verbs |= {"suites": suites_verb(self._set_suites)}
            stuck = Stuck(qnet, mounts.machines)
            access = AccessFacts(self.system, qnet.nodes)
            asks = {"waiting": stuck.waiting, "abort": stuck.abort, "exports": access.exports}
            verbs |= {"access": access.access, "mount": mounts.mount, "umount": mounts.umount}
            control = Control(status, lambda: facts.nodes(qnet), verbs, os.geteuid(), asks, self._hand_over)
            self._stats = StatsFile(self.system, status)
            self._control = self.system.kernel.channel(control.handle, chid=CHID_CONTROL, remote=False)
            self._mount_net(mounts, prepared)
        except BaseException:
            self.detach()
            raise

    def _set_suites(self, names: Sequence[str]) -> None:
        assert self.qnet is not None
        self.qnet.set_suites(names)
        self._suites = tuple(names)

    def keep(self) -> KeptQnet | None:
        """`stack.core.module.Keeping`: a cipher that somebody has ruled out at run time must not come back with a restart."""
        return KeptQnet(self._suites) if self._suites else None

    def _cloned(self) -> None:
        if self.qnet is not None:
            log.warning("this virtual machine was resumed or copied: every session begins anew")
            self.qnet.begin_anew("resumed from a snapshot")

    def _jumped(self, seconds: float) -> None:
        if self.qnet is not None:
            log.warning("the clock jumped by %.0f s: new keys for every session", seconds)
            self.qnet.rekey()

    def _announce(self, zeroconf: ZeroconfDiscovery | None, port: int | None) -> None:
        """Let machines on the LAN find where they can join."""
        if zeroconf is not None:
            zeroconf.invite(None if port is None else JoinOffer(self._context.random(TOKEN_LENGTH), port))

    def _start(self, settings: Config, identity_name: str, serve: bool) -> None:
        system = self.system
        system.kernel.node_name = identity_name
        try:
            system.set_policy(policy(settings.access, system.accounts))
            system.rosters.tells = settings.access.tell_accounts
            system.attach_rules = attach_rules(settings.access, system.accounts)
            system.reserved_names = reserved_names(settings.access, system.accounts)
            system.announcers = announcers(settings.access, system.accounts, os.geteuid())
        except (SettingsError, ValueError) as error:
            raise ModuleError(errno.EINVAL, str(error)) from None
        if serve:
            self._serve(settings)

    def _serve(self, settings: Config) -> None:
        mask = os.umask(0)
        self._undo.append(lambda: _set_umask(mask))
        catch_ignored_signals()
        system = self.system
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        if system.open_files is None:
            system.open_files = before
        _raise_open_files(before[1])
        self._undo.append(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, before))
        if system.files is None and system.processes is None:
            self._undo.append(system.stop_serving)
        if system.files is None:
            files = system.serve_files()
            if files.switch.problem:
                log.warning("files: %s", files.switch.problem)
        if system.processes is None:
            try:
                rules = spawn_rules(settings.access.spawn, system.accounts)
            except SettingsError as error:
                raise ModuleError(errno.EINVAL, str(error)) from None
            system.serve_processes(rules, settings.access.spawn.audit or os.path.join(settings.node.run_dir, "audit"))

    def _mount_net(self, mounts: NetMounts, prepared: PreparedQnet) -> None:
        assert self.qnet is not None
        resumed = Resumed(mounts, self._context.dispatch, self.qnet)
        # What is below another mount comes after it.
        handed, prepared.handed[:] = sorted(prepared.handed, key=lambda one: not one.main), []
        for one in handed:
            if one.main and one.point != self._point:
                resumed.drop(one)
                continue
            taken = resumed.take(one, self._ended if one.main else partial(_ended_one, one.point))
            if one.main:
                mounts.main = taken
        if self._point:
            if mounts.main is None:
                mount, device = prepared.take_mount(self.system)
                mounts.main = mounts.serve(mount, device, self._ended)
            if self.system.processes is not None:
                self.system.processes.network = mounts.main.point
        resumed.wait()
        for more in prepared.settings.qnet.mounts:
            if os.path.normpath(more.point) in mounts.points():
                continue
            mounts.add(more.source, more.point, more.options, partial(_mounted, more.point))

    def _hand_over(self, message: Message, request: Mapping[str, object]) -> None:
        """The mounts are given to who asks, for the next daemon."""
        mounts, qnet = self._mounts, self.qnet
        if mounts is None or qnet is None or mounts.closed or len(mounts.points()) > most(request):
            why = f"more than {most(request)} mounts cannot be handed over" if mounts is not None and not mounts.closed else "the node ends"
            message.reply(0, json.dumps({"error": why}).encode())
            return
        if mounts.names() > NAMES_MAX:
            why = f"the kernel knows more than {NAMES_MAX} names of the mounts; echo 2 > /proc/sys/vm/drop_caches has it forget most"
            message.reply(0, json.dumps({"error": why}).encode())
            return

        def name_of(nd: int) -> str | None:
            node = qnet.nodes.by_nd(node_of(nd))
            return None if node is None else node.name

        mounts.hand_over(name_of, lambda handed: give(message, handed))

    def _status(self, qnet: Qnet, zeroconf: ZeroconfDiscovery | None) -> dict[str, object]:
        mounts = self._mounts
        assert mounts is not None
        told = facts.status(qnet, self._context.stack, self._began, None if mounts.main is None else mounts.main.point)
        assert self._membership is not None
        members = commands.facts(self._membership, self._context.dispatch.wall())
        return told | {
            "suites": qnet.suites(),
            "handshake": dict(qnet.machine.handshake_counters),
            "discovery": ({} if zeroconf is None else zeroconf.facts()) | ({} if qnet.ethernet is None else qnet.ethernet.facts()),
            "flood": qnet.screen.facts(),
            "mounts": mounts.facts(),
            "waiting": summary(qnet, mounts.machines()),
            "files": {} if self.system.files is None else {name: count for name, count in self.system.files.counters.items() if count},
            "recalled": [] if self.system.files is None else self.system.files.delegations.facts(),
            "refused": 0 if self.system.files is None else self.system.files.refusals.count,
            "membership": members,
            "names": None if self.system.names is None else self.system.names.facts(),
        }

    def _ended(self, reason: str) -> None:
        log.warning("%s is not mounted any more: %s", self._point, reason)
        if self._mounts is not None:
            self._mounts.main = None
        if self.system.processes is not None:
            self.system.processes.network = ""

    def detach(self) -> None:
        """`Attached`: idempotent."""
        if self.qnet is not None:
            self.qnet.netfs.listeners.clear()
            self.qnet.netfs.heeds.clear()
        if self._mounts is not None:
            self._mounts.close()
            self._mounts = None
        if self._control is not None:
            self._control.destroy()
            self._control = None
        if self._stats is not None:
            self._stats.close()
            self._stats = None
        if self._resume is not None:
            self._resume.close()
            self._resume = None
        if self._enrolment is not None:
            self._enrolment.close()
            self._enrolment = None
        if self._membership is not None:
            try:
                self._membership.close()
            except OSError as error:
                log.error("membership is not stored: %s", error.strerror or error)
            self._membership = None
        if self.qnet is not None:
            self.qnet.detach()
            self.qnet = None
            self.system.set_policy(Policy(self.system.accounts))
        while self._undo:
            self._undo.pop()()


def _ended_one(point: str, reason: str) -> None:
    log.info("%s is not mounted any more: %s", point, reason)


def _mounted(point: str, why: str) -> None:
    """A mount of the configuration was made, or *why* not; the node is up without it."""
    if why:
        log.error("[[qnet.mounts]] %s: %s", point, why)


def _raise_open_files(hard: int) -> None:
    """Each file that programs of any node have open here is a descriptor. Beyond the hard limit only where this process may."""
    for limit in (max(hard, OPEN_FILES), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (ValueError, OSError):
            continue  # not privileged, or above what the kernel allows at all (fs.nr_open)
        return


def _set_umask(mask: int) -> None:
    os.umask(mask)


def _fingerprint(qnet: Qnet, node: str) -> str:
    """Of the certificate of the node, as `openssl x509 -fingerprint -sha256` prints it."""
    link = qnet.machine.links.get(node)
    return "" if link is None else link.peer.certificate.fingerprint


def discovery(settings: Config, zeroconf: ZeroconfDiscovery | None) -> Discovery:
    """The sources of hints that the configuration names; *zeroconf* is the one that listens to mDNS."""
    peers = [StaticPeer(mac_bytes(peer.mac), peer.interface) for peer in settings.qnet.peers if not peer.address]
    port = settings.qnet.udp.port or PORT_DEFAULT
    places = [split_host(peer.address, port) for peer in settings.qnet.peers if peer.address]
    sources: list[Discovery] = [StaticDiscovery(peers)] if peers else []
    if places:
        sources.append(LookupDiscovery(places))
    if zeroconf is not None:
        sources.append(zeroconf)
    return SeveralDiscovery(sources)


def attach(context: Context, options: QnetOptions) -> LsmQnet:
    """Called by the stack's loader."""
    assert isinstance(context.prepared, PreparedQnet)
    return LsmQnet(context, context.prepared, options.serve)


MODULE = Module("qnet", Kind.PROTOCOL, QnetOptions, attach, prepare=prepare)
