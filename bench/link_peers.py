"""What `qnet bench --only links` stands beside: Erlang distribution over TLS, and nebula with iperf3 in it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from peers import _said

from qnetpy.cluster.handle import Cluster

FOLDER = "/tmp/bench-links"
"""Each node has a /tmp of its own."""
SOURCE = Path(__file__).with_name("bench_peer.erl")
SUITE = "TLS_AES_128_GCM_SHA256"
OVERLAY = {0: "10.99.0.1", 1: "10.99.0.2"}
PORT = 4242
IPERF_SECONDS = 3
ERLANG_FLAGS = (
    "-noshell -kernel inet_dist_listen_min 4370 inet_dist_listen_max 4370 -setcookie bench -proto_dist inet_tls"
    f" -ssl_dist_optfile {FOLDER}/ssl.conf -pa {FOLDER}"
)
TLS = f"""[{{server, [{{certfile, "{FOLDER}/both.pem"}}, {{verify, verify_none}}, {{versions, ['tlsv1.3']}}, {{ciphers, ["{SUITE}"]}}]}},
 {{client, [{{certfile, "{FOLDER}/both.pem"}}, {{verify, verify_none}}, {{versions, ['tlsv1.3']}}, {{ciphers, ["{SUITE}"]}}]}}].
"""
NEBULA = """
pki: {{ca: {folder}/ca.crt, cert: {folder}/{node}.crt, key: {folder}/{node}.key}}
static_host_map: {{"{lighthouse}": ["{address}:{port}"]}}
lighthouse: {{am_lighthouse: {am}, hosts: [{hosts}]}}
listen: {{host: 0.0.0.0, port: {port}}}
cipher: aes
tun: {{dev: neb, mtu: {mtu}}}
logging: {{level: warning}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"""


def missing() -> str:
    """What has to be installed for the comparison; empty when all is there."""
    programs = {"erl": "erlang-ssl", "nebula": "nebula", "nebula-cert": "nebula", "iperf3": "iperf3", "openssl": "openssl"}
    return " ".join(sorted({package for program, package in programs.items() if shutil.which(program) is None}))


def give(cluster: Cluster, node: str, files: dict[str, str]) -> None:
    """Put small files into FOLDER of *node*."""
    for name, text in files.items():
        cluster.run(node, "sh", "-c", f'mkdir -p {FOLDER}; umask 77; printf %s "$1" > {FOLDER}/{name}', "sh", text)


class Erlang:
    """Two Erlang nodes, made ready by `prepare`."""

    def __init__(self, cluster: Cluster, client: str, server: str) -> None:
        self.cluster = cluster
        self.client = client
        self.server = server
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                    "-days",
                    "2",
                    "-subj",
                    "/CN=b",
                ]
                + ["-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"],
                check=True,
                capture_output=True,
            )
            both = Path(folder, "cert.pem").read_text() + Path(folder, "key.pem").read_text()
        for node in (client, server):
            give(cluster, node, {"both.pem": both, "ssl.conf": TLS, SOURCE.name: SOURCE.read_text()})
            cluster.run(node, "sh", "-c", f"cd {FOLDER} && erlc {SOURCE.name}", seconds=60)

    def command(self, node: str, cpu: int, call: str) -> list[str]:
        """Flags keep it on one scheduler of the processor that it is pinned to, without spinning there beyond its own choice."""
        name = f"{node}@{self.cluster.address(node)}"
        words = f"exec taskset -c {cpu} erl +S 1:1 {ERLANG_FLAGS} -name {name} -eval '{call}'"
        return ["sh", "-c", f"export HOME={FOLDER}; {words}"]

    @contextlib.contextmanager
    def serving(self, cpu: int) -> Iterator[None]:
        with self.cluster.running(self.server, *self.command(self.server, cpu, "bench_peer:serve().")) as process:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise SystemExit(f"bench: erlang: {_said(process)}")
            yield

    def ask(self, cpu: int, function: str, *numbers: int) -> dict[str, float]:
        where = f"'\\''{self.server}@{self.cluster.address(self.server)}'\\''"
        call = f"bench_peer:{function}({', '.join([where, *map(str, numbers)])})."
        figures: dict[str, float] = json.loads(self.cluster.run(self.client, *self.command(self.client, cpu, call), seconds=120).stdout)
        return figures


@contextlib.contextmanager
def nebula(cluster: Cluster, nodes: Sequence[str], cpus: dict[str, int], mtu: int) -> Iterator[str]:
    """A nebula overlay between two nodes, which may still be coming up; yields the second one's address in it."""
    with tempfile.TemporaryDirectory() as folder:

        def cert(*words: str) -> None:
            subprocess.run(["nebula-cert", *words], cwd=folder, check=True, capture_output=True)

        cert("ca", "-name", "bench")
        for number, node in enumerate(nodes):
            cert("sign", "-name", node, "-ip", f"{OVERLAY[number]}/24")
            files = {name: Path(folder, name).read_text() for name in ("ca.crt", f"{node}.crt", f"{node}.key")}
            lighthouse = number == 1
            files["nebula.yml"] = NEBULA.format(
                folder=FOLDER,
                node=node,
                lighthouse=OVERLAY[1],
                address=cluster.address(nodes[1]),
                port=PORT,
                am=str(lighthouse).lower(),
                hosts="" if lighthouse else f'"{OVERLAY[1]}"',
                mtu=mtu - 60,
            )
            give(cluster, node, files)
    with contextlib.ExitStack() as stack:
        for node in reversed(nodes):
            words = ["taskset", "-c", str(cpus[node]), "nebula", "-config", f"{FOLDER}/nebula.yml"]
            stack.enter_context(cluster.running(node, *words))
        yield OVERLAY[1]


def iperf(cluster: Cluster, client: str, server: str, cpus: dict[str, int], address: str) -> float:
    """MB/s of one TCP stream from *client* to *server* at *address*."""
    with cluster.running(server, "taskset", "-c", str(cpus[server]), "iperf3", "-s", "-1"):
        words = ["taskset", "-c", str(cpus[client]), "iperf3", "-c", address, "-t", str(IPERF_SECONDS), "-J"]
        end = time.monotonic() + 10
        while True:
            result = cluster.run(client, *words, check=False, seconds=IPERF_SECONDS + 20)
            # It also ends well when the overlay is not up yet, and has received nothing.
            received = json.loads(result.stdout)["end"].get("sum_received") if result.returncode == 0 else None
            if received is not None:
                return float(received["bits_per_second"]) / 8e6
            if time.monotonic() > end:
                raise SystemExit(f"bench: iperf3: {result.stdout.strip() or result.stderr.strip()}")
            time.sleep(0.05)
