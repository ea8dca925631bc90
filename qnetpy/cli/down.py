"""`qnet down`: stop this node's daemon. It says goodbye to the others, who see it leave at once, and unmounts /net."""

from __future__ import annotations

import argparse
import os
import select
import signal

from qnetpy.cli.output import CommandError

END_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon

    print("node is down" if stop(daemon.run_dir(args.config)) else "this node is not up")
    return 0


def find(directory: str) -> int:
    """The process of the daemon of that run directory, 0 when there is none. CommandError if it has another number, or none, here."""
    from qnetpy.cli import daemon

    pid = daemon.running_pid(directory)
    # Asked again, since another one may have taken over in between.
    if pid and daemon.listener(directory) not in (pid, None) and pid == daemon.running_pid(directory):
        raise CommandError(f"the daemon of {directory} is in another pid namespace", "the same where it was started")
    return pid


def stop(directory: str) -> bool:
    """Stop the daemon of that run directory and wait for its end. False when there is none."""
    pid = find(directory)
    if not pid:
        return False
    try:
        ended = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(ended, signal.SIGTERM)
            gone, _, _ = select.select([ended], [], [], END_SECONDS)
        finally:
            os.close(ended)
    except ProcessLookupError:
        gone = [pid]
    except PermissionError as error:
        raise CommandError(f"process {pid} is another user's", "sudo qnet down") from error
    if not gone:
        raise CommandError(f"the daemon (process {pid}) did not end within {END_SECONDS:g} s", f"kill -9 {pid}")
    return True
