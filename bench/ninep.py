"""9P beside us, in clear text: u9fs, which serves 9P2000 from Unix, and 9pfs, a FUSE client for it.

Linux's own client (v9fs) is a module that many kernels lack, and diod serves only what v9fs speaks (9P2000.L). Neither program is
packaged by Debian; both are C and one `make`. When they are not installed the bench says so and goes without.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qnetpy.cluster.handle import Cluster

PORT = 7564
PROGRAMS = ("9pfs", "u9fs")
LARGEST = 65512
"""Bytes of a message; the client asks for no more than 8 KiB of its own accord."""


def missing() -> str:
    return " and ".join(name for name in PROGRAMS if shutil.which(name) is None)


@contextlib.contextmanager
def server(cluster: Cluster, node: str, folder: str, cpu: int) -> Iterator[None]:
    """A 9P server of *folder* on *node*."""
    with cluster.running(
        node, "taskset", "-c", str(cpu), sys.executable, str(Path(__file__)), str(shutil.which("u9fs")), folder
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            process.kill()
            raise SystemExit(f"bench: 9P server: {process.communicate()[1].decode(errors='replace').strip()}")
        yield


@contextlib.contextmanager
def mounted(cluster: Cluster, client: str, address: str, point: str, cpu: int) -> Iterator[None]:
    cluster.run(client, "mkdir", "-p", point)
    words = ["taskset", "-c", str(cpu), str(shutil.which("9pfs")), "-f", "-n", "-u", "root", "-p", str(PORT), address, point]
    with cluster.running(client, *words) as process:
        end = time.monotonic() + 10
        while cluster.run(client, "mountpoint", "-q", point, check=False).returncode:
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                raise SystemExit(f"bench: 9pfs did not mount: {process.communicate()[1].decode(errors='replace').strip()}")
            time.sleep(0.05)
        try:
            yield
        finally:
            cluster.run(client, "umount", "-l", point, check=False)


def main(program: str, folder: str) -> None:
    """On the server, whose PATH may be another: what inetd does, for one folder."""
    listener = socket.create_server(("", PORT))
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        words = [program, "-n", "-a", "none", "-u", "root", "-m", str(LARGEST), "-l", "/dev/null", folder]
        with connection:
            subprocess.Popen(words, stdin=connection, stdout=connection)


if __name__ == "__main__":
    main(*sys.argv[1:])
