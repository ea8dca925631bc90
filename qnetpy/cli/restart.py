"""`qnet restart`: end this node's daemon and start the next one, which takes over its mounts: programs go on with what they have open on
/net.

This command holds the mounts while there is no daemon. If it is killed then, or the next daemon does not start, they are gone.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from qnetpy.cli.output import CommandError, as_json

HAND_OVER_SECONDS = 60.0
"""What it answers after this is lost, and the mounts with it: longer than many names and a busy machine take."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from qnetpy.cli import up

    up.add_start_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon, down, iopkt, up
    from qnetpy.cli.settings import load

    _let_go()
    config = load(args.config)
    _stands_apart(config.node.run_dir)
    # What is wrong with the configuration is found while the old one runs.
    argv = daemon.command_line(config, args.config, args.interface, args.fault)
    daemon.check_identity(config)
    run_dir = config.node.run_dir
    descriptors: tuple[int, ...] = ()
    mounts: list[tuple[str, int, int]] = []
    with daemon.starting(run_dir):
        if down.find(run_dir):
            descriptors, mounts = _mounts(args.config)
        try:
            try:
                down.stop(run_dir)
            except CommandError:
                # Something of it waits for an answer that nobody gives any more.
                from qnetpy.netfs.record import abort_mounts

                abort_mounts(mounts)
                raise
            pid = up.start(argv, Path(run_dir), descriptors)
        finally:
            for fd in descriptors:
                os.close(fd)
        points = [point for point, _, _ in mounts]
        if points:
            # Before somebody else may begin another restart, in which they belong to nobody for a moment.
            now = {mount.get("point") for mount in iopkt.listed(daemon.ask("status", args.config).get("mounts"))}
            points = [point for point in points if point in now]
    if args.json:
        print(as_json({"pid": pid, "run_dir": run_dir, "mounts": points}))
    else:
        kept = f", {', '.join(points)} kept" if points else ""
        print(f"node is up: process {pid}, log {run_dir}/log{kept}")
    return 0


def _let_go() -> None:
    """Close what the shell left open. A file of /net among it would be closed once more by the process that becomes the next daemon, which
    would wait for a daemon then."""
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)


def _stands_apart(run_dir: str) -> None:
    """CommandError if this command uses a file of the daemon's mounts as standard input, output or error: these are closed by the process
    that becomes the next daemon, too, and are still needed here."""
    from qnetpy.netfs import record

    points = {one.device: one.point for one in record.made(run_dir)}
    for fd, name in enumerate(("standard input", "standard output", "standard error")):
        try:
            device = os.fstat(fd).st_dev
        except OSError:
            continue
        point = points.get((os.major(device), os.minor(device)))
        if point is not None:
            raise CommandError(
                f"{name} is a file of {point}, which nobody serves while the daemon is restarted", "a file of this machine, or </dev/null"
            )


def _mounts(config: str | None) -> tuple[tuple[int, ...], list[tuple[str, int, int]]]:
    """The running daemon's mounts: descriptors, which are the caller's, and where they are: path, major, minor."""
    from qnetpy.channels import CHID_CONTROL
    from qnetpy.cli import daemon
    from qnetpy.controlformat import REPLY_MAX, pack_request, unpack_reply
    from qnetpy.handed import received
    from resmgr.errors import ResmgrError
    from resmgr.ids import ND_LOCAL, PID_SYSTEM

    with daemon.connect(config) as client:
        try:
            reply = client.connect(ND_LOCAL, PID_SYSTEM, CHID_CONTROL).send(
                pack_request("hand-over", socket=True), reply_len=REPLY_MAX, timeout=HAND_OVER_SECONDS
            )
        except ResmgrError as error:
            raise CommandError(f"the daemon does not hand over its mounts: {error.strerror or error}", "qnet down, then qnet up") from error
    told = unpack_reply(bytes(reply.data))
    if isinstance(told.get("error"), str):
        raise CommandError(str(told["error"]), "qnet down, then qnet up")
    return received(told, reply.descriptors), _places(told.get("mounts"))


def _places(told: object) -> list[tuple[str, int, int]]:
    """What can be read of what a daemon says, which may be of another version: its mounts are handed on in any case."""
    places: list[tuple[str, int, int]] = []
    for one in told if isinstance(told, list) else []:
        match one:
            case [str(point), int(major), int(minor)]:
                places.append((point, major, minor))
    return places
