"""Network namespaces for tests: anonymous, held by a descriptor, gone with it; nothing of them has a name on the machine. Needs the right
to make them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from stack.linux.namespace import OWN, enter, inside

CLONE_NEWNET = 0x40000000
WAIT_MAX = 30.0


@attrs.frozen
class Namespace:
    """A network namespace. Sockets opened inside `entered` belong to it, whatever the thread does later."""

    fd: int

    @classmethod
    def make(cls) -> Namespace:
        before = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) < 0:
                raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
            try:
                return cls(os.open(OWN, os.O_RDONLY | os.O_CLOEXEC))
            finally:
                enter(before)
        finally:
            os.close(before)

    @contextmanager
    def entered(self) -> Iterator[None]:
        with inside(self.fd):
            yield

    def ip(self, *arguments: str) -> None:
        """Run ip(8) inside."""
        with self.entered():
            subprocess.run(["ip", *arguments], check=True)

    def output(self, *arguments: str) -> str:
        """What ip(8) prints inside."""
        with self.entered():
            return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout

    def wait_for(self, link: str, state: str) -> None:
        """Wait until the kernel has seen to a carrier that came or went, up to a second later: the operational *state*, `UP` or `DOWN`, of
        *link*. Before it is `UP`, what is sent there is dropped without a word."""
        end = time.monotonic() + WAIT_MAX
        while f" state {state} " not in self.output("-oneline", "link", "show", "dev", link):
            if time.monotonic() > end:
                raise TimeoutError(f"{link} is not {state} after {WAIT_MAX:.0f} s")
            time.sleep(0.005)

    def move(self, link: str, other: Namespace) -> None:
        """Give the interface *link* to *other*."""
        self.ip("link", "set", link, "netns", f"/proc/{os.getpid()}/fd/{other.fd}")

    def close(self) -> None:
        os.close(self.fd)


@attrs.frozen
class Veth:
    """Two namespaces, one cable: `va` in `a`, `vb` in `b`, both up."""

    a: Namespace
    b: Namespace
