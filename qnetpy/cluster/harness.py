"""Starting a cluster, running commands on its nodes, stopping it: what `qnet cluster` and the pytest fixture both use.

Blocking calls of ordinary programs, no event loop. `start` returns when every node has booted; the cluster then lives until `stop`, or,
when it was started with a leash, until the starter ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qnetpy.cluster import control, state
from qnetpy.cluster.control import ControlError

if TYPE_CHECKING:
    from qnetpy.cluster.topology import Plan

START_SECONDS = 60.0


class ClusterError(Exception):
    """The cluster could not be started, or is not what was asked for. One line."""


def start(
    plan: Plan, keys: Callable[[Plan, Path], None] | None = None, leash: bool = False, writable: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Start a cluster and wait until its nodes have booted. *keys* puts each node's /etc/qnet into a folder of its name.

    *writable* are directories of this machine that nodes may write to, besides those of the topology.
    With *leash* the cluster ends when the returned process's standard input is closed, or when this process dies. ClusterError names the
    node and the command that failed; nothing is left behind then.
    """
    try:
        path, lock = state.create(plan.name)
    except FileExistsError as error:
        raise ClusterError(f"cluster {plan.name!r} is running already; try: qnet cluster down {plan.name}") from error
    except OSError as error:
        raise ClusterError(
            f"{error.filename or state.base()}: {(error.strerror or str(error)).lower()}; try: QNET_CLUSTERS=DIRECTORY"
        ) from error
    try:
        Path(path, "plan").write_text(plan.as_json(writable), encoding="utf-8")
        if keys is not None:
            keys(plan, Path(path, "keys"))
        with open(f"{path}/log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "qnetpy.cluster.guardian", path, str(lock)],
                stdin=subprocess.PIPE if leash else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[lock],
                start_new_session=True,
            )
    except BaseException:
        state.remove(path)
        raise
    finally:
        os.close(lock)
    try:
        _until_ready(process, path)
    except BaseException:
        end(process, path)
        raise
    return process


def _until_ready(process: subprocess.Popen[bytes], path: str) -> None:
    assert process.stdout is not None
    with process.stdout as facts:
        readable, _, _ = select.select([facts], [], [], START_SECONDS)
        line = facts.readline() if readable else b""
    if not line:
        log = _tail(path)
        raise ClusterError(f"the supervisor did not start{': ' + log if log else ''}")
    fact = json.loads(line)
    if "error" in fact:
        raise ClusterError(str(fact["error"]))
    try:
        answer, _ = control.ask(path, {"do": "wait"}, START_SECONDS)
    except ControlError as error:
        raise ClusterError(str(error)) from error
    failed = answer["failed"]
    assert isinstance(failed, dict)
    for node, report in failed.items():
        raise ClusterError(f"node {node} did not start: {' / '.join(str(report).splitlines()[-3:])}")


def _tail(path: str) -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path(path, "log").read_text(errors="replace").strip().splitlines()[-1]
    return ""


def end(process: subprocess.Popen[bytes], path: str) -> None:
    """Have a cluster that this process started be gone."""
    with contextlib.suppress(ControlError):
        control.ask(path, {"do": "down"}, 20.0)
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    state.sweep()


def stop(name: str) -> bool:
    """Shut a cluster down and wait until nothing of it is left. False when there was none (what a dead one left is removed)."""
    path = state.directory(name)
    if not state.alive(path):
        return name in state.sweep()
    with contextlib.suppress(ControlError):
        control.ask(path, {"do": "down"}, 20.0)
    deadline = time.monotonic() + 15
    while state.alive(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    state.sweep()
    if state.alive(path):
        raise ClusterError(f"cluster {name!r} did not end within 15 s; its processes hold {path}/lock")
    return True


def the_one(name: str | None) -> str:
    """The directory of the cluster called *name* (None: $QNET_CLUSTER), or of the only one that runs."""
    name = name or os.environ.get("QNET_CLUSTER")
    running = [found for found in state.names() if state.alive(state.directory(found))]
    if name is not None:
        if name not in running:
            raise ClusterError(f"cluster {name!r} is not running" + (f"; running: {', '.join(running)}" if running else ""))
        return state.directory(name)
    if not running:
        raise ClusterError("no cluster is running; try: qnet cluster up clusters/three")
    if len(running) > 1:
        raise ClusterError(f"several clusters are running: {', '.join(running)}; say which with --name or $QNET_CLUSTER")
    return state.directory(running[0])
