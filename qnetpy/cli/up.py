"""`qnet up`: start this node's daemon, io-pkt with the drivers and modules of the configuration, and wait until it is ready.

The daemon writes READY=1 to a pipe (`io-pkt --ready-fd`). When it ends before, what it said last is the error. Its log is RUN_DIR/log.
"""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from qnetpy.cli.output import CommandError, as_json

READY_SECONDS = 20.0
END_SECONDS = 5.0
"""A killed daemon ends as soon as nothing in the kernel waits for it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_start_arguments(parser)
    parser.add_argument("--foreground", action="store_true", help="be the daemon: do not return until it ends, log to standard error")


def add_start_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of each command that starts a daemon."""
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")
    parser.add_argument("--interface", action="append", default=[], metavar="IF", help="use this interface; may be repeated")
    parser.add_argument("--fault", default="", help="faults around every driver, for trials: drop=5%%,reorder=5%%")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon
    from qnetpy.cli.settings import load

    config = load(args.config)
    argv = daemon.command_line(config, args.config, args.interface, args.fault)
    with daemon.starting(config.node.run_dir):
        running = daemon.running_pid(config.node.run_dir)
        if running and _held_up(config.node.run_dir):
            running = daemon.running_pid(config.node.run_dir)
        if running:
            raise CommandError(f"this node is up already (process {running}, {config.node.run_dir})", "qnet status, or qnet down first")
        daemon.check_identity(config)
        if args.foreground:
            os.execv(argv[0], argv)
        pid = start(argv, Path(config.node.run_dir))
    if args.json:
        print(as_json({"pid": pid, "run_dir": config.node.run_dir}))
    else:
        print(f"node is up: process {pid}, log {config.node.run_dir}/log")
    return 0


def _held_up(run_dir: str) -> bool:
    """Whether the daemon that was there was killed and the kernel could not let it go because of its mounts. They are aborted, and its end
    is waited for."""
    from qnetpy.cli import daemon
    from qnetpy.netfs import record

    try:
        if not record.abort_left(run_dir):
            return False
    except OSError as error:
        raise CommandError(error.strerror or str(error)) from error
    patience = time.monotonic() + END_SECONDS
    while daemon.running_pid(run_dir) and time.monotonic() < patience:
        time.sleep(0.02)
    return True


def start(argv: list[str], run_dir: Path, handed: Sequence[int] = ()) -> int:
    """Start the daemon in a session of its own and wait until it is ready. Returns its pid. *handed*: descriptors of an earlier one's
    mounts, which stay the caller's."""
    from qnetpy.handed import environment

    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        log = os.open(run_dir / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise CommandError(f"{run_dir}: {(error.strerror or str(error)).lower()}", "sudo qnet up, or another [node] run_dir") from error
    begin = os.fstat(log).st_size
    ready, theirs = os.pipe2(os.O_CLOEXEC)
    process = subprocess.Popen(
        [*argv[:4], "--ready-fd", str(theirs), *argv[4:]],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        cwd="/",
        pass_fds=[theirs, *handed],
        env={**os.environ, **(environment(handed) if handed else {})},
    )
    os.close(theirs)
    os.close(log)
    with os.fdopen(ready, "rb") as pipe:
        readable, _, _ = select.select([pipe], [], [], READY_SECONDS)
        if readable and pipe.read(64).startswith(b"READY=1"):
            process.returncode = 0  # it is not ours to wait for: it outlives this command
            return process.pid
    try:
        status = process.wait(1.0 if readable else 0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise CommandError(f"the daemon was not ready within {READY_SECONDS:g} s; its log is {run_dir}/log") from None
    if _full(run_dir):
        # Its log, too, may lack what it said.
        raise CommandError(f"{run_dir}: no space left on device; the daemon ended with {status}", "df, or another [node] run_dir")
    with open(run_dir / "log", "rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").strip().splitlines()
    # Another daemon may be writing there, what it does and that it is ready: two that were started at once.
    other = [line for line in lines if not line.startswith(("io-pkt: INFO: ", "io-pkt: WARNING: "))]
    said = [line for line in other if line.startswith("io-pkt: ")] or other or lines
    raise CommandError(said[-1].removeprefix("io-pkt: ") if said else f"the daemon ended with {status} and said nothing")


def _full(run_dir: Path) -> bool:
    """Whether nothing can be written there any more."""
    there = os.statvfs(run_dir)
    return not there.f_bavail or bool(there.f_files and not there.f_favail)
