"""Handshakes per second and core, the work of both ends together, without wires: ours beside TLS 1.3 with a certificate at both ends.

Ours: `HandshakeMachine`s as in a node, Noise XX at first contact (both ends check the other's X.509 certificate) and IK with a known key,
until both hold the session and have opened a packet under it. TLS: Python's ssl (OpenSSL) through memory, X25519 and certificates of
P-256, until both ends are through and a byte has crossed each way; resumed: with a ticket (a key exchange, but no certificates).
"""

from __future__ import annotations

import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qnetpy.identity.authority import issue_identity, make_authority
from qnetpy.link.testing import WALL, Caller, Wire, address, agreed
from qnetpy.testing.world import DAY

COUNT = 100
ROUNDS = 5
"""The fastest of so many, taken in turn: somebody else may use the processor meanwhile."""


class Ours:
    """Two nodes that shake hands again and again."""

    def __init__(self) -> None:
        self._wire = Wire(1)
        authority = make_authority("scale", WALL)
        self._identities = [issue_identity(authority, name, ("member",), WALL, DAY) for name in ("a", "b")]
        self._meet()

    def _meet(self) -> None:
        self._one, self._two = (Caller(self._wire, identity, address(number)) for number, identity in enumerate(self._identities, 1))

    def first(self) -> None:
        self._meet()
        self.known()

    def known(self) -> None:
        one, two = self._one, self._two
        one.call(two.address, two.name)
        self._wire.run(self._wire.now + 0.2)
        if agreed(one, two) is None:
            raise SystemExit("a handshake failed")


class Tls:
    """A client and a server in memory, each with a certificate that the other checks."""

    def __init__(self, folder: Path) -> None:
        self.session: ssl.SSLSession | None = None
        make(folder)
        self._contexts = []
        for protocol, name in ((ssl.PROTOCOL_TLS_CLIENT, "client"), (ssl.PROTOCOL_TLS_SERVER, "server")):
            context = ssl.SSLContext(protocol)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname = False
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(folder / "ca.pem")
            context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
            self._contexts.append(context)

    def shake(self, session: ssl.SSLSession | None = None) -> ssl.SSLObject:
        """The client's end of a new connection."""
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self._contexts[0].wrap_bio(back, there, session=session)
        server = self._contexts[1].wrap_bio(there, back, server_side=True)
        waiting: list[Callable[[], None]] = [client.do_handshake, server.do_handshake]
        while waiting:
            left = []
            for step in waiting:
                try:
                    step()
                except ssl.SSLWantReadError:
                    left.append(step)
            waiting = left
        for end, other in ((client, server), (server, client)):
            end.write(b"x")
            if other.read(1) != b"x":
                raise SystemExit("a TLS connection failed")
        if client.session_reused != (session is not None):
            raise SystemExit("TLS did not resume as asked")
        return client

    def full(self) -> None:
        self.session = self.shake().session

    def resumed(self) -> None:
        self.session = self.shake(self.session).session


def make(folder: Path) -> None:
    """An authority and two certificates of P-256, which OpenSSL has fastest."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", *curve, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("client", "server"):
        openssl("req", *curve, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-out",
            f"{name}.pem",
        )


def rates() -> tuple[float, float, float, float]:
    """Per second of processor time: ours at first contact and with a known key, TLS in full and resumed."""
    with tempfile.TemporaryDirectory() as folder:
        ours, tls = Ours(), Tls(Path(folder))
        calls = (ours.first, ours.known, tls.full, tls.resumed)
        best = [float("inf")] * len(calls)
        for _ in range(ROUNDS):
            for place, call in enumerate(calls):
                begin = time.process_time()
                for _ in range(COUNT):
                    call()
                best[place] = min(best[place], (time.process_time() - begin) / COUNT)
        first, known, full, resumed = (1 / seconds for seconds in best)
        return first, known, full, resumed
