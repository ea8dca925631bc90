"""Finding this node's daemon, and asking it. Where it is, `place` says.

The daemon's run directory ($QNET_RUN_DIR, or run_dir of the configuration, /run/qnet) holds `lock`, held and with its process id in it
while it runs, and `socket`, where programs connect.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qnetpy.cli.output import CommandError
from qnetpy.cli.place import CONFIG_PATH as CONFIG_PATH
from qnetpy.cli.place import RUN_DIR as RUN_DIR
from qnetpy.cli.place import run_dir as run_dir
from qnetpy.cli.place import socket_path as socket_path

if TYPE_CHECKING:
    from qnetpy.config import Config
    from resmgr.client import Client

ASK_SECONDS = 3.0
CRYPTODEV = "stack.managers.crypto"
"""The module; by its path, which needs no installed entry point."""


def running_pid(directory: str) -> int:
    """The daemon's process id, 0 when none runs: whoever holds the lock wrote its number there. Who may not look at the lock asks the
    kernel who listens at the socket."""
    try:
        check_place(directory)
        lock = os.open(os.path.join(directory, "lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0
    except PermissionError:
        return listener(directory) or 0
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(lock, 20, 0).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(lock)
    return 0


@contextmanager
def starting(directory: str) -> Iterator[None]:
    """Be the only one who starts or restarts the daemon of that run directory; others wait. While mounts are on their way to the next
    daemon, another one that was started would leave nobody to take them."""
    check_place(directory)
    try:
        lock = os.open(os.path.join(directory, "starting"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        # There is no directory, so no daemon either; or it is another's, which what comes next says.
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def check_place(directory: str) -> None:
    """CommandError when a run directory may be somebody else's trap. Nothing where there is none."""
    from stack.rundir import distrusted

    try:
        why = distrusted(directory, given=True)
    except OSError:
        return  # what comes next says so
    if why:
        raise CommandError(f"the run directory {directory} {why}, so whoever listens there is not asked", "--run-dir, or as that user")


def listener(directory: str) -> int | None:
    """The process that listens at the socket of that run directory, as the kernel says; 0: one of a pid namespace that this process does
    not see into; None: nobody answers."""
    import socket
    import struct

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(ASK_SECONDS)
        try:
            sock.connect(os.path.join(directory, "socket"))
        except OSError:
            return None
        (pid,) = struct.unpack_from("i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)


def connect(config: str | None = None) -> Client:
    """A link to the daemon, the caller's to close. CommandError when it is not there."""
    from resmgr.client import Client
    from resmgr.errors import ResmgrError

    path = socket_path(config)
    check_place(os.path.dirname(path))
    try:
        return Client(path)
    except ResmgrError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            raise CommandError("this node is not up", "qnet up") from error
        raise CommandError(f"{path}: {(error.strerror or str(error)).lower()}") from error


def ask(verb: str, config: str | None = None, **arguments: object) -> dict[str, object]:
    """Facts from the daemon, or what it did. CommandError when it is not there, does not answer, or cannot do it."""
    from qnetpy.channels import CHID_CONTROL
    from qnetpy.controlformat import REPLY_MAX, pack_request, unpack_reply
    from resmgr.errors import ResmgrError
    from resmgr.ids import ND_LOCAL, PID_SYSTEM

    with connect(config) as client:
        try:
            reply = client.connect(ND_LOCAL, PID_SYSTEM, CHID_CONTROL).send(
                pack_request(verb, **arguments), reply_len=REPLY_MAX, timeout=ASK_SECONDS
            )
            found = unpack_reply(bytes(reply.data))
            if isinstance(found.get("error"), str):
                raise CommandError(str(found["error"]))
            return found
        except ResmgrError as error:
            if error.errno == errno.EPERM:
                raise CommandError("only root and the daemon's user may do that here", f"sudo qnet {verb}") from error
            raise CommandError(
                f"the daemon does not answer: {(error.strerror or str(error)).lower()}", "qnet down, then qnet up"
            ) from error
        except ValueError as error:
            raise CommandError(f"the daemon is of another version: {error}", "qnet down, then qnet up") from error


def command_line(config: Config, path: str | None, interfaces: list[str], fault: str) -> list[str]:
    """io-pkt's command line for *config*, which was read from *path* (None: found or default)."""
    import sys

    from qnetpy.config import drivers as drivers_of
    from qnetpy.ethernets import HINT, NONE, ethernets

    drivers = config.stack.drivers
    if interfaces or not drivers:
        try:
            names = interfaces or ((list(config.qnet.interfaces) or ethernets()) if "ethernet" in config.qnet.bearers else [])
        except OSError as error:
            raise CommandError(f"cannot list the network interfaces: {error.strerror}", "[qnet] interfaces in the configuration") from error
        if not names and "ethernet" in config.qnet.bearers:
            raise CommandError(NONE, HINT)
        drivers = drivers_of(config, names)
    # -P: what lies in the directory where somebody types `qnet up` is not ours to import.
    argv = [sys.executable, "-P", "-m", "stack.core.main", "--run-dir", config.node.run_dir, "--poll", str(config.stack.poll_us)]
    if config.node.log in ("info", "debug"):
        argv.append("-v")
    for driver in drivers:
        argv += ["-d", driver.driver, *([driver.options] if driver.options else [])]
        faults = ",".join(filter(None, (driver.fault, fault)))
        argv += ["--fault", faults] if faults else []
    if config.stack.cryptodev and not any(protocol.protocol in ("cryptodev", CRYPTODEV) for protocol in config.stack.protocols):
        argv += ["-p", CRYPTODEV]
    for protocol in config.stack.protocols:
        argv += ["-p", protocol.protocol, *([protocol.options] if protocol.options else [])]
    file = path or (CONFIG_PATH if os.path.exists(CONFIG_PATH) else None)
    return [*argv, "-p", "qnet", *([f"config={os.path.abspath(file)}"] if file else [])]


def check_identity(config: Config) -> None:
    """Say in one line what is wrong with this machine's keys before a daemon is started for nothing."""
    from pathlib import Path

    from qnetpy.identity.keyfiles import StoreError, load_identity

    folder = Path(config.node.key_dir)
    try:
        identity = load_identity(folder, config.node.key_command)
    except StoreError as error:
        hint = "qnet init CLUSTER, or qnet join CODE" if error.errno == errno.ENOENT else ""
        raise CommandError(str(error.strerror), hint) from error
    if config.node.name not in ("", identity.name):
        raise CommandError(f"the configuration calls this node {config.node.name}, its certificate {identity.name}", "remove [node] name")
