"""sshfs beside us: a private sshd on one node, a mount on the other, temporary keys. Nothing of the user's ssh is used or changed."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator

from qnetpy.cluster.handle import Cluster

FOLDER = "/tmp/bench-ssh"
PORT = "2222"
CIPHER = "aes128-gcm@openssh.com"
OPTIONS = (
    f"port={PORT},IdentityFile={FOLDER}/key,Ciphers={CIPHER},StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,"
    "ssh_command=ssh -F none -o IdentityAgent=none -o LogLevel=ERROR"
)
SERVER = f"""
set -e
mkdir -p -m 700 {FOLDER} /run/sshd
ssh-keygen -q -t ed25519 -N '' -f {FOLDER}/host
echo "$1" > {FOLDER}/authorized
exec /usr/sbin/sshd -D -e -f /dev/null -p {PORT} -h {FOLDER}/host -o AuthorizedKeysFile={FOLDER}/authorized -o StrictModes=no \\
    -o UsePAM=no -o PasswordAuthentication=no -o PermitRootLogin=yes -o Ciphers={CIPHER} -o PidFile=none \\
    -o "Subsystem=sftp /usr/lib/openssh/sftp-server"
"""
BEST = "Compression=no,dcache_max_size=100000,entry_timeout=20,attr_timeout=20"
"""What makes sshfs quickest: a cache large enough for the trees, and the kernel believes as long as it does itself (20 s)."""
CLIENT = f"set -e; mkdir -p -m 700 {FOLDER}; ssh-keygen -q -t ed25519 -N '' -f {FOLDER}/key; cat {FOLDER}/key.pub"


def missing() -> str:
    """What has to be installed for the comparison; empty when all is there."""
    programs = {"sshfs": "sshfs", "/usr/sbin/sshd": "openssh-server", "ssh-keygen": "openssh-client"}
    return " ".join(package for program, package in programs.items() if shutil.which(program) is None)


@contextlib.contextmanager
def sshd(cluster: Cluster, client: str, server: str, address: str = "") -> Iterator[None]:
    """An ssh server on *server* that lets root of *client* in. *address*: where it is looked for."""
    key = cluster.run(client, "sh", "-c", CLIENT).stdout.strip()
    with cluster.running(server, "sh", "-c", SERVER, "sh", key) as process:
        end = time.monotonic() + 10
        probe = f"import socket; socket.create_connection(('{address or cluster.address(server)}', {PORT})).close()"
        while cluster.run(client, "python3", "-c", probe, check=False).returncode:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"bench: sshd on {server} did not start: {_said(process)}")
            time.sleep(0.05)
        yield


@contextlib.contextmanager
def sshfs(cluster: Cluster, client: str, address: str, folder: str, point: str, cpu: int | None, options: str) -> Iterator[None]:
    """*folder* of the server at *address*, mounted fresh at *point* of *client*."""
    pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
    where = f"root@{address}:{folder}"
    cluster.run(client, "mkdir", "-p", point)
    with cluster.running(client, *pin, "sshfs", "-f", where, point, "-o", f"{OPTIONS},{options}") as process:
        end = time.monotonic() + 10
        while cluster.run(client, "mountpoint", "-q", point, check=False).returncode:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"bench: sshfs did not mount: {_said(process)}")
            time.sleep(0.05)
        try:
            yield
        finally:
            cluster.run(client, "umount", "-l", point, check=False)


def _said(process: subprocess.Popen[bytes]) -> str:
    process.kill()
    return process.communicate()[1].decode(errors="replace").strip().replace("\n", " / ")
