"""Programs of nodes that are asked: Python that runs what it is told, line by line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import wait_for

SECONDS = 5.0
"""In which a change must be seen where it need not be seen at once. It is milliseconds; a loaded machine adds to it."""
_LINES = """
import json, os, sys
print("ready", flush=True)
for line in sys.stdin:
    try:
        told = {"is": eval(line)}
    except OSError as error:
        told = {"errno": error.errno}
    print(json.dumps(told), flush=True)
"""


@attrs.frozen
class Program:
    """One of them, on *node*."""

    node: str
    process: subprocess.Popen[bytes]

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The answer to the oldest line that was sent: what it `is`, or the `errno` with which it failed."""
        assert self.process.stdout is not None
        told: dict[str, Any] = json.loads(self.process.stdout.readline())
        return told

    def ask(self, line: str) -> Any:
        """What the line is. AssertionError if it failed."""
        self.send(line)
        told = self.receive()
        assert "is" in told, f"{self.node}: {line}: {os.strerror(told['errno'])}"
        return told["is"]

    def error(self, line: str) -> int:
        """With what the line failed; 0 if it did not."""
        self.send(line)
        return int(self.receive().get("errno", 0))

    def soon(self, line: str) -> None:
        """It becomes true within SECONDS."""
        wait_for(lambda: self.ask(line) is True, SECONDS, f"{self.node}: {line}")


@contextmanager
def asked(cluster: kit.Cluster, node: str, place: str, knows: str) -> Iterator[Program]:
    """Run one in directory *place*. *knows*: Python that it begins with."""
    with cluster.running(node, "env", "-C", place, "python3", "-c", knows + _LINES) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield Program(node, process)
