"""lsm-qnet is attached while frames wait: all that takes long was done before, and is undone when it cannot be attached.

In a process of its own, with a network and a mount namespace of its own: what watches an interpreter cannot be taken out again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qnetpy.identity.certificate import ROLE_ISSUER
from qnetpy.identity.keyfiles import create_cluster, install_bundle, issue_node

ROOT = Path(__file__).parents[2]
ATTACH = """
import json, os, subprocess, sys, threading
import trio
from resmgr.errors import Misuse
from resmgr.fuse.mount import private_namespace
from stack.core.manager import open_manager
from stack.core.module import Kind
from stack.core.preparation import prepare

seen, watching = [], False

def watch(event, arguments):
    if watching and threading.current_thread() is threading.main_thread():
        # What is open already may get an object.
        named = event == "open" and isinstance(arguments[0], (str, bytes))
        if event in ("import", "subprocess.Popen", "os.mkdir", "socket.connect", "socket.getaddrinfo") or named:
            seen.append([event, os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else ""])

def mounts(namespace):
    command = ["nsenter", f"--mount=/proc/{os.getpid()}/fd/{namespace}", "cat", "/proc/self/mounts"]
    return [line.split()[1] for line in subprocess.check_output(command, text=True).splitlines() if line.startswith("qnet ")]

async def main():
    global watching
    namespace = private_namespace()
    async with open_manager([], namespace=namespace) as manager:
        stack, system = manager.stack, manager.system
        def ready():
            return prepare(system, "qnet", sys.argv[1], Kind.PROTOCOL, ())
        made = await trio.to_thread.run_sync(ready)
        watching = True
        manager.dispatch.enter(lambda: stack.load_prepared(made))
        watching = False
        mounted = [mounts(namespace)]
        manager.dispatch.enter(lambda: stack.unload(stack.loaded[0]))
        mounted.append(mounts(namespace))
        taken = stack.register_ethertype(0x88B5, lambda interface, frames: None)
        made = await trio.to_thread.run_sync(ready)
        mounted.append(mounts(namespace))
        try:
            stack.load_prepared(made)
        except Misuse as error:
            mounted.append(mounts(namespace))
            print(json.dumps([seen, mounted, str(error), len(stack.loaded)]))

sys.addaudithook(watch)
trio.run(main)
"""


@pytest.mark.priv
def test_its_attach_reads_nothing_and_leaves_no_mount_when_it_fails(tmp_path: Path) -> None:
    keys, point = tmp_path / "keys", tmp_path / "net"
    create_cluster(keys, "c", time.time())
    install_bundle(keys, issue_node(keys, "n", [ROLE_ISSUER], now=time.time()))
    (tmp_path / "q.toml").write_text(f'[node]\nkey_dir = "{keys}"\n[qnet.mount]\npoint = "{point}"\n')
    command = ["unshare", "--net", "--mount", sys.executable, "-c", ATTACH, f"config={tmp_path / 'q.toml'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    seen, mounted, error, loaded = json.loads(done.stdout)
    # What the kernel says of this process, and the directory that is served, are there at once.
    assert [one for one in seen if not (one[0] == "open" and (one[1].startswith("/proc/") or one[1] == "/"))] == []
    assert seen, "nothing was watched"
    assert mounted == [[str(point)], [], [str(point)], []]
    assert "0x88b5" in error
    assert loaded == 0
